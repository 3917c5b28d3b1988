// The product inside every softmax kernel:
//   sums[m, n] = sum over k of a[m, k] w(n, k)      m < 32, n < 64
//
// As product.cuh: 128 threads, tiles of depth kDepth go from global memory through registers (the
// next tile is on its way while this one is multiplied) to shared memory, where tensor cores
// multiply them in 16 bits, else fused multiply-adds. Rows are gathered: of tokens in sorted order,
// and of weights of the nodes that tokens meet. One order of sums: same input, same bits.
//
//   kByRows    w is [64, k]      forward: k is contiguous
//   else       w is [k, 64]      backward: n is contiguous
#pragma once
#include <type_traits>

#include "product_fma.cuh"
#include "product_mma.cuh"
#include "softmax_rows.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kColumns = 64;

// CTAs that an SM must be able to hold: 168 registers a thread, 255 in double.
template <class Data>
constexpr int kProductCtas = sizeof(Data) == 8 ? 2 : 3;

template <class Data, bool kByRows>
struct SoftmaxTiles {
  // Backward computes the values of a one by one: more of them would not fit into registers.
  static constexpr int kDepth = sizeof(Data) == 2 && !kByRows ? 32 : 128 / sizeof(Data);
  static constexpr int kPad = Pack<Data>::kSize;  // eight rows meet 32 different banks
  static constexpr int kTileRows = kByRows ? kColumns : kDepth;  // of w
  static constexpr int kTileCols = kByRows ? kDepth : kColumns;
  Data a[kBlock][kDepth + kPad];
  Data w[kTileRows][kTileCols + kPad];
};

// A thread multiplies 4 by 4 per k.
template <class Data, bool kByRows>
struct SoftmaxFma {
  using Tiles = SoftmaxTiles<Data, kByRows>;
  Data acc[4][4] = {};

  static __device__ int my_row(int i) { return threadIdx.x / 16 + i * 8; }
  static __device__ int my_column(int j) {
    const int first = threadIdx.x % 16;
    return kByRows ? first + j * 16 : first * 4 + j;
  }

  __device__ void multiply(const Tiles& tiles) {
#pragma unroll 2
    for (int k = 0; k < Tiles::kDepth; k += 4) {
      Data a[4][4], w[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load4(a[i], &tiles.a[my_row(i)][k]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (kByRows) {
          load4(w[j], &tiles.w[my_column(j)][k]);
        } else {
          Data across[4];
          load4(across, &tiles.w[k + j][my_column(0)]);
#pragma unroll
          for (int c = 0; c < 4; ++c) w[c][j] = across[c];
        }
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[i][j] += a[i][q] * w[j][q];
        }
      }
    }
  }

  template <class F>
  __device__ void each_mine(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) f(my_row(i), my_column(j), acc[i][j]);
    }
  }
};

// A warp has 16 columns and all rows.
template <class Data, bool kByRows>
struct SoftmaxMma {
  using Tiles = SoftmaxTiles<Data, kByRows>;
  float acc[kBlock / 8][4] = {};

  __device__ void multiply(const Tiles& tiles) {
    const int column = threadIdx.x / 32 * 16;
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; k += 16) {
      const auto w_row = [&](int lane) {
        const int quarter = column + lane / 8 % 2 * 8, half = k + lane / 16 * 8, r = lane % 8;
        return kByRows ? &tiles.w[quarter + r][half] : &tiles.w[half + r][quarter];
      };
      const auto a_row = [&](int pair, int lane) {
        return &tiles.a[pair * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8];
      };
      warp_product<Data, !kByRows>(acc, kBlock / 8, w_row, a_row);
    }
  }

  template <class F>
  __device__ void each_mine(F f) const {
    const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16;
#pragma unroll
    for (int n = 0; n < kBlock / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        f(n * 8 + lane % 4 * 2 + i % 2, column + lane / 4 + i / 2 * 8, acc[n][i]);
    }
  }
};

