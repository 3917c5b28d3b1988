// The product of a tile in 16 bits: mma.sync m16n8k16 with sums in float.
//
// The weights are A, 16 units of one gate to a product; the batch rows are B, eight to a product,
// so that small batches cost only what they fill. A warp has one gate and all rows; with one or two
// gates the warps that this frees split k. GPUs before sm_80 and the host do the same sums without
// tensor cores, lane by lane as the instructions define them.
#pragma once
#include "tile.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_TENSOR_CORES
// Four matrices of 8 x 8: lane 8 i + r has the address of row r of matrix i, and gets elements
// (lane / 4, lane % 4 * 2 + {0, 1}) of each; transposed, of its transpose.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

#define FRNN_MMA(type)                                             \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
__device__ inline void mma(__nv_bfloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  FRNN_MMA("bf16");
}
__device__ inline void mma(__half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  FRNN_MMA("f16");
}
#undef FRNN_MMA
// tf32, m16n8k8: the 13 low bits of a and b are not looked at.
__device__ inline void mma(float, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// c[n] += A B[n] for n tiles of B; A is [16, 16], a B [16, 8]. a_row(lane) and b_row(pair, lane)
// are the addresses that a lane has for load_matrices: of A's quarters (rows below 8 and from 8 on,
// then the same for the upper half of k), and for two tiles of B their halves of k.
template <class Data, bool kTransposedA, int kTiles, class ARow, class BRow>
__device__ inline void warp_product(float (&c)[kTiles][4], int tiles, ARow a_row, BRow b_row) {
  static_assert(kTiles % 2 == 0, "");
  const int lane = threadIdx.x % 32;
#ifdef FRNN_TENSOR_CORES
  uint32_t a[4], b[4];
  load_matrices<kTransposedA>(a, a_row(lane));
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    if (n >= tiles) break;
    load_matrices<false>(b, b_row(n / 2, lane));
    mma(Data(), c[n], a, b[0], b[1]);
    mma(Data(), c[n + 1], a, b[2], b[3]);
  }
#else
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n >= tiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        const int quarter = row / 8 + k / 8 * 2, r = row % 8, q = k % 8;
        const Data* of_a = a_row(8 * quarter + (kTransposedA ? q : r)) + (kTransposedA ? r : q);
        const Data* of_b = b_row(n / 2, 8 * (n % 2 * 2 + k / 8) + col) + q;
        sum += widen(*of_a) * widen(*of_b);
      }
      c[n][i] += sum;
    }
  }
#endif
}

template <class Data, int kGates, bool kByRows>
struct MmaProduct {
  static_assert(kUnits == 16 && kGates <= 4 && kThreads == 128, "four warps, a gate's units each");
  static constexpr int kDepth = StepwiseTile::depth(kGates, sizeof(Data)), kTiles = kRows / 8;
  static constexpr int kSplits = kGates == 1 ? 4 : kGates == 2 ? 2 : 1;
  static constexpr int kPad = Pack<Data>::kSize;  // eight rows meet 32 different banks
  static constexpr int kTileRows = kByRows ? kGates * kUnits : kDepth;  // of the weights
  static constexpr int kTileCols = kByRows ? kDepth : kUnits;

  struct Tiles {
    Data a[kRows][kDepth + kPad];
    Data w[kTileRows][kTileCols + kPad];
  };
  float acc[kTiles][4] = {};

  // With three gates the last warp does the third once more, and nothing with it.
  static __device__ int my_warp() { return threadIdx.x / 32; }
  static __device__ int my_gate() {
    return kSplits > 1 ? my_warp() % kGates : my_warp() < kGates ? my_warp() : kGates - 1;
  }
  static __device__ int my_split() { return kSplits > 1 ? my_warp() / kGates : 0; }

  // rows: how many of the tile's there are.
  __device__ void multiply(const Tiles& tiles, int64_t rows) {
    constexpr int kShare = kDepth / kSplits;
    const int filled = rows >= kRows ? kTiles : (static_cast<int>(rows) + 7) / 8;
#pragma unroll
    for (int i = 0; i < kShare; i += 16) {
      const int k = my_split() * kShare + i;
      const auto a_row = [&](int lane) {  // the weights
        const int unit = lane / 8 % 2 * 8, half = lane / 16 * 8, r = lane % 8;
        return kByRows ? &tiles.w[my_gate() * kUnits + unit + r][k + half]
                       : &tiles.w[k + half + r][unit];
      };
      const auto b_row = [&](int pair, int lane) {  // the batch
        return &tiles.a[pair * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8];
      };
      warp_product<Data, !kByRows>(acc, filled, a_row, b_row);
    }
  }

  __device__ void deposit(float (&sums)[kSplits][kGates][kRows][kUnits]) const {
    const int lane = threadIdx.x % 32;
    if (kSplits == 1 && my_warp() >= kGates) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int unit = lane / 4 + i / 2 * 8, row = n * 8 + lane % 4 * 2 + i % 2;
        sums[my_split()][my_gate()][row][unit] = acc[n][i];
      }
    }
  }
};

}  // namespace cuda
}  // namespace fusedrnn
