// The products of the grid kernels: B comes from L2, as soon as other CTAs have written it; the
// warps' sums, each of its part of k, meet in shared memory.
#pragma once
#include "../grid_tile.h"
#include "grid_device.cuh"
#include "resident_product.cuh"

namespace fusedrnn {
namespace cuda {

// What every CTA of a launch is told: a layer's directions, and how groups share each. `operands`:
// the workspace of Operands (grid_twice.cuh).
template <class Problem>
struct GridCall {
  Problem directions[2];
  GridWork work;
  void* operands[2];
};

#ifdef FRNN_RESIDENT

// A row of B: where it begins, and whether other CTAs are writing it. Null: there is none.
template <class Data>
struct RowOfB {
  const Data* from;
  bool awaited;
};

// Where eight neighbouring elements of k are in a row of B, of float32 four, and how many of them
// there are.
struct Eight {
  int64_t offset;
  int count;
};

// The bits of a number.
template <class Data>
using BitsOfData = std::conditional_t<sizeof(Data) == 2, uint16_t, uint32_t>;

// Sixteen bytes of a row; numbers that are not there are zero.
template <class Data>
__device__ inline uint4 ask(const RowOfB<Data>& row, const Eight& eight, bool wide) {
  uint4 words = {0, 0, 0, 0};
  if (row.from == nullptr || eight.count <= 0) return words;
  const Data* from = row.from + eight.offset;
  if (row.awaited && wide) return GridExchange::look(reinterpret_cast<const uint4*>(from));
  constexpr int kPack = Pack<Data>::kSize, kHalf = kPack / 2, kBits = 64 / kHalf;
  uint64_t half[2] = {0, 0};
#pragma unroll 1
  for (int v = 0; v < kPack && v < eight.count; ++v) {
    BitsOfData<Data> bits;
    if (row.awaited) {
      bits = GridExchange::look(reinterpret_cast<const BitsOfData<Data>*>(from) + v);
    } else {
      memcpy(&bits, from + v, sizeof(Data));
    }
    const uint64_t there = static_cast<uint64_t>(bits) << v % kHalf * kBits;
    half[0] |= v < kHalf ? there : 0, half[1] |= v < kHalf ? 0 : there;
  }
  words = {static_cast<uint32_t>(half[0]), static_cast<uint32_t>(half[0] >> 32),
           static_cast<uint32_t>(half[1]), static_cast<uint32_t>(half[1] >> 32)};
  return words;
}

// Whether a word, or with `wide` false either half of it, is still to come. float32 has no halves.
template <class Data>
__device__ inline bool absent(uint32_t word, bool wide) {
  if constexpr (sizeof(Data) == 4) return word == kAbsentPair;
  return word == kAbsentPair || (!wide && ((word & 0xffffu) == kAbsent || word >> 16 == kAbsent));
}
template <class Data>
__device__ inline bool absent(const uint4& words, bool wide) {
  return absent<Data>(words.x, wide) || absent<Data>(words.y, wide) ||
         absent<Data>(words.z, wide) || absent<Data>(words.w, wide);
}

// One piece of B on its way: kGridPiece spans of one column.
template <class Data>
struct Piece {
  uint4 b[kGridPiece];
  RowOfB<Data> row;
  int column, first;  // span

  // at(span): an Eight.
  template <class At>
  __device__ void request(At at, bool wide) {
#pragma unroll
    for (int j = 0; j < kGridPiece; ++j) b[j] = ask(row, at(first + j), wide);
  }

  // Until all of it has come. The first 16 bytes of each lane are waited for alone: what others
  // write at the same time follows, and looking at all of it in vain would be in their way.
  template <class At>
  __device__ void await(At at, bool wide) {
    uint32_t looks = 0;
    for (;;) {
      uint32_t missing = 0;
#pragma unroll
      for (int j = 0; j < kGridPiece; ++j) {
        missing |= uint32_t{row.awaited && absent<Data>(b[j], wide)} << j;
      }
      if (GridExchange::everyone(missing == 0)) return;
#pragma unroll
      for (int j = 0; j < kGridPiece; ++j) {
        if ((missing >> j & 1) == 0 || (j > 0 && (missing & 1) != 0)) continue;
        const Eight eight = at(first + j);
        GridExchange::pause(looks, row.from + eight.offset, eight.count);
        b[j] = ask(row, eight, wide);
      }
    }
  }
};

// The sums of all warps: [warps][columns][tiles][8 batch rows][16 rows of A].
//
// A lane has four sums of a tile, of two rows of A and two of the batch. In each of four rounds
// lanes of different q store another one, so that a warp's 32 words meet 32 different banks.
struct SumsOfWarps {
  float* at;
  int columns, tiles;

