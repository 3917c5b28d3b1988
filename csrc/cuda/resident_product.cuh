// The products of the kernels with W_hh on chip: W_hh as A of mma.sync m16n8k16, in registers for
// the whole sequence as far as they go and in shared memory for the rest.
//
// The order of k is free as long as A and B agree. In each span of 32, lane q of a group of four
// has k = 8 q .. 8 q + 7: the first four in one product, the others in the next. So one 16-byte
// load brings what a lane has of B in a span, and two what it has of A. float32 has spans of 16,
// k = 4 q .. 4 q + 3, two in each product of m16n8k8, whose words lie as the others' pairs do.
#pragma once
#include "../cluster_tile.h"
#include "brief.cuh"
#include "product_tf32.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_RESIDENT

// A lane's place in a tile: rows g and g + 8 of A, column g of B, columns 2 q and 2 q + 1 of the
// sums.
struct Lane {
  int g, q;
};
__device__ inline Lane my_lane() {
  return {static_cast<int>(threadIdx.x) % 32 / 4, static_cast<int>(threadIdx.x) % 4};
}
__device__ inline int my_warp() { return threadIdx.x / 32; }

template <class Data>
constexpr int kSpan = cluster_span(sizeof(Data));

// A warp's share of A: tiles of 16 rows, every `stride`th from `first` on.
template <class Data, int kTiles, int kSpans>
struct Resident {
  uint32_t a[kTiles][kSpans][2][4];
  int first, stride, tiles, spans;  // tiles: how many of A are the warp's
  uint4* rest;  // [all tiles][spans - kSpans][2][32 lanes]: each lane reads what it has written
  bool tf32;    // float32: numbers are rounded to tf32 (product_tf32.cuh)

  __device__ Resident(int first_tile, int every, int all_tiles, int all_spans, char* memory,
                      bool rounded)
      : first(first_tile),
        stride(every),
        tiles((all_tiles - first + stride - 1) / stride),
        spans(all_spans),
        rest(reinterpret_cast<uint4*>(memory)),
        tf32(rounded) {}

  // row(to, of, tile, i) gives what this lane has of row i of a tile in a span: 16 bytes. `of`
  // is at(span), made once for all rows.
  template <class At, class Row>
  __device__ void load(At at, Row row) {
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
      const auto of = at(span);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        fragments(a[m][span], m < tiles && span < spans, of, m, row);
      }
    }
    for (int span = kSpans; span < spans; ++span) {
      const auto of = at(span);
      for (int m = 0; m < tiles; ++m) {
        uint32_t rest_of_a[2][4];
        fragments(rest_of_a, true, of, m, row);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          *place(m, span, j) = {rest_of_a[j][0], rest_of_a[j][1], rest_of_a[j][2], rest_of_a[j][3]};
        }
      }
    }
  }

  // sums[m][n] += A[m] B[n], over kChains sums that wait for each other only at the end.
  // b(n, span) is where this lane's 16 bytes of B are.
  template <int kColumns, int kChains, class B>
  __device__ void multiply(float (&sums)[kTiles][kColumns][kChains][4], B b) const {
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
      if (span % 4 == 0 && span >= spans) break;  // the rest of four is zero
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const uint4 of_b = *b(n, span);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          if (kTiles == 1 || m < tiles) twice<kChains>(sums[m][n], a[m][span], of_b, span);
        }
      }
    }
#pragma unroll(kTiles* kColumns == 1 ? 2 : 1)
    for (int span = kSpans; span < spans; ++span) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (kTiles > 1 && m >= tiles) continue;
        const uint4 low = *place(m, span, 0), high = *place(m, span, 1);
        const uint32_t of_a[2][4] = {{low.x, low.y, low.z, low.w},
                                     {high.x, high.y, high.z, high.w}};
