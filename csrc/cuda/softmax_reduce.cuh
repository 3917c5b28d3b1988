// Reductions over the threads of a CTA, in a fixed order, and the online log-sum-exp.
#pragma once
#include <cmath>

#include "device.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kReduceThreads = 128;

// Pairwise over all threads, for all threads.
template <class W, class F>
__device__ inline W reduced(W (&buffer)[kReduceThreads], W mine, F f) {
  __syncthreads();
  buffer[threadIdx.x] = mine;
  for (int n = kReduceThreads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < n) {
      buffer[threadIdx.x] = f(buffer[threadIdx.x], buffer[threadIdx.x + n]);
    }
  }
  __syncthreads();
  return buffer[0];
}

// The largest of some numbers and the sum of exp(z - top), in one pass.
template <class W>
struct OnlineSum {
  W top = -static_cast<W>(INFINITY), sum = 0;

  __device__ void add(W z) {
    using std::exp;
    if (z > top) {
      sum = sum * exp(top - z) + 1;
      top = z;
    } else if (z != -static_cast<W>(INFINITY)) {  // words masked by their bias add nothing
      sum += exp(z - top);
    }
  }

  // All threads of the CTA: those of all of them.
  __device__ void combine(W (&buffer)[kReduceThreads]) {
    using std::exp;
    const W most = reduced(buffer, top, [](W a, W b) { return a > b ? a : b; });
    const W mine = sum != 0 ? sum * exp(top - most) : W(0);
    sum = reduced(buffer, mine, [](W a, W b) { return a + b; });
    top = most;
  }
};

}  // namespace cuda
}  // namespace fusedrnn