  __device__ int index(int warp, int column, int tile) const {
    return ((warp * columns + column) * tiles + tile) * (kClusterRows * kClusterTile);
  }
  __device__ void store(const float (&sums)[4], int column, int tile) const {
    const Lane lane = my_lane();
    const bool odd = (lane.q & 1) != 0, upper = (lane.q & 2) != 0;
    // by_round[k] = sums[k ^ q]; sum number s is that of batch row 2 q + s % 2, row g + s / 2 * 8.
    const float a[4] = {odd ? sums[1] : sums[0], odd ? sums[0] : sums[1], odd ? sums[3] : sums[2],
                        odd ? sums[2] : sums[3]};
    const float by_round[4] = {upper ? a[2] : a[0], upper ? a[3] : a[1], upper ? a[0] : a[2],
                               upper ? a[1] : a[3]};
    float* to = at + index(my_warp(), column, tile) + 2 * lane.q * kClusterTile + lane.g;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int s = k ^ lane.q;
      to[(s & 1) * kClusterTile + (s >> 1) * 8] = by_round[k];
    }
  }
  // Of one row of A (in a CTA) and one of the batch, in the order of warps.
  __device__ float total(int warps, int row_of_a, int row) const {
    const int stride = columns * tiles * (kClusterRows * kClusterTile);
    const float* from = at + index(0, row / kClusterRows, row_of_a / kClusterTile) +
                        row % kClusterRows * kClusterTile + row_of_a % kClusterTile;
    float sum = 0;
#pragma unroll 4
    for (int warp = 0; warp < warps; ++warp) sum += from[warp * stride];
    return sum;
  }
};

// The gates of a step's product, or products.
template <class Cell>
struct FirstGates {
  static constexpr int kFrom = 0, kGates = Cell::kGates - Cell::kSecond;
  static __device__ int tiles(const GridWork& work) { return work.tiles; }
  static __device__ int spans(const GridWork& work) { return work.spans; }
};
template <class Cell>
struct LastGates {
  static constexpr int kFrom = Cell::kGates - Cell::kSecond, kGates = Cell::kSecond;
  static __device__ int tiles(const GridWork& work) { return work.second_tiles; }
  static __device__ int spans(const GridWork& work) { return work.second_spans; }
};

// Where this warp's spans of A that are not in registers are: of a product that has so many tiles
// and spans, kSpans of them in registers.
template <int kSpans>
__device__ inline char* rest_of(int rest, int tiles, int spans) {
  return GridExchange::memory() + rest +
         my_warp() * tiles * max(0, spans - kSpans) * kClusterTileBytes;
}

// All sums of a step. row(column) gives this lane's row of B, at(span) where its eight elements of
// k are. When it returns, each thread may read any total, until it comes here again.
//
// One loop goes over all pieces of all columns, so that what asks for B stands in the code once;
// which weights a piece meets is a branch, as registers have no index.
template <int kChains, class Data, int kTiles, int kSpans, class Row, class At>
__device__ inline void grid_product(const Resident<Data, kTiles, kSpans>& weights,
                                    const SumsOfWarps& all, bool wide, Row row, At at) {
  static_assert(kSpans % kGridPiece == 0, "");
  Piece<Data> now, next;
  float sums[kTiles][kChains][4];
  next.column = next.first = 0;
  for (int column = -1, first = 0; column < all.columns;) {
    if (column >= 0) {
      now = next;
      next.first += kGridPiece;
      if (next.first >= weights.spans) ++next.column, next.first = 0;
    }
    if (next.column < all.columns) {
      if (next.first == 0) next.row = row(next.column);
      next.request(at, wide);
    }
    if (column < 0) {
      column = 0;
      continue;
    }
    now.await(at, wide);
    if (first == 0) {
#pragma unroll
      for (int i = 0; i < kTiles * kChains * 4; ++i) {
        sums[i / (kChains * 4)][i / 4 % kChains][i % 4] = 0;
      }
    }
#pragma unroll
    for (int span = 0; span < kSpans; span += kGridPiece) {
      if (span != first) continue;
#pragma unroll
      for (int j = 0; j < kGridPiece; ++j) weights.multiply_held(sums, span + j, now.b[j]);
    }
    if (first >= kSpans) {
#pragma unroll
      for (int j = 0; j < kGridPiece; ++j) {
        if (first + j < weights.spans) weights.multiply_rest(sums, first + j, now.b[j]);
      }
    }
    first += kGridPiece;
    if (first < weights.spans) continue;
    if (column == 0) GridExchange::sync_empty();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int chain = 1; chain < kChains; ++chain) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][0][e] += sums[m][chain][e];
      }
      if (m < weights.tiles) all.store(sums[m][0], column, m);
    }
    first = 0, ++column;
  }
  GridExchange::sync_full();
}

// A number that others wait for. Lanes with neighbouring places have neighbouring units; where
// rows of the tensor allow it (`wide`), two numbers of 16 bits are written as one word. All lanes
// of a warp come here.
template <class Data>
__device__ inline void publish(void* tensor, int64_t at, float value, bool there, bool wide) {
  Data data;
  round_to(data, value);
  BitsOfData<Data> bits;
  memcpy(&bits, &data, sizeof(Data));
  constexpr BitsOfData<Data> kNever = static_cast<BitsOfData<Data>>(kAbsentPair);
  if (bits == kNever) bits = kNever >> 1;
  if (sizeof(Data) == 4 || !wide) {
    if (there) GridExchange::publish(static_cast<BitsOfData<Data>*>(tensor) + at, bits);
    return;
  }
  const uint32_t other = Mma::swap(static_cast<uint32_t>(bits), 1);
  if (!there || threadIdx.x % 2 != 0) return;
  GridExchange::publish(reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(tensor) + at),
                        static_cast<uint32_t>(bits) | other << 16);
}

// Whether rows of a tensor can be read 16 bytes at a time.
template <class Data>
__device__ inline bool rows_are_wide(const void* tensor, int64_t H, int64_t row) {
  constexpr int kPack = Pack<Data>::kSize;
  return reinterpret_cast<uintptr_t>(tensor) % 16 == 0 && H % kPack == 0 && row % kPack == 0;
}

// Numbers in 32 bytes, the least that is brought to L2.
template <class Data>
constexpr int kSector = 32 / sizeof(Data);

#endif

}  // namespace cuda
}  // namespace fusedrnn
