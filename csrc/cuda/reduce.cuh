// Reductions over the threads of a CTA, in a fixed order.
#pragma once
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

// Pairwise over all threads, for all threads. kThreads is a power of two.
template <class W, int kThreads, class F>
__device__ inline W reduced(W (&buffer)[kThreads], W mine, F f) {
  __syncthreads();
  buffer[threadIdx.x] = mine;
  for (int n = kThreads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < n) {
      buffer[threadIdx.x] = f(buffer[threadIdx.x], buffer[threadIdx.x + n]);
    }
  }
  __syncthreads();
  return buffer[0];
}

}  // namespace cuda
}  // namespace fusedrnn
