// C += A B on small blocks in cache: the product behind all three passes of the softmax.
//
// B and C have rows of whole vectors; A is read one element at a time with any strides, so that it
// may also be a transposed view. A tile of kTileRows x kTileVectors accumulators stays in registers
// over the whole of n. An element's sum is one chain of fused multiply-adds in the order of n,
// whatever the tiling: same input, same bits. It starts from zero, not from C: a caller that cuts a
// long sum into blocks gets short chains, whose rounding errors grow less than those of one long
// chain.
#pragma once
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

constexpr int kTileVectors = 3;
constexpr int kTileRows = kRegisters == 32 ? 8 : 4;  // 24 or 12 accumulators

template <class A>
struct Strided {
  const A* data;
  int64_t row, column;
};

// Not inlined: the strides of R rows fill the registers, and would be reloaded in every step.
template <int R, int C, class A>
__attribute__((noinline)) void multiply_tile(Strided<A> a, const A* b, int64_t ldb, int64_t n, A* c,
                                             int64_t ldc, bool add) {
  typedef typename Vector<A>::type Vec;
  constexpr int lanes = Vector<A>::lanes;
  Vec acc[R][C] = {};
  for (int64_t k = 0; k < n; ++k) {
    Vec w[C];
    for (int v = 0; v < C; ++v) std::memcpy(&w[v], b + k * ldb + v * lanes, kVectorBytes);
    for (int r = 0; r < R; ++r) {
      const A s = a.data[r * a.row + k * a.column];
      for (int v = 0; v < C; ++v) acc[r][v] += s * w[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < C; ++v) {
      Vec sum = acc[r][v];
      if (add) {
        std::memcpy(&sum, c + r * ldc + v * lanes, kVectorBytes);
        sum += acc[r][v];
      }
      std::memcpy(c + r * ldc + v * lanes, &sum, kVectorBytes);
    }
}

template <int R, int C, class A>
inline void multiply_rows(int64_t rows, Strided<A> a, const A* b, int64_t ldb, int64_t n, A* c,
                          int64_t ldc, bool add) {
  for (; rows >= R; rows -= R, a.data += R * a.row, c += R * ldc)
    multiply_tile<R, C>(a, b, ldb, n, c, ldc, add);
  if constexpr (R > 1) multiply_rows<R / 2, C>(rows, a, b, ldb, n, c, ldc, add);
}

// C[rows, vectors] += A[rows, n] B[n, vectors], or = where not to add.
template <class A>
inline void multiply(int64_t rows, int64_t vectors, int64_t n, Strided<A> a, const A* b,
                     int64_t ldb, A* c, int64_t ldc, bool add = true) {
  constexpr int step = kTileVectors * Vector<A>::lanes;
  for (; vectors >= 3; vectors -= 3, b += step, c += step)
    multiply_rows<kTileRows, 3>(rows, a, b, ldb, n, c, ldc, add);
  if (vectors == 2) multiply_rows<kTileRows, 2>(rows, a, b, ldb, n, c, ldc, add);
  if (vectors == 1) multiply_rows<kTileRows, 1>(rows, a, b, ldb, n, c, ldc, add);
}

template <class A>
inline A dot(const A* x, const A* y, int64_t vectors) {
  typedef typename Vector<A>::type Vec;
  constexpr int lanes = Vector<A>::lanes, chains = 4;
  Vec acc[chains] = {};
  for (int64_t v = 0; v < vectors; ++v) {
    Vec a, b;
    std::memcpy(&a, x + v * lanes, kVectorBytes);
    std::memcpy(&b, y + v * lanes, kVectorBytes);
    acc[v % chains] += a * b;
  }
  const Vec sum = (acc[0] + acc[1]) + (acc[2] + acc[3]);
  A total = 0;
  for (int l = 0; l < lanes; ++l) total += sum[l];
  return total;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
