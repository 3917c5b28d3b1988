// The recurrent product: rows of a state matrix times a weight matrix that was packed once, for all
// steps, into panels of a few vector registers' width.
//
//   C[b, j] = sum_k A[b, k] * W[k, j]        A: [B, K] row-major; W: packed; C goes to an epilogue
//
// A tile is M rows by one panel of V vectors: M * V accumulators stay in registers over the whole
// of K. Each element is one chain of fused multiply-adds in the order of k, whatever the tiling and
// the number of threads: same input, same bits.
#pragma once
#include <cstdlib>
#include <type_traits>

#include "types.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class A>
struct Vector {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};

// Memory that lives as long as one call. Not std::vector: its code would be shared between the
// instruction sets (see FRNN_ISA).
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = (size_t(size > 0 ? size : 1) * sizeof(A) + 63) / 64 * 64;
    data_ = static_cast<A*>(std::aligned_alloc(64, bytes));
    if (data_) std::memset(data_, 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  A* data_;
};

// f(I), ..., f(N - 1), unrolled from the start: a plain loop over a cell's arrays is unrolled too
// late for GCC 12 to keep them in registers, and the loop over units around it then stays scalar.
template <int N, int I = 0, class F>
inline FRNN_INLINE void each(F&& f) {
  if constexpr (I < N) {
    f(std::integral_constant<int, I>{});
    each<N, I + 1>(f);
  }
}

// One thread's share of a call.
struct Worker {
  int index, count;
  // The part [first, last) of n equal tasks that is this worker's.
  int64_t first(int64_t n) const { return n * index / count; }
  int64_t last(int64_t n) const { return n * (index + 1) / count; }
};

// V vectors wide: 3 and 4 keep 6 to 8 rows of accumulators in AVX-512's registers.
template <class A, int V>
struct Panels {
  static constexpr int lanes = Vector<A>::lanes, width = V * lanes;
  // Rows of a tile: as many accumulators as leave V registers for the weights and one for A.
  static constexpr int rows = (kRegisters - V - 1) / V;

  int64_t K, count;
  Buffer<A> data;

  Panels(int64_t k, int64_t panels) : K(k), count(panels), data(k * panels * width) {}

  // value(k, panel, column) is W's element, or 0 beyond its edge.
  template <class F>
  void pack(const Worker& worker, F value) {
    for (int64_t p = worker.first(count); p < worker.last(count); ++p) {
      A* out = data.get() + p * K * width;
      for (int c = 0; c < width; ++c)
        for (int64_t k = 0; k < K; ++k) out[k * width + c] = value(k, p, c);
    }
  }
};

template <int M, int V, class A>
inline void tile(const A* a, int64_t stride, int64_t K, const A* panel, A* c) {
  typedef typename Vector<A>::type Vec;
  constexpr int lanes = Vector<A>::lanes;
  Vec acc[M][V] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec w[V];
    for (int v = 0; v < V; ++v) std::memcpy(&w[v], panel + (k * V + v) * lanes, kVectorBytes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] += a[m * stride + k] * w[v];
  }
  std::memcpy(c, acc, sizeof(acc));
}

template <int M, int V, class A>
inline void tile_of(int rows, const A* a, int64_t stride, int64_t K, const A* panel, A* c) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of<M - 1, V>(rows, a, stride, K, panel, c);
  }
  tile<M, V>(a, stride, K, panel, c);
}

// This worker's share of C = A W: epilogue(b, panel, c) gets one row of one panel, c[V * lanes].
// A null A counts as zero. Row b of A starts at a + b * K.
// Tasks are ordered by panel, so that a worker meets the same weights in every step.
template <int V, class A, class Epilogue>
inline void product(const Worker& worker, int64_t B, const A* a, const Panels<A, V>& w,
                    Epilogue epilogue) {
  constexpr int M = Panels<A, V>::rows;
  const int64_t blocks = (B + M - 1) / M;
  alignas(64) A c[M * V * Vector<A>::lanes];
  for (int64_t task = worker.first(w.count * blocks); task < worker.last(w.count * blocks);
       ++task) {
    const int64_t panel = task / blocks, block = task % blocks;
    const int64_t b0 = B * block / blocks, b1 = B * (block + 1) / blocks;
    const int rows = int(b1 - b0);
    if (a)
      tile_of<M, V>(rows, a + b0 * w.K, w.K, w.K, w.data.get() + panel * w.K * w.width, c);
    else
      std::memset(c, 0, rows * w.width * sizeof(A));
    for (int64_t b = b0; b < b1; ++b) epilogue(b, panel, c + (b - b0) * w.width);
  }
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
