// The k best words so far, and open nodes, of one CTA: those whose words have not been looked at.
#pragma once
#include <cmath>

#include "../softmax.h"
#include "reduce.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kSearchThreads = 256;
constexpr int kOpen = 1024;  // nodes at a time
static_assert(kMostBest <= kSearchThreads, "a thread each");

// A word or a node with its log p; NaN counts as infinite, as in torch.topk.
template <class W>
struct Found {
  W log_p;
  int32_t id;

  __device__ W key() const { return log_p != log_p ? static_cast<W>(INFINITY) : log_p; }
  // Of equals the first.
  __device__ bool before(const Found& o) const {
    return key() > o.key() || (key() == o.key() && id < o.id);
  }
};

// What a candidate is: words in the low half, nodes in the high one, so that one sum counts both.
constexpr int32_t kNothing = 0, kWord = 1, kNode = 1 << 16;

template <class W>
struct BestShared {
  Found<W> best[kMostBest];  // in order
  Found<W> open[kOpen];
  Found<W> fresh[kSearchThreads];
  int32_t flags[kSearchThreads];
};

// Every thread has one and calls everything together with the others; k, kept and size are alike.
// `take` begins with a barrier: until then all may read what was there before.
template <class W>
class Best {
 public:
  __device__ Best(BestShared<W>& shared, int64_t k) : s(shared), k_(static_cast<int>(k)) {}

  __device__ int room() const { return kOpen - size_; }
  __device__ bool any_open() const { return size_ > 0; }
  __device__ bool complete() const { return kept_ == k_; }
  __device__ const Found<W>& operator[](int i) const { return s.best[i]; }
  __device__ bool hopeless(const Found<W>& x) const {
    return complete() && x.key() < s.best[k_ - 1].key();
  }

  // Takes what is not hopeless of n candidates: candidate(j, x) is what x is. There must be room
  // for the nodes.
  template <class F>
  __device__ void take(int64_t n, F candidate) {
    constexpr int kAtOnce = 4;  // for the most part there is nothing
    for (int64_t first = 0; first < n; first += kAtOnce * kSearchThreads) {
      bool some = false;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t j = first + i * kSearchThreads + threadIdx.x;
        Found<W> x;
        if (j < n && candidate(j, x) != kNothing) some = true;
      }
      if (!__syncthreads_or(some)) continue;
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t begin = first + i * kSearchThreads, j = begin + threadIdx.x;
        if (begin >= n) break;
        Found<W> x = {};
        const int32_t kind = j < n ? candidate(j, x) : kNothing;
        insert(kind, x, n - begin < kSearchThreads ? static_cast<int>(n - begin) : kSearchThreads);
      }
    }
  }

  // The place of the best open node; there is one.
  __device__ int first_open() {
    int mine = -1;
    for (int i = threadIdx.x; i < size_; i += kSearchThreads)
      if (mine < 0 || s.open[i].before(s.open[mine])) mine = i;
    return reduced(s.flags, mine, [&](int32_t a, int32_t b) {
      if (a < 0 || b < 0) return a < 0 ? b : a;
      return s.open[b].before(s.open[a]) ? b : a;
    });
  }
  __device__ Found<W> open(int at) const { return s.open[at]; }
  __device__ void close(int at) {
    __syncthreads();  // all have read it
    --size_;
    if (threadIdx.x == 0) s.open[at] = s.open[size_];
  }

  // Closes the hopeless ones, so that there is more room.
  __device__ void prune() {
    int to = 0;
    for (int first = 0; first < size_; first += kSearchThreads) {
      const int i = first + threadIdx.x;
      const Found<W> mine = s.open[i < size_ ? i : 0];
      const bool stays = i < size_ && !hopeless(mine);
      int32_t before, all;
      count(stays ? kNode : kNothing, kSearchThreads, before, all);
      if (stays) s.open[to + (before >> 16)] = mine;  // or further down than it was
      to += all >> 16;
      __syncthreads();
    }
    size_ = to;
  }

 private:
  // Of the first `limit` threads' kinds the sum, and of those before this one.
  __device__ void count(int32_t mine, int limit, int32_t& before, int32_t& all) {
    s.flags[threadIdx.x] = mine;
    __syncthreads();
    before = all = 0;
    for (int i = 0; i < limit; ++i) {
      const int32_t flag = s.flags[i];
      all += flag;
      if (i < static_cast<int>(threadIdx.x)) before += flag;
    }
  }

  // One candidate a thread, of the first `limit`. An entry's place is how many come before it.
  __device__ void insert(int32_t kind, const Found<W>& x, int limit) {
    int32_t before, all;
    count(kind, limit, before, all);
    if (kind == kNode) s.open[size_ + (before >> 16)] = x;
    size_ += all >> 16;
    const int words = all & 0xffff, me = threadIdx.x;
    if (words > 0) {
      if (kind == kWord) s.fresh[before & 0xffff] = x;
      __syncthreads();
      const Found<W> old = s.best[me < kept_ ? me : 0], young = s.fresh[me < words ? me : 0];
      int old_place = me, young_place = 0;
      for (int i = 0; i < words; ++i) {
        old_place += s.fresh[i].before(old);
        young_place += s.fresh[i].before(young);
      }
      for (int i = 0; i < kept_; ++i) young_place += s.best[i].before(young);
      __syncthreads();
      if (me < kept_ && old_place < k_) s.best[old_place] = old;
      if (me < words && young_place < k_) s.best[young_place] = young;
      kept_ = kept_ + words < k_ ? kept_ + words : k_;
    }
    __syncthreads();
  }

  BestShared<W>& s;
  int k_, kept_ = 0, size_ = 0;
};

}  // namespace cuda
}  // namespace fusedrnn
