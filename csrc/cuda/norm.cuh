// Layer normalisation (Ba et al. 2016) of a row, (v - mean) / sqrt(variance + eps), by a CTA that
// owns the whole row: what forward and backward share. Sums run in an order that the row's length
// fixes.
#pragma once
#include <cmath>

#include "reduce.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

// Threads of a CTA, and CTAs that an SM must be able to hold: 128 registers a thread, 255 in
// double.
constexpr int kRowThreads = StepwiseTile::kRowThreads;
template <class Data>
constexpr int kRowCtas = sizeof(Data) == 8 ? 1 : 2;

template <class W>
struct Two {
  W a, b;
};

template <class W>
struct RowShared {
  W sums[kRowThreads];
  Two<W> pairs[kRowThreads];
};

template <class W>
struct Moments {
  W mean, inverse;  // inverse: 1 / sqrt(variance + eps)
  __device__ W normal(W v) const { return (v - mean) * inverse; }
};

// Of row[0 .. n): the mean, and in a second pass the variance. All threads of the CTA call it.
template <class W, class E>
__device__ inline Moments<W> moments(RowShared<W>& shared, const E* row, int64_t n) {
  using std::sqrt;
  const auto mean_of = [&](auto f) {
    W mine = 0;
    for (int64_t i = threadIdx.x; i < n; i += kRowThreads) mine += f(widen(row[i]));
    return reduced(shared.sums, mine, [](W a, W b) { return a + b; }) / W(n);
  };
  const W mean = mean_of([](W v) { return v; });
  const W variance = mean_of([=](W v) { return (v - mean) * (v - mean); });
  return {mean, W(1) / sqrt(variance + W(kNormEps))};
}

// Backward: the gradient of a row from that of the normalised one. Each thread adds its share of
// dn, and of dn * n; after close, which all threads of the CTA call, `through` has the means.
template <class W>
struct RowGradient {
  W mean = 0, with = 0;

  __device__ void add(W dn, W n) { mean += dn, with += dn * n; }
  __device__ void close(RowShared<W>& shared, int64_t count) {
    const auto sum = [](Two<W> x, Two<W> y) { return Two<W>{x.a + y.a, x.b + y.b}; };
    const Two<W> all = reduced(shared.pairs, Two<W>{mean, with}, sum);
    mean = all.a / W(count), with = all.b / W(count);
  }
  __device__ W through(W dn, W n, W inverse) const { return (dn - mean - n * with) * inverse; }
};

// weight_unit's rows after the cell's own: the gain of each gate; gain and bias of c.
template <class Cell, class Data>
struct NormWeights {
  const Data* rows;
  int64_t H;

  template <class Args>
  __device__ explicit NormWeights(const Args& p)
      : rows(static_cast<const Data*>(p.weight_unit) + Cell::weights(p.n.options) * p.n.H),
        H(p.n.H) {}
  // The last of the cell's own, where it has peepholes.
  __device__ Wide<Data> output_peephole(int64_t unit) const { return gain(-1, unit); }
  __device__ Wide<Data> gain(int gate, int64_t unit) const { return widen(rows[gate * H + unit]); }
  __device__ Wide<Data> gain_c(int64_t unit) const { return gain(Cell::kGates, unit); }
  __device__ Wide<Data> bias_c(int64_t unit) const { return gain(Cell::kGates + 1, unit); }
};

}  // namespace cuda
}  // namespace fusedrnn
