// The recurrent product: rows of a state matrix times a weight matrix that was packed once, for all
// steps, into panels of a few vector registers' width.
//
//   C[b, g, j] = start[g, j] + sum_k A[b, k] * W[k, g, j]       g: one of N gates, j: a unit
//
// A: [B, K] row-major; C goes to an epilogue. A tile is a few rows by one panel: its accumulators
// stay in registers over the whole of K. Each element is one chain of fused multiply-adds in the
// order of k, a word (operand.h) at a time, whatever the tiling and the number of threads: same
// input, same bits.
#pragma once
#include <cstdlib>

#include "operand.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Memory that lives as long as one call, zero unless said otherwise. Not std::vector: its code
// would be shared between the instruction sets (see FRNN_ISA).
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t size, bool clear = true) {
    const size_t bytes = (size_t(size > 0 ? size : 1) * sizeof(A) + 63) / 64 * 64;
    data_ = static_cast<A*>(std::aligned_alloc(64, bytes));
    if (data_ && clear) std::memset(data_, 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  A* data_;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One thread's share of some work.
struct Worker {
  int index, count;
  // The part [first, last) of n equal tasks that is this worker's.
  int64_t first(int64_t n) const { return n * index / count; }
  int64_t last(int64_t n) const { return n * (index + 1) / count; }
  // Waits for the others, for those of other crews, and for those of the layer's other direction:
  // all have as many.
  void barrier() const {
    if (count == 1) return;
#pragma omp barrier
  }
};

// Workers who share rows [from, to) of the batch, which nobody else touches: they wait for one
// another in every step, and one who is alone waits for nobody. `crews` must divide all.count.
struct Crew : Worker {
  int64_t from, to;
  Crew(const Worker& all, int crews, int64_t rows)
      : Worker{all.index % (all.count / crews), all.count / crews} {
    const int64_t number = all.index / count, pairs = ceil_div(rows, 2);
    from = 2 * (pairs * number / crews);
    to = number + 1 == crews ? rows : 2 * (pairs * (number + 1) / crews);
  }
  // This worker's rows.
  int64_t first_row() const { return from + first(to - from); }
  int64_t last_row() const { return from + last(to - from); }
};

// How a weight matrix lies in memory: weight[output][k], as in y = x weight^T, or
// weight[k][output].
enum class Rows { outputs, inputs };

// W for `units` units of N gates. A panel holds all N gates of one to kUnits vectors of units, as
// [words of K][N][vectors of units][lanes]; panels are as equal as can be. Lanes beyond the last
// unit hold anything: no epilogue looks at them.
//
// For a single product (a step of decoding) the panels are packed as they are wanted, into one
// place for each thread that stays in its cache: the weights then pass through memory once.
template <class D, int N>
class Panels {
 public:
  using A = State<D>;
  using O = Operand<D>;
  using W = Word<O>;
  using Vec = typename Vector<W>::type;
  static constexpr int lanes = Vector<A>::lanes, depth = kDepth<O>, kUnits = N >= 3 ? 1 : 4 / N;
  static_assert(Vector<W>::lanes == lanes);

  const int64_t K, words, row;  // row: from one row of the operand to the next
  const int64_t units, vectors, count;

  // weight: [N * units, K], or [K, units] with Rows::inputs, where N is 1 and rows are `stride`
  // apart (0: units). bias: [N, units] or null.
  Panels(int64_t k, int64_t units_, Rows rows, const void* weight, const void* bias, int64_t uses,
         int threads, int64_t stride = 0)
      : K(k),
        words(ceil_div(K, depth)),
        row(words * depth),
        units(units_),
        vectors(ceil_div(units, lanes)),
        count(ceil_div(vectors, kUnits)),
        stride_(stride ? stride : units_),
        rows_(rows),
        weight_(static_cast<const D*>(weight)),
        bias_(static_cast<const D*>(bias)),
        once_(uses <= 1),
        data_(words * N * lanes * (once_ ? threads * kUnits : vectors), false),
        start_(N * vectors * lanes) {}

  explicit operator bool() const { return data_ && start_; }

  // The first vector of units of a panel.
  int64_t first(int64_t panel) const { return vectors * panel / count; }

  // This worker's share of what must be done before the first product, and a barrier.
  void prepare(const Worker& worker) {
    for (int64_t p = worker.first(count); p < worker.last(count); ++p) {
      if (!once_) pack(p, data(p));
      each_vector(p, [&](int g, int64_t j, int n, int64_t at) {
        A* out = start_.get() + first(p) * N * lanes + at;
        for (int l = 0; bias_ && l < n; ++l) out[l] = load(bias_[g * units + j + l]);
      });
    }
  }

  // For the worker of that number.
  const W* panel(int worker, int64_t p) const {
    if (!once_) return data(p);
    W* out = data_.get() + worker * kUnits * words * N * lanes;
    pack(p, out);
    return out;
  }

  // What the accumulators begin with.
  const A* start(int64_t p) const { return start_.get() + first(p) * N * lanes; }

 private:
  W* data(int64_t p) const { return data_.get() + first(p) * words * N * lanes; }

  // f(gate, first unit, units, where it begins in a row of the panel) for the vectors of panel p.
  template <class F>
  void each_vector(int64_t p, F f) const {
    const int64_t n = first(p + 1) - first(p);
    for (int64_t i = 0; i < N * n; ++i) {
      const int64_t j = (first(p) + i % n) * lanes;
      f(int(i / n), j, int(units - j < lanes ? units - j : lanes), i * lanes);
    }
  }

  void pack(int64_t p, W* panel) const {
    const int64_t stride = N * (first(p + 1) - first(p)) * lanes;
    each_vector(p, [&](int g, int64_t j, int n, int64_t at) {
      W* out = panel + at;
      if (rows_ == Rows::inputs)
        for (int64_t k = 0; k < K; k += depth, out += stride)
          put(words_across<O>(weight_ + k * stride_ + j, stride_, part(k, depth), n), out);
      else
        for (int64_t k = 0; k < K; k += lanes * depth, out += lanes * stride)
          pack_block(weight_ + (g * units + j) * K + k, n, part(k, lanes * depth), out, stride);
    });
  }

  // How many of `most` numbers from k on there are.
  int part(int64_t k, int most) const { return int(K - k < most ? K - k : most); }

  // The transpose of the words of weight[n][size], whose rows are K numbers apart.
  void pack_block(const D* weight, int n, int size, W* out, int64_t stride) const {
    Vec r[lanes];
    each<lanes>([&](auto l)
                    FRNN_INLINE { r[l] = words_along<O>(weight + (l < n ? l : 0) * K, size); });
    transpose<W>(r);
    if (size > (lanes - 1) * depth)
      each<lanes>([&](auto k) FRNN_INLINE { put(r[k], out + k * stride); });
    else
      for (int k = 0; k * depth < size; ++k) put(r[k], out + k * stride);
  }

  static FRNN_INLINE void put(Vec v, W* p) { std::memcpy(p, &v, sizeof(v)); }

  const int64_t stride_;
  const Rows rows_;
  const D *const weight_, *const bias_;
  const bool once_;
  Buffer<W> data_;
  Buffer<A> start_;
};

// What one tile reads: rows of A, and a panel (V vectors wide).
template <class O>
struct TileInput {
  const O* a;
  int64_t row, words;
  const Word<O>* panel;
  const State<O>* start;
};

template <int M, int V, class O>
inline void tile(const TileInput<O>& in, State<O>* c) {
  typedef typename Vector<State<O>>::type Vec;
  constexpr int lanes = Vector<State<O>>::lanes;
  Vec acc[M][V];
  each<V>([&](auto v) FRNN_INLINE {
    Vec s;
    std::memcpy(&s, in.start + v * lanes, kVectorBytes);
    each<M>([&](auto m) FRNN_INLINE { acc[m][v] = s; });
  });
  const O* a = in.a;
  const Word<O>* panel = in.panel;
  const int64_t row = in.row, words = in.words;
  for (int64_t k = 0; k < words; ++k) {
    typename Vector<Word<O>>::type w[V];
    each<V>([&](auto v)
                FRNN_INLINE { std::memcpy(&w[v], panel + (k * V + v) * lanes, kVectorBytes); });
    each<M>([&](auto m) FRNN_INLINE {
      const Word<O> word = word_of(a + m * row, k);
      each<V>([&](auto v) FRNN_INLINE { acc[m][v] = multiply_add(acc[m][v], word, w[v]); });
    });
  }
  // One by one: as a whole it would be copied out of memory again, by `rep movs`.
  each<M * V>([&](auto i)
                  FRNN_INLINE { std::memcpy(c + i * lanes, &acc[i / V][i % V], kVectorBytes); });
}

// Most rows of a tile of V vectors: as many accumulators as leave V registers for the weights and
// one for A; an even number, for the epilogue works on pairs.
constexpr int most_rows(int V) {
  const int rows = (kRegisters - 1 - V) / V / 2 * 2;
  return rows < 8 ? rows : 8;
}

template <int V, int M, class O>
inline void tile_of_rows(int rows, const TileInput<O>& in, State<O>* c) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of_rows<V, M - 1>(rows, in, c);
  }
  tile<M, V>(in, c);
}

