// Of the tokens that a search has marked: which they are, and the best of all their words.
#pragma once
#include "softmax_best.cuh"
#include "softmax_rows.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kMarkThreads = 512;

// list: how many of rows[0 .. n) are below 0, then which, in order. One CTA.
__global__ void __launch_bounds__(kMarkThreads)
    softmax_mark(int64_t n, const int64_t* rows, int32_t* list) {
  struct Shared {
    int32_t sum[kMarkThreads];
  };
  auto& s = shared_memory<Shared>();
  const int64_t share = (n + kMarkThreads - 1) / kMarkThreads, first = threadIdx.x * share;
  const int64_t last = first + share < n ? first + share : n;
  int32_t mine = 0;
  for (int64_t i = first; i < last; ++i) mine += rows[i] < 0;
  s.sum[threadIdx.x] = mine;
  __syncthreads();
  for (int step = 1; step < kMarkThreads; step *= 2) {
    const int from = static_cast<int>(threadIdx.x) - step;
    const int32_t before = from >= 0 ? s.sum[from] : 0;
    __syncthreads();
    s.sum[threadIdx.x] += before;
    __syncthreads();
  }
  int32_t* to = list + 1 + s.sum[threadIdx.x] - mine;
  for (int64_t i = first; i < last; ++i)
    if (rows[i] < 0) *to++ = static_cast<int32_t>(i);
  if (threadIdx.x == kMarkThreads - 1) list[0] = s.sum[threadIdx.x];
}

// The k best of all words. every: [marked, V]. Grid: marked tokens, or more.
template <class W>
__global__ void __launch_bounds__(kSearchThreads)
    softmax_marked_best(SoftmaxSearch a, SoftmaxMarked marked, const W* every) {
  auto& s = shared_memory<BestShared<W>>();
  if (blockIdx.x >= marked.count()) return;
  const int64_t token = marked.token(blockIdx.x), V = a.tree.words;
  Best<W> best(s, a.k);
  best.take(V, [&](int64_t word, Found<W>& x) {
    x = {every[blockIdx.x * V + word], static_cast<int32_t>(word)};
    return best.hopeless(x) ? kNothing : kWord;
  });
  if (threadIdx.x == 0) a.rows[token] = a.n.R;
  if (threadIdx.x >= a.k) return;
  const int64_t to = token * a.k + threadIdx.x;
  static_cast<W*>(a.log_prob)[to] = best[threadIdx.x].log_p;
  a.words[to] = best[threadIdx.x].id;
}

}  // namespace cuda
}  // namespace fusedrnn
