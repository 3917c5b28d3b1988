// The recurrent product: rows of a state matrix times a weight matrix that was packed once, for all
// steps, into panels of a few vector registers' width.
//
//   C[b, g, j] = start[g, j] + sum_k A[b, k] * W[k, g, j]       g: one of N gates, j: a unit
//
// A: [B, K] row-major; C goes to an epilogue. A tile is a few rows by one panel: its accumulators
// stay in registers over the whole of K. Each element is one chain of fused multiply-adds in the
// order of k, whatever the tiling and the number of threads: same input, same bits.
#pragma once
#include <cstdlib>

#include "lanes.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

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

// One thread's share of a call.
struct Worker {
  int index, count;
  // The part [first, last) of n equal tasks that is this worker's.
  int64_t first(int64_t n) const { return n * index / count; }
  int64_t last(int64_t n) const { return n * (index + 1) / count; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// W for `units` units of N gates. A panel holds all N gates of one to kUnits vectors of units, as
// [K][N][vectors of units][lanes]; panels are as equal as can be. Beyond the last unit are zeros.
template <class A, int N>
struct Panels {
  static constexpr int lanes = Vector<A>::lanes, kUnits = N >= 3 ? 1 : 4 / N, kDepth = 8;

  int64_t K, units, vectors, count;
  Buffer<A> data, start;

  Panels(int64_t k, int64_t units_)
      : K(k),
        units(k ? units_ : 0),
        vectors(ceil_div(units, lanes)),
        count(ceil_div(vectors, kUnits)),
        data(K * N * vectors * lanes),
        start(N * vectors * lanes) {}

  explicit operator bool() const { return data && start; }

  // The first vector of units of a panel.
  int64_t first(int64_t panel) const { return vectors * panel / count; }
  A* panel_data(int64_t panel) const { return data.get() + first(panel) * K * N * lanes; }
  A* panel_start(int64_t panel) const { return start.get() + first(panel) * N * lanes; }

  // W[k, g, j] = weight[(g * units + j) * K + k]: rows of outputs, as in y = x weight^T. bias is
  // [N, units], or null.
  template <class D>
  void pack_transposed(const Worker& worker, const D* weight, const D* bias) {
    each_vector(worker, [&](int g, int64_t j, int n, A* out, int64_t stride, A* start_of) {
      const D* rows = weight + (g * units + j) * K;
      int64_t k = 0;
      for (; k + kDepth <= K; k += kDepth)  // blocks that stay in the first cache
        for (int l = 0; l < n; ++l)
          for (int i = 0; i < kDepth; ++i) out[(k + i) * stride + l] = load(rows[l * K + k + i]);
      for (; k < K; ++k)
        for (int l = 0; l < n; ++l) out[k * stride + l] = load(rows[l * K + k]);
      for (int l = 0; bias && l < n; ++l) start_of[l] = load(bias[g * units + j + l]);
    });
  }

  // W[k, 0, j] = weight[k * units + j], as in y = x weight.
  template <class D>
  void pack(const Worker& worker, const D* weight) {
    static_assert(N == 1);
    each_vector(worker, [&](int, int64_t j, int n, A* out, int64_t stride, A*) {
      for (int64_t k = 0; k < K; ++k) {
        const auto v = load_vector(weight + k * units + j, n);
        std::memcpy(out + k * stride, &v, sizeof(v));
      }
    });
  }

 private:
  // f(gate, first unit, units, where in data, elements from k to k + 1, where in start) for the
  // vectors of this worker's panels.
  template <class F>
  void each_vector(const Worker& worker, F f) {
    for (int64_t p = worker.first(count); p < worker.last(count); ++p) {
      const int64_t n = first(p + 1) - first(p);
      for (int64_t i = 0; i < N * n; ++i) {
        const int64_t j = (first(p) + i % n) * lanes;
        f(int(i / n), j, int(units - j < lanes ? units - j : lanes), panel_data(p) + i * lanes,
          N * n * lanes, panel_start(p) + i * lanes);
      }
    }
  }
};

// What one tile reads: rows of A, a panel (V vectors wide), and the panel that will be wanted next.
template <class A>
struct TileInput {
  const A* a;
  int64_t stride, K;
  const A *panel, *start, *next;
};

template <int M, int V, class A>
inline void tile(const TileInput<A>& in, A* c) {
  typedef typename Vector<A>::type Vec;
  constexpr int lanes = Vector<A>::lanes;
  Vec acc[M][V];
  for (int v = 0; v < V; ++v) {
    Vec s;
    std::memcpy(&s, in.start + v * lanes, kVectorBytes);
    for (int m = 0; m < M; ++m) acc[m][v] = s;
  }
  const A *a = in.a, *panel = in.panel;
  const int64_t stride = in.stride, K = in.K;
  for (int64_t k = 0; k < K; ++k) {
    Vec w[V];
    for (int v = 0; v < V; ++v) std::memcpy(&w[v], panel + (k * V + v) * lanes, kVectorBytes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] += a[m * stride + k] * w[v];
  }
  std::memcpy(c, acc, sizeof(acc));
}

// Most rows of a tile of V vectors: as many accumulators as leave V registers for the weights and
// one for A; an even number, for the epilogue works on pairs.
constexpr int most_rows(int V) {
  const int rows = (kRegisters - 1 - V) / V / 2 * 2;
  return rows < 8 ? rows : 8;
}

template <int V, int M, class A>
inline void tile_of_rows(int rows, const TileInput<A>& in, A* c) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of_rows<V, M - 1>(rows, in, c);
  }
  tile<M, V>(in, c);
}

