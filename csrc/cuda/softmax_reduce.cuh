// The online log-sum-exp over the threads of a CTA, and log sigmoid.
#pragma once
#include <cmath>

#include "reduce.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kReduceThreads = 128;

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
  template <int kThreads>
  __device__ void combine(W (&buffer)[kThreads]) {
    using std::exp;
    const W most = reduced(buffer, top, [](W a, W b) { return a > b ? a : b; });
    const W mine = sum != 0 ? sum * exp(top - most) : W(0);
    sum = reduced(buffer, mine, [](W a, W b) { return a + b; });
    top = most;
  }
};

template <class W>
__device__ inline W log_sigmoid(W v) {
  using std::exp;
  using std::log1p;
  return (v < 0 ? v : W(0)) - log1p(exp(v < 0 ? v : -v));
}

}  // namespace cuda
}  // namespace fusedrnn