#pragma unroll
        for (int n = 0; n < kColumns; ++n) twice<kChains>(sums[m][n], of_a, *b(n, span), 0);
      }
    }
  }

  // The same of one column in one span: of those in registers, when `span` is known to the
  // compiler ...
  template <int kChains>
  __device__ void multiply_held(float (&sums)[kTiles][kChains][4], int span,
                                const uint4& of_b) const {
    const auto& operand = prepared(of_b);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (kTiles == 1 || m < tiles) twice<kChains>(sums[m], a[m][span], operand, span);
    }
  }
  // ... and of those in shared memory.
  template <int kChains>
  __device__ void multiply_rest(float (&sums)[kTiles][kChains][4], int span,
                                const uint4& of_b) const {
    const auto& operand = prepared(of_b);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (kTiles > 1 && m >= tiles) continue;
      const uint4 low = *place(m, span, 0), high = *place(m, span, 1);
      const uint32_t of_a[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
      twice<kChains>(sums[m], of_a, operand, 0);
    }
  }

 private:
  __device__ uint4* place(int m, int span, int j) const {
    const int at = (first + m * stride) * (spans - kSpans) + span - kSpans;
    return rest + (at * 2 + j) * 32 + threadIdx.x % 32;
  }

  // 16 bytes of B as products of several tiles take them: 16-bit numbers as they are.
  __device__ decltype(auto) prepared(const uint4& of_b) const {
    if constexpr (sizeof(Data) == 2) {
      return (of_b);
    } else {
      return Parts(of_b, tf32);
    }
  }

  template <int kChains>
  __device__ void twice(float (&sums)[kChains][4], const uint32_t (&of_a)[2][4], const uint4& of_b,
                        int span) const {
    const int chain = span * 2;
    if constexpr (sizeof(Data) == 2) {
      Mma::multiply<Data>(sums[chain % kChains], of_a[0], of_b.x, of_b.y);
      Mma::multiply<Data>(sums[(chain + 1) % kChains], of_a[1], of_b.z, of_b.w);
    } else {
      twice<kChains>(sums, of_a, Parts(of_b, tf32), span);
    }
  }
  template <int kChains>
  __device__ void twice(float (&sums)[kChains][4], const uint32_t (&of_a)[2][4], const Parts& of_b,
                        int span) const {
    const int chain = span * 2;
    multiply_float(sums[chain % kChains], sums[(chain + 1) % kChains], of_a, of_b, tf32);
  }

  template <class Of, class Row>
  __device__ void fragments(uint32_t (&to)[2][4], bool there, const Of& of, int m, Row row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Pack<Data> values;
      uint32_t words[4] = {};
      if (there) {
        row(values, of, first + m * stride, my_lane().g + 8 * half);
        memcpy(words, &values, 16);
        if constexpr (sizeof(Data) == 4) {
#pragma unroll
          for (int v = 0; v < 4; ++v) words[v] = tf32 ? Mma::rounded(words[v]) : words[v];
        }
      }
      to[0][half] = words[0], to[0][2 + half] = words[1];
      to[1][half] = words[2], to[1][2 + half] = words[3];
    }
  }
};

// What forward knew of one unit of one row in one step, as it comes from memory.
template <class Cell, class Data>
struct Recalled {
  Data saved[Cell::kSaved], h, dy;
  float before[Cell::kStates], after[Cell::kStates];  // from 1 on: the inner states
  uint8_t cut, cut_after;  // whether it starts with the reset state, and the step after it
};

// is_reset of a row of known length: the mask's own byte, so that nothing waits for it before it is
// looked at.
__device__ inline uint8_t reset_mark(const SequenceSizes& n, const bool* reset, int length,
                                     int64_t b, int step) {
  const int64_t t = time_of(n, step) + (n.reverse ? 1 : 0);
  const bool there = reset != nullptr && step < n.T && t < length;
  return there ? reinterpret_cast<const uint8_t*>(reset)[t * n.B + b] : 0;
}

#endif

}  // namespace cuda
}  // namespace fusedrnn
