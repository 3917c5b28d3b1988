// Tiles on their way from global memory through registers to shared memory.
#pragma once
#include "../plan.h"
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kThreads = StepwiseTile::kThreads, kRows = StepwiseTile::kRows;
constexpr int kUnits = StepwiseTile::kUnits;

#if !defined(FUSEDRNN_CUDA_HOST) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
#define FRNN_TENSOR_CORES
constexpr bool kTensorCores = true;
#else
constexpr bool kTensorCores = false;
#endif

template <class Data>
constexpr int kCtas = StepwiseTile::ctas_per_sm(sizeof(Data), kTensorCores && sizeof(Data) == 2);

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
  __device__ void deliver(Data (*tile)[kPitch]) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads, r = at / kAcross, c = at % kAcross * kPack;
      if (at < kAll) *reinterpret_cast<Pack<Data>*>(&tile[r][c]) = pack[i];
    }
  }
};

}  // namespace cuda
}  // namespace fusedrnn
