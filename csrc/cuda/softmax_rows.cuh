// Which weight rows a block of sorted tokens meets: read from the plan (softmax_plan.cu). And which
// tokens a search has left: softmax_marked.cuh.
#pragma once
#include "../softmax.h"
#include "tile.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kBlock = 32;  // sorted tokens of one CTA

// Null, or what is wrong.
template <class... P, class... A>
const char* start(void (*kernel)(P...), int64_t ctas, int threads, cudaStream_t stream,
                  const A&... args) {
  return launch(kernel, ctas, 1, threads, stream, args...);
}

// How many tiles of a size cover n.
__device__ inline int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The first of values[0 .. n) that is above x, or n.
template <class T>
__device__ inline int64_t first_above(const T* values, int64_t n, int64_t x) {
  int64_t low = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (values[low + half] > x) {
      n = half;
    } else {
      low += half + 1;
      n -= half + 1;
    }
  }
  return low;
}

// One of the weight rows that a block of tokens meets: where its logits are in a token's row of
// saved[], and which tokens have any.
struct MetRow {
  int32_t row, column, begin, end;  // row -1: there is none

  __device__ bool meets(int64_t t) const { return row >= 0 && t >= begin && t < end; }
};

// How many rows a block meets, and kCount of them from row k on.
struct BlockRows {
  const SoftmaxTree& tree;
  const SoftmaxGpuPlan& p;
  int64_t first;    // token
  int64_t entries;  // (token, level) pairs

  __device__ BlockRows(const SoftmaxTree& of, const SoftmaxGpuPlan& plan, int64_t block)
      : tree(of), p(plan), first(block * kBlock) {
    const int64_t left = p.N - first;
    entries = (left < kBlock ? left : kBlock) * p.depth;
  }
  __device__ int64_t rows() const { return p.prefix[first * p.depth + entries - 1]; }

  template <int kCount>
  __device__ void find(MetRow (&met)[kCount], int64_t k) const {
    const int32_t* prefix = p.prefix + first * p.depth;
    for (int i = threadIdx.x; i < kCount; i += kThreads) {
      const int64_t at = first_above(prefix, entries, k + i);
      met[i] = {-1, 0, 0, 0};
      if (at == entries) continue;
      const int32_t node = p.path[first * p.depth + at];
      const int64_t rows = tree.node_rows[node + 1] - tree.node_rows[node];
      const int64_t r = rows - (prefix[at] - (k + i));
      met[i] = {static_cast<int32_t>(tree.node_rows[node] + r),
                static_cast<int32_t>(p.column[node] + r), p.begin[node], p.end[node]};
    }
  }
};

// Tokens whose words are all scored, of which a launch takes `most` from `first` on. How many there
// are the host never knows.
struct SoftmaxMarked {
  const int32_t* list;  // [1 + N]  how many, then which; or null
  int64_t first, most;

  __device__ int64_t count() const {
    const int64_t left = list[0] - first;
    return left < 0 ? 0 : left < most ? left : most;
  }
  __device__ int64_t token(int64_t i) const { return list[1 + first + i]; }
};

}  // namespace cuda
}  // namespace fusedrnn
