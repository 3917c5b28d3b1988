// Products of matrices (matrix.h). Few rows of A meet B as a single step of the recurrence meets
// W_hh: workers share B's columns, and pack each panel as they come to it. Of more rows each worker
// has its own; all share B's panels, which are packed for a part of K at a time. What is in the
// caches meanwhile: a few rows of A, kChunk at most, and the part of a panel that meets them, kPart
// numbers deep. Each element of C is a sum of parts of K in their order, and a part is one chain in
// the order of k: same input, same bits, whatever the number of threads.
#include "matrix.h"

#include <omp.h>

#include "ahead.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Of K: packed at a time, and of that a tile takes kPart: 64 columns of it are 128 KB of float, an
// eighth of L2.
constexpr int64_t kPacked = 2048, kPart = 512;
// Rows of A: 96 x 512 are 192 KB of float, and 16 tiles of six.
constexpr int64_t kChunk = 96;
// Multiply-adds for which it pays to wake another thread, about 20 us: on a busy machine it may
// come milliseconds later, and a sequence of few rows needs no other anywhere.
constexpr int64_t kProductPerThread = int64_t(1) << 20;

constexpr const char* kNoMemory = "out of memory for a product of matrices";

template <class D>
class Product {
  static constexpr int lanes = Vector<D>::lanes, U = Panels<D, 1>::kUnits, R = most_rows(U);

 public:
  explicit Product(const MatrixProduct& product) : p(product) {}

  const char* run(int threads) {
    const bool few = p.M <= kChunk && p.b_transposed && !p.a_transposed && p.a_row == p.K && !p.add;
    return few ? few_rows(threads) : many_rows(threads);
  }