template <int N, int U, int M, class A>
inline void tile_of_units(int units, int rows, const TileInput<A>& in, A* c) {
  if constexpr (U > 1) {
    if (units < U) return tile_of_units<N, U - 1, M>(units, rows, in, c);
  }
  tile_of_rows<N * U, M>(rows, in, c);
}

// One tile's result: rows [b, b + rows) of `vectors` vectors of units from `first` on, as
// [rows][N][vectors][lanes].
template <class A>
struct Tile {
  int64_t b, first;
  int rows, vectors;
  const A* c;
};

// This worker's share of C = A W: epilogue(Tile). A null A counts as zero. Row b starts at
// a + b * stride. Tasks are ordered by panel, so that a worker meets the same weights every step.
// prepare(Tile) comes before a tile is computed, to prefetch what its epilogue will touch: rows lie
// too far apart for the hardware to foresee them.
template <int N, class A, class Prepare, class Epilogue>
inline void product(const Worker& worker, int64_t B, const A* a, int64_t stride,
                    const Panels<A, N>& w, Prepare prepare, Epilogue epilogue) {
  constexpr int U = Panels<A, N>::kUnits, M = most_rows(N * U);
  const int64_t pairs = ceil_div(B, 2), blocks = ceil_div(B, M);
  const int64_t end = worker.last(w.count * blocks);
  alignas(64) A c[M * N * U * Vector<A>::lanes];
  for (int64_t task = worker.first(w.count * blocks); task < end; ++task) {
    const int64_t panel = task / blocks, block = task % blocks;
    const int64_t b0 = 2 * (pairs * block / blocks), b1 = 2 * (pairs * (block + 1) / blocks);
    const int rows = int((b1 < B ? b1 : B) - b0), units = int(w.first(panel + 1) - w.first(panel));
    const Tile<A> result{b0, w.first(panel), rows, units, c};
    prepare(result);
    if (a) {
      const TileInput<A> in{a + b0 * stride,
                            stride,
                            w.K,
                            w.panel_data(panel),
                            w.panel_start(panel),
                            w.panel_data(panel + 1 < w.count ? panel + 1 : 0)};
      tile_of_units<N, U, M>(units, rows, in, c);
    } else {
      std::memset(c, 0, rows * N * units * kVectorBytes);
    }
    epilogue(result);
  }
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
