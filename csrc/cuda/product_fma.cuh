// The product of a tile in float and double: fused multiply-adds.
//
// A thread multiplies 4 rows by 4 (gate, unit) pairs per k: 8 loads from shared memory for 16
// products. With fewer gates than 4 it takes more units instead, and the threads that this frees
// split k.
#pragma once
#include "tile.cuh"

namespace fusedrnn {
namespace cuda {

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

template <class Data, int kGates, bool kByRows>
struct FmaProduct {
  static constexpr int kDepth = StepwiseTile::depth(kGates, sizeof(Data));
  static constexpr int kMyRows = 4, kMyUnits = kGates == 1 ? 4 : kGates == 2 ? 2 : 1;
  static constexpr int kRowThreads = kRows / kMyRows, kUnitThreads = kUnits / kMyUnits;
  static constexpr int kSplits = kThreads / (kRowThreads * kUnitThreads);  // = kMyUnits
  static constexpr int kMine = kGates * kMyUnits;  // (gate, unit) pairs of a thread
  // 16 bytes more than a row: eight threads that read eight rows then meet 32 different banks.
  static constexpr int kPad = Pack<Data>::kSize;
  static constexpr int kTileRows = kByRows ? kGates * kUnits : kDepth;  // of the weights
  static constexpr int kTileCols = kByRows ? kDepth : kUnits;

  struct Tiles {
    Data a[kRows][kDepth + kPad];
    Data w[kTileRows][kTileCols + (kByRows ? kPad : 0)];
  };
  Data acc[kMyRows][kMine] = {};

  // Threads of a warp differ in rows and units, warps also in their share of k.
  static __device__ int my_split() { return threadIdx.x / (kRowThreads * kUnitThreads); }
  static __device__ int my_row(int i) {
    return threadIdx.x / kUnitThreads % kRowThreads + i * kRowThreads;
  }
  static __device__ int my_unit(int j) {
    const int first = threadIdx.x % kUnitThreads;
    return kByRows ? first + j * kUnitThreads : first * kMyUnits + j;
  }

  __device__ void multiply(const Tiles& tiles, int64_t) {
    constexpr int kShare = kDepth / kSplits;
#pragma unroll 2
    for (int k = my_split() * kShare, end = k + kShare; k < end; k += 4) {
      Data a[kMyRows][4], w[kMine][4];
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
          Data across[4];
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

  __device__ void deposit(Data (&sums)[kSplits][kGates][kRows][kUnits]) const {
#pragma unroll
    for (int i = 0; i < kMyRows; ++i) {
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        sums[my_split()][j / kMyUnits][my_row(i)][my_unit(j % kMyUnits)] = acc[i][j];
      }
    }
  }
};

}  // namespace cuda
}  // namespace fusedrnn
