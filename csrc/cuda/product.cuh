// The product inside every stepwise kernel:
//   sums[m, g, n] = sum over s, k of a_s[m, k] * w_s(g, n, k)
//
// A CTA of 128 threads owns kRows batch rows x kUnits units x all gates of these units, so that the
// gate maths can follow in the same launch. Plain FMA in the wide type; tiles of depth kDepth go
// from global memory through registers (the next tile is on its way while this one is multiplied)
// to shared memory. The order of every sum is fixed by the sizes alone: same input, same bits.
//
// A thread multiplies 4 rows by 4 (gate, unit) pairs per k: 8 loads from shared memory for 16
// products. With fewer gates than 4 it takes more units instead, and the threads that this frees
// split k; their partial sums meet in shared memory, where they are added in the order of k.
//
//   Weights::rows   w_s(g, n, k) = w_s[g * units + n, k]     forward: k is contiguous
//   Weights::cols   w_s(0, n, k) = w_s[k, n]                 backward: n is contiguous
//
// The tile is the planner's (csrc/plan.h).
#pragma once
#include "../plan.h"
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kThreads = StepwiseTile::kThreads, kRows = StepwiseTile::kRows;
constexpr int kUnits = StepwiseTile::kUnits, kDepth = StepwiseTile::kDepth;

template <class Data>
constexpr int kCtas = StepwiseTile::ctas_per_sm(sizeof(Wide<Data>));

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

// 16 bytes: one load, or one store.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// from[offset ..], of which only the first `count` exist; the rest is zero.
template <class Data>
__device__ inline void load_pack(Pack<Data>& to, const Data* from, int64_t offset, int64_t count,
                                 bool aligned) {
  if (aligned && count >= Pack<Data>::kSize) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from + offset);
    memcpy(&to, &raw, 16);
    return;
  }
#pragma unroll
  for (int i = 0; i < Pack<Data>::kSize; ++i) {
    to.v[i] = Data(0.0f);
    if (i < count) to.v[i] = from[offset + i];
  }
}

// This thread's share of a tile on its way to shared memory. The tile is kGroups matrices of
// [kGroupRows, kCols], one below the other.
template <class Data, int kGroups, int kGroupRows, int kCols>
struct Courier {
  static constexpr int kPack = Pack<Data>::kSize, kAcross = kCols / kPack;
  static constexpr int kAll = kGroups * kGroupRows * kAcross;
  static constexpr int kMine = (kAll + kThreads - 1) / kThreads;
  Pack<Data> pack[kMine];

  // from: the first element; row, group: elements from one to the next; rows, cols: how many there
  // are from here on, the tile's rest is zero.
  __device__ void fetch(const Data* from, int64_t row, int64_t group, int64_t rows, int64_t cols) {
    const bool aligned =
        (reinterpret_cast<uintptr_t>(from) | row * sizeof(Data) | group * sizeof(Data)) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads, r = at / kAcross, c = at % kAcross * kPack;
      const bool there = at < kAll && r % kGroupRows < rows;
      const int64_t offset = r / kGroupRows * group + r % kGroupRows * row + c;
      load_pack(pack[i], from, offset, there ? cols - c : 0, aligned);
    }
  }

  template <int kPitch>
  __device__ void deliver(Wide<Data> (*tile)[kPitch]) const {
    using To = Pack<Wide<Data>>;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads, r = at / kAcross, c = at % kAcross * kPack;
      if (at >= kAll) break;
#pragma unroll
      for (int j = 0; j < kPack; j += To::kSize) {
        To to;
#pragma unroll
        for (int l = 0; l < To::kSize; ++l) to.v[l] = widen(pack[i].v[j + l]);
        *reinterpret_cast<To*>(&tile[r][c + j]) = to;
      }
    }
  }
};

// Four consecutive values from shared memory.
template <class W>
__device__ inline void load4(W (&to)[4], const W* p) {
#pragma unroll
  for (int i = 0; i < 4; i += Pack<W>::kSize) {
    const Pack<W> pack = *reinterpret_cast<const Pack<W>*>(p + i);
#pragma unroll
    for (int j = 0; j < Pack<W>::kSize; ++j) to[i + j] = pack.v[j];
  }
}