// This thread's share of a tile whose rows are gathered.
template <class Data, int kTileRows, int kTileCols>
struct GatherCourier {
  static constexpr int kPack = Pack<Data>::kSize, kAcross = kTileCols / kPack;
  static constexpr int kMine = kTileRows * kAcross / kThreads;
  static_assert(kMine * kThreads == kTileRows * kAcross, "");
  Pack<Data> pack[kMine];

  // row(r): from where the tile's row r is read, of which `columns` exist; null: it is zero.
  template <class Row>
  __device__ void fetch(Row row, int64_t columns, bool aligned) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads, c = at % kAcross * kPack;
      const Data* from = row(at / kAcross);
      load_pack(pack[i], from, c, from == nullptr ? 0 : columns - c, aligned);
    }
  }

  template <int kPitch>
  __device__ void deliver(Data (&tile)[kTileRows][kPitch]) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads;
      *reinterpret_cast<Pack<Data>*>(&tile[at / kAcross][at % kAcross * kPack]) = pack[i];
    }
  }
};

// This thread's share of a tile [kBlock, kDepth] whose values are computed one by one, neighbours
// in a warp being neighbours in k or in the row.
template <class Data, int kDepth, bool kAlongRows>
struct ValueCourier {
  static constexpr int kMine = kBlock * kDepth / kThreads;
  Data value[kMine];

  static __device__ int my_row(int at) { return kAlongRows ? at % kBlock : at / kDepth; }
  static __device__ int my_k(int at) { return kAlongRows ? at / kBlock : at % kDepth; }

  template <class F>
  __device__ void fetch(F f) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads;
      round_to(value[i], f(my_row(at), my_k(at)));
    }
  }

  template <int kPitch>
  __device__ void deliver(Data (&tile)[kBlock][kPitch]) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + i * kThreads;
      tile[my_row(at)][my_k(at)] = value[i];
    }
  }
};

template <class Data, bool kByRows>
struct SoftmaxProduct {
  using W = Wide<Data>;
  using Tiles = SoftmaxTiles<Data, kByRows>;
  using Core =
      std::conditional_t<sizeof(Data) == 2, SoftmaxMma<Data, kByRows>, SoftmaxFma<Data, kByRows>>;
  using Weights = GatherCourier<Data, Tiles::kTileRows, Tiles::kTileCols>;
  static constexpr int kDepth = Tiles::kDepth;

  union alignas(16) Shared {
    Tiles tiles;
    W sums[kBlock][kColumns + 4];
  };

  // All threads of the CTA call it; afterwards all may read the sums.
  //   prepare(i)       writes what fetch(i) reads in shared memory
  //   fetch(i, a, w)   sends for the tiles of step i
  template <class A, class Prepare, class Fetch>
  static __device__ void run(Shared& shared, int64_t steps, Prepare prepare, Fetch fetch) {
    A a;
    Weights w;
    Core core;
    __syncthreads();  // whatever was shared before has been read
    if (steps > 0) prepare(0);
    __syncthreads();
    if (steps > 0) fetch(0, a, w);
    for (int64_t i = 0; i < steps; ++i) {
      __syncthreads();  // the previous tile has been read
      a.deliver(shared.tiles.a);
      w.deliver(shared.tiles.w);
      if (i + 1 < steps) prepare(i + 1);
      __syncthreads();
      if (i + 1 < steps) fetch(i + 1, a, w);
      core.multiply(shared.tiles);
    }
    __syncthreads();
    core.each_mine([&](int m, int n, W sum) { shared.sums[m][n] = sum; });
    __syncthreads();
  }

  // f(m, n, sum) for this thread's sums, neighbours in a warp being neighbours in n.
  template <class F>
  static __device__ void each(const Shared& shared, F f) {
    for (int i = threadIdx.x; i < kBlock * kColumns; i += kThreads)
      f(i / kColumns, i % kColumns, shared.sums[i / kColumns][i % kColumns]);
  }
};

// Whether rows of H elements can be read 16 bytes at a time.
template <class Data>
__device__ inline bool whole_packs(const void* matrix, int64_t H) {
  return (reinterpret_cast<uintptr_t>(matrix) | H * sizeof(Data)) % 16 == 0;
}

}  // namespace cuda
}  // namespace fusedrnn
