// The product inside every stepwise kernel:
//   sums[m, g, n] = sum over s, k of a_s[m, k] * w_s(g, n, k)
//
// A CTA of 128 threads owns kRows batch rows x kUnits units x all gates of these units, so that the
// gate maths can follow in the same launch. Tiles of depth kDepth go from global memory through
// registers (the next tile is on its way while this one is multiplied) to shared memory; there they
// are multiplied by tensor cores in 16 bits (product_mma.cuh), else by fused multiply-adds
// (product_fma.cuh). Where threads split k, their partial sums meet in shared memory, where they
// are added in the order of k. The order of every sum is fixed by the sizes alone: same input, same
// bits.
//
//   Weights::rows   w_s(g, n, k) = w_s[g * units + n, k]     forward: k is contiguous
//   Weights::cols   w_s(0, n, k) = w_s[k, n]                 backward: n is contiguous
//
// The tile's sizes are the planner's (csrc/plan.h).
#pragma once
#include <type_traits>

#include "product_fma.cuh"
#include "product_mma.cuh"

namespace fusedrnn {
namespace cuda {

enum class Weights { rows, cols };

// One term of the sum: a_s and w_s.
template <class Data>
struct Term {
  const Data* a;
  const Data* w;
};

// Which tile of [rows, units] this CTA owns.
struct Place {
  int64_t rows, units, row0, unit0;
};
__device__ inline Place place(int64_t rows, int64_t units) {
  const int64_t across = (units + kUnits - 1) / kUnits;
  return {rows, units, blockIdx.x / across * kRows, blockIdx.x % across * kUnits};
}

template <class Data, int kGates, Weights kWeights>
struct Product {
  static_assert(kGates >= 1 && (kWeights == Weights::rows || kGates == 1), "");
  using W = Wide<Data>;
  static constexpr bool kByRows = kWeights == Weights::rows;
  using Core = std::conditional_t<sizeof(Data) == 2, MmaProduct<Data, kGates, kByRows>,
                                  FmaProduct<Data, kGates, kByRows>>;
  static constexpr int kDepth = Core::kDepth, kSplits = Core::kSplits;

  union alignas(16) Shared {
    typename Core::Tiles tiles;
    W sums[kSplits][kGates][kRows][kUnits];
  };
  static_assert(sizeof(Shared) == StepwiseTile::shared(kGates, sizeof(Data), kByRows), "");

  // All threads of the CTA call it; afterwards all may read the sums.
  //   terms, term(s)   how many terms, and their matrices; no term at all gives zeros
  //   depth            the length of k in each term
  //   a_row, w_row     elements from one row of a and of w to the next
  template <class Source>
  static __device__ void run(Shared& shared, const Place& at, int terms, Source term, int64_t depth,
                             int64_t a_row, int64_t w_row) {
    Courier<Data, 1, kRows, kDepth> a;
    Courier<Data, kGates, Core::kTileRows / kGates, Core::kTileCols> w;
    int s = 0;       // term and ...
    int64_t k0 = 0;  // ... first k of the next tile to fetch
    const auto fetch_next = [&] {
      const Term<Data> m = term(s);
      const int64_t depth_left = depth - k0, units_left = at.units - at.unit0;
      a.fetch(m.a + at.row0 * a_row + k0, a_row, 0, at.rows - at.row0, depth_left);
      if (kByRows) {
        w.fetch(m.w + at.unit0 * w_row + k0, w_row, at.units * w_row, units_left, depth_left);
      } else {
        w.fetch(m.w + k0 * w_row + at.unit0, w_row, 0, depth_left, units_left);
      }
      k0 += kDepth;
      if (k0 >= depth) k0 = 0, ++s;
    };

    Core core;
    if (terms > 0) fetch_next();
    const int64_t count = terms * ((depth + kDepth - 1) / kDepth);
    for (int64_t i = 0; i < count; ++i) {
      __syncthreads();  // the previous tile has been read
      a.deliver(shared.tiles.a);
      w.deliver(shared.tiles.w);
      __syncthreads();
      if (s < terms) fetch_next();
      core.multiply(shared.tiles, at.rows - at.row0);
    }

    __syncthreads();
    core.deposit(shared.sums);
    __syncthreads();
  }

  // f(row, unit, sums) for each (row, unit) of this thread, neighbours in a warp being neighbours
  // in unit. sums[g] belongs to gate g.
  template <class F>
  static __device__ void each(const Shared& shared, const Place& at, F f) {
    for (int i = threadIdx.x; i < kRows * kUnits; i += kThreads) {
      const int m = i / kUnits, n = i % kUnits;
      if (at.row0 + m >= at.rows || at.unit0 + n >= at.units) continue;
      W sums[kGates];
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        sums[g] = shared.sums[0][g][m][n];
#pragma unroll
        for (int s = 1; s < kSplits; ++s) sums[g] += shared.sums[s][g][m][n];
      }
      f(at.row0 + m, at.unit0 + n, sums);
    }
  }
};

}  // namespace cuda
}  // namespace fusedrnn