template <class Data, int kGates, Weights kWeights>
struct Product {
  static_assert(kGates >= 1 && (kWeights == Weights::rows || kGates == 1), "");
  using W = Wide<Data>;
  static constexpr bool kByRows = kWeights == Weights::rows;
  static constexpr int kMyRows = 4, kMyUnits = kGates == 1 ? 4 : kGates == 2 ? 2 : 1;
  static constexpr int kRowThreads = kRows / kMyRows, kUnitThreads = kUnits / kMyUnits;
  static constexpr int kSplits = kThreads / (kRowThreads * kUnitThreads);  // = kMyUnits
  static constexpr int kMine = kGates * kMyUnits;  // (gate, unit) pairs of a thread
  static constexpr int kTileRows = kByRows ? kGates * kUnits : kDepth;  // of the weights
  static constexpr int kTileCols = kByRows ? kDepth : kUnits;
  // 16 bytes more than a row: eight threads that read eight rows then meet 32 different banks.
  static constexpr int kPad = Pack<W>::kSize;

  struct Tiles {
    W a[kRows][kDepth + kPad];
    W w[kTileRows][kTileCols + (kByRows ? kPad : 0)];
  };
  union alignas(16) Shared {
    Tiles tiles;
    W sums[kSplits][kGates][kRows][kUnits];
  };
  static_assert(sizeof(Shared) == StepwiseTile::shared(kGates, sizeof(W), kByRows), "");

  // Threads of a warp differ in rows and units, warps also in their share of k.
  static __device__ int my_split() { return threadIdx.x / (kRowThreads * kUnitThreads); }
  static __device__ int my_row(int i) {
    return threadIdx.x / kUnitThreads % kRowThreads + i * kRowThreads;
  }
  static __device__ int my_unit(int j) {
    const int first = threadIdx.x % kUnitThreads;
    return kByRows ? first + j * kUnitThreads : first * kMyUnits + j;
  }

  static __device__ void multiply(W (&acc)[kMyRows][kMine], const Tiles& tiles) {
    constexpr int kShare = kDepth / kSplits;
#pragma unroll 2
    for (int k = my_split() * kShare, end = k + kShare; k < end; k += 4) {
      W a[kMyRows][4], w[kMine][4];
#pragma unroll
      for (int i = 0; i < kMyRows; ++i) load4(a[i], &tiles.a[my_row(i)][k]);
      if (kByRows) {
#pragma unroll
        for (int j = 0; j < kMine; ++j) {
          load4(w[j], &tiles.w[j / kMyUnits * kUnits + my_unit(j % kMyUnits)][k]);
        }
      } else {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          W across[4];
          load4(across, &tiles.w[k + q][my_unit(0)]);
#pragma unroll
          for (int j = 0; j < kMine; ++j) w[j][q] = across[j];
        }
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int i = 0; i < kMyRows; ++i) {
#pragma unroll
          for (int j = 0; j < kMine; ++j) acc[i][j] += a[i][q] * w[j][q];
        }
      }
    }
  }

  // All threads of the CTA call it; afterwards all may read the sums.
  //   terms, term(s)   how many terms, and their matrices; no term at all gives zeros
  //   depth            the length of k in each term
  //   a_row, w_row     elements from one row of a and of w to the next
  template <class Source>
  static __device__ void run(Shared& shared, const Place& at, int terms, Source term, int64_t depth,
                             int64_t a_row, int64_t w_row) {
    Courier<Data, 1, kRows, kDepth> a;
    Courier<Data, kGates, kTileRows / kGates, kTileCols> w;
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

    W acc[kMyRows][kMine] = {};
    if (terms > 0) fetch_next();
    const int64_t count = terms * ((depth + kDepth - 1) / kDepth);
    for (int64_t i = 0; i < count; ++i) {
      __syncthreads();  // the previous tile has been read
      a.deliver(shared.tiles.a);
      w.deliver(shared.tiles.w);
      __syncthreads();
      if (s < terms) fetch_next();
      multiply(acc, shared.tiles);
    }

    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMyRows; ++i) {
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        shared.sums[my_split()][j / kMyUnits][my_row(i)][my_unit(j % kMyUnits)] = acc[i][j];
      }
    }
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