 private:
  const char* few_rows(int threads) const {
    Panels<D, 1> panels(p.K, p.N, Rows::outputs, p.b, p.bias, 1, threads);
    if (!panels) return kNoMemory;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const Worker worker{omp_get_thread_num(), omp_get_num_threads()};
      panels.prepare(worker);
      worker.barrier();
      // The rows of B that are packed next, a share with each tile.
      const int64_t tiles = ceil_div(p.M, R), panel = U * lanes * p.K;
      Ahead next;
      const auto fetch = [&](const Tile<D>& tile) {
        const int64_t after = (tile.first + tile.vectors) * lanes * p.K, all = p.N * p.K;
        const int64_t size = (after + panel < all ? after + panel : all) - after;
        if (tile.b == 0) next = Ahead(static_cast<const D*>(p.b) + after, 1, size * sizeof(D), 0);
        next.fetch(panel * sizeof(D) / tiles + 64);
        announce(tile.rows, tile.vectors, c_at(tile.b, tile.first));
      };
      product(Crew(worker, 1, p.M), static_cast<const D*>(p.a), panels, fetch,
              [&](const Tile<D>& tile) {
                leave(tile.c, tile.rows, tile.vectors, p.N - tile.first * lanes, false,
                      c_at(tile.b, tile.first));
              });
    }
    return nullptr;
  }

  const char* many_rows(int threads) const {
    const int64_t deep = p.b_transposed ? p.K : kPacked;
    for (int64_t k = 0; k < p.K; k += deep) {
      const int64_t size = p.K - k < deep ? p.K - k : deep;
      const Rows rows = p.b_transposed ? Rows::outputs : Rows::inputs;
      const D* b = static_cast<const D*>(p.b) + k * p.b_row * !p.b_transposed;
      Panels<D, 1> panels(size, p.N, rows, b, k == 0 ? p.bias : nullptr, 2, threads, p.b_row);
      const Buffer<D> turned(p.a_transposed ? threads * kChunk * size : 0, false);
      if (!panels || !turned) return kNoMemory;
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
        const Worker worker{omp_get_thread_num(), omp_get_num_threads()};
        panels.prepare(worker);
        worker.barrier();
        D* own = turned.get() + worker.index * kChunk * size * p.a_transposed;
        // In pairs of rows, as that is what a tile has at least.
        const int64_t pairs = ceil_div(p.M, 2);
        const int64_t end = 2 * worker.last(pairs) < p.M ? 2 * worker.last(pairs) : p.M;
        const auto rows = [=](int64_t m) {
          return m >= end ? 0 : end - m < kChunk ? end - m : kChunk;
        };
        for (int64_t m = 2 * worker.first(pairs); m < end; m += kChunk) {
          const int64_t next = m + kChunk;
          rows_of(m, rows(m), k, panels, own, part_of_a(next, rows(next), k, size));
        }
      }
    }
    return nullptr;
  }

  D* c_at(int64_t row, int64_t vector) const {
    return static_cast<D*>(p.c) + row * p.c_row + vector * lanes;
  }

  // Asks for what a tile will write: few rows against 50,000 of 8 numbers wait for little else.
  void announce(int rows, int vectors, const D* out) const {
    for (int r = 0; r < rows; ++r, out += p.c_row)
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(out + v * lanes, 1);
  }

  // Where A meets rows m .. of C and k .. of B.
  const D* a_at(int64_t m, int64_t k) const {
    return static_cast<const D*>(p.a) + (p.a_transposed ? k * p.a_row + m : m * p.a_row + k);
  }
  Ahead part_of_a(int64_t m, int64_t rows, int64_t k, int64_t size) const {
    if (rows == 0) return {};
    const int64_t line = (p.a_transposed ? rows : size) * sizeof(D);
    return {a_at(m, k), p.a_transposed ? size : rows, line, p.a_row * int64_t(sizeof(D))};
  }

  // Rows m .. m + n - 1 of C, with the panels' part of K, from k on; meanwhile asks for `next`.
  void rows_of(int64_t m, int64_t n, int64_t k, const Panels<D, 1>& panels, D* turned,
               Ahead next) const {
    const D* a = a_at(m, k);
    int64_t row = p.a_row;
    if (p.a_transposed) {
      row = panels.K;
      turn(a, n, panels.K, turned);
      a = turned;
    }
    const int64_t blocks = ceil_div(n, R),
                  tiles = ceil_div(panels.K, kPart) * panels.count * blocks;
    const int64_t share = kChunk * panels.K * int64_t(sizeof(D)) / tiles + 64;
    for (int64_t part = 0; part < panels.K; part += kPart) {
      const int64_t deep = panels.K - part < kPart ? panels.K - part : kPart;
      const bool add = p.add || k + part > 0;
      for (int64_t panel = 0; panel < panels.count; ++panel) {
        const int64_t first = panels.first(panel);
        const int vectors = int(panels.first(panel + 1) - first);
        const D* weights = panels.panel(0, panel) + part * vectors * lanes;
        const D* start = part == 0 ? panels.start(panel) : zeros;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t from = n * block / blocks, to = n * (block + 1) / blocks;
          D* out = c_at(m + from, first);
          next.fetch(share);
          announce(int(to - from), vectors, out);
          const TileInput<D> in{a + from * row + part, row, deep, weights, start};
          alignas(64) D c[R * U * lanes];
          tile_of_units<1, U, R>(vectors, int(to - from), in, c);
          leave(c, int(to - from), vectors, p.N - first * lanes, add, out);
        }
      }
    }
  }

  void leave(const D* c, int rows, int vectors, int64_t columns, bool add, D* out) const {
    for (int r = 0; r < rows; ++r, out += p.c_row)
      for (int v = 0; v < vectors; ++v, c += lanes) {
        const int n = int(columns - v * lanes < lanes ? columns - v * lanes : lanes);
        auto sum = load_vector(c, lanes);
        if (add) sum += load_vector(out + v * lanes, n);
        store_vector(out + v * lanes, n, sum);
      }
  }

  // out[m, k] = a[k, m], for n rows of out.
  void turn(const D* a, int64_t n, int64_t K, D* out) const {
    for (int64_t k = 0; k < K; k += lanes) {
      const int deep = int(K - k < lanes ? K - k : lanes);
      for (int64_t m = 0; m < n; m += lanes) {
        const int wide = int(n - m < lanes ? n - m : lanes);
        typename Vector<D>::type r[lanes];
        each<lanes>([&](auto l) FRNN_INLINE {
          r[l] = load_vector(a + (k + (l < deep ? l : 0)) * p.a_row + m, wide);
        });
        transpose<D>(r);
        for (int l = 0; l < wide; ++l) store_vector(out + (m + l) * K + k, deep, r[l]);
      }
    }
  }

  static inline const D zeros[U * lanes] = {};
  const MatrixProduct& p;
};

const char* run_matrix_product(const MatrixProduct& p) {
  const int64_t most = p.M * p.N * p.K / kProductPerThread;
  const int threads = int(most < 1 ? 1 : most < p.threads ? most : p.threads);
  return p.dtype == DType::f64 ? Product<double>(p).run(threads) : Product<float>(p).run(threads);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