template <int N, int U, int M, class O>
inline void tile_of_units(int units, int rows, const TileInput<O>& in, State<O>* c) {
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

// This worker's share of C = A W for its crew's rows: epilogue(Tile). A null A counts as zero. Row
// b starts at a + b * w.row. Tasks are ordered by panel, so that a worker meets the same weights
// every step. prepare(Tile) comes before a tile is computed.
template <int N, class D, class Prepare, class Epilogue>
inline void product(const Crew& crew, const Operand<D>* a, const Panels<D, N>& w, Prepare&& prepare,
                    Epilogue epilogue) {
  using A = State<D>;
  constexpr int U = Panels<D, N>::kUnits, M = most_rows(N * U);
  const int64_t B = crew.to - crew.from, pairs = ceil_div(B, 2), blocks = ceil_div(B, M);
  const int64_t begin = crew.first(w.count * blocks), end = crew.last(w.count * blocks);
  alignas(64) A c[M * N * U * Vector<A>::lanes];
  TileInput<Operand<D>> in{nullptr, w.row, w.words, nullptr, nullptr};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t panel = task / blocks, block = task % blocks;
    const int64_t r0 = 2 * (pairs * block / blocks), r1 = 2 * (pairs * (block + 1) / blocks);
    const int64_t b0 = crew.from + r0;
    const int rows = int((r1 < B ? r1 : B) - r0), units = int(w.first(panel + 1) - w.first(panel));
    const Tile<A> result{b0, w.first(panel), rows, units, c};
    prepare(result);
    if (a) {
      in.a = a + b0 * w.row;
      if (block == 0 || task == begin)
        in.panel = w.panel(crew.index, panel), in.start = w.start(panel);
      tile_of_units<N, U, M>(units, rows, in, c);
    } else {
      std::memset(c, 0, rows * N * units * kVectorBytes);
    }
    epilogue(result);
  }
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
