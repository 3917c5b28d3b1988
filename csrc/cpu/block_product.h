// C += A B on small blocks in cache: the product behind all three passes of the softmax.
//
// B and C have rows of whole vectors; A is read one element at a time with any strides, so that it
// may also be a transposed view. A tile of kTileRows x kTileVectors accumulators stays in registers
// over the whole of n. An element's sum is one chain of fused multiply-adds in the order of n,
// whatever the tiling: same input, same bits. It starts from zero, not from C: a caller that cuts a
// long sum into blocks gets short chains, whose rounding errors grow less than those of one long
// chain.
#pragma once
#if defined(__AVX__)
#include <immintrin.h>
#endif

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
inline FRNN_INLINE typename Vector<A>::type vector_at(const A* from) {
  typename Vector<A>::type v;
  std::memcpy(&v, from, kVectorBytes);
  return v;
}

// The lanes' sum, as a tree.
template <class A>
inline FRNN_INLINE A lane_sum(typename Vector<A>::type v) {
  A s[Vector<A>::lanes];
  std::memcpy(s, &v, kVectorBytes);
  for (int n = Vector<A>::lanes / 2; n > 0; n /= 2)
    for (int l = 0; l < n; ++l) s[l] += s[l + n];
  return s[0];
}

// f(first, how many) for the vectors of n numbers: weights are read as they lie, and the last
// vector of a row ends where the next row begins.
template <class A, class F>
inline FRNN_INLINE void each_vector(int64_t n, F f) {
  constexpr int lanes = Vector<A>::lanes;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, std::integral_constant<int, lanes>{});
  if (i < n) f(i, int(n - i));
}

// x . y, of n numbers; x has zeros behind them.
template <class A>
inline A dot(const A* x, const A* y, int64_t n) {
  typedef typename Vector<A>::type Vec;
  constexpr int lanes = Vector<A>::lanes, chains = 4;
  Vec acc[chains] = {};
  int64_t i = 0;
  for (; i + chains * lanes <= n; i += chains * lanes)
    for (int c = 0; c < chains; ++c)
      acc[c] += vector_at(x + i + c * lanes) * vector_at(y + i + c * lanes);
  each_vector<A>(n - i, [&](int64_t j, int count) FRNN_INLINE {
    acc[0] += vector_at(x + i + j) * load_vector(y + i + j, count);
  });
  return lane_sum<A>((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// Few tokens meet most classes of a large vocabulary, and a panel of tokens would be mostly
// padding: for up to kFew of them, vectors go along the features, and weight rows are read as they
// lie, once, from memory: the next ones are fetched ahead, as rows are too short for the hardware
// to notice. They are one panel: of two doubles to a vector no more than six are few.
template <class A>
constexpr int64_t kFew = kTileVectors * Vector<A>::lanes < 8 ? kTileVectors * Vector<A>::lanes : 8;

// out[r, t] += w_r . x_t, of n numbers, for R rows and T tokens.
template <int R, int T, class A>
inline FRNN_INLINE void dot_tile(const A* w, int64_t ldw, const A* x, int64_t ldx, int64_t n,
                                 A* out, int64_t ldo) {
  typedef typename Vector<A>::type Vec;
  Vec acc[R][T] = {};
  each_vector<A>(n, [&](int64_t i, int count) FRNN_INLINE {
    Vec tokens[T];
    for (int t = 0; t < T; ++t) tokens[t] = vector_at(x + t * ldx + i);
    for (int r = 0; r < R; ++r) {
      const Vec row = load_vector(w + r * ldw + i, count);
      __builtin_prefetch(w + (R + r) * ldw + i);
      for (int t = 0; t < T; ++t) acc[r][t] += row * tokens[t];
    }
  });
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r * ldo + t] += lane_sum<A>(acc[r][t]);
}

template <int T, class A>
__attribute__((noinline)) void dot_rows(int64_t rows, const A* w, int64_t ldw, const A* x,
                                        int64_t ldx, int64_t n, A* out, int64_t ldo) {
  constexpr int R = T <= 2 ? 4 : 2;  // rows at once: more sums than one hide the latency
  int64_t r = 0;
  for (; r + R <= rows; r += R) dot_tile<R, T>(w + r * ldw, ldw, x, ldx, n, out + r * ldo, ldo);
  for (; r < rows; ++r) dot_tile<1, T>(w + r * ldw, ldw, x, ldx, n, out + r * ldo, ldo);
}

// The same for any number of tokens up to kFew.
template <class A, int T = int(kFew<A>)>
inline void dot_few(int64_t tokens, int64_t rows, const A* w, int64_t ldw, const A* x, int64_t ldx,
                    int64_t n, A* out, int64_t ldo) {
  if (tokens == T) return dot_rows<T>(rows, w, ldw, x, ldx, n, out, ldo);
  if constexpr (T > 1) dot_few<A, T - 1>(tokens, rows, w, ldw, x, ldx, n, out, ldo);
}

// out_t += sum_r g[r, t] w_r, of n numbers, for R rows and any number of tokens.
template <int R, class A>
inline void add_tile(int64_t tokens, const A* g, int64_t ldg, const A* w, int64_t ldw, int64_t n,
                     A* out, int64_t ldo) {
  typedef typename Vector<A>::type Vec;
  each_vector<A>(n, [&](int64_t i, int count) FRNN_INLINE {
    Vec rows[R];
    for (int r = 0; r < R; ++r) {
      rows[r] = load_vector(w + r * ldw + i, count);
      __builtin_prefetch(w + (R + r) * ldw + i);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      A* at = out + t * ldo + i;
      Vec sum = vector_at(at);
      for (int r = 0; r < R; ++r) sum += g[r * ldg + t] * rows[r];
      std::memcpy(at, &sum, kVectorBytes);
    }
  });
}

// To memory that is not read soon: without fetching its lines first. `to` is aligned.
template <class A>
inline FRNN_INLINE void stream(A* to, typename Vector<A>::type v) {
#if defined(__AVX512F__)
  static_assert(kVectorBytes == 64);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#elif defined(__AVX__)
  static_assert(kVectorBytes == 32);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#else
  std::memcpy(to, &v, kVectorBytes);
#endif
}

// out_r = sum_t g[r, t] x_t, of n numbers, for R rows; `past`: past the caches, n being a number of
// whole vectors.
template <int R, class A>
inline void outer_tile(int64_t tokens, const A* g, int64_t ldg, const A* x, int64_t ldx, int64_t n,
                       A* out, int64_t ldo, bool past) {
  typedef typename Vector<A>::type Vec;
  each_vector<A>(n, [&](int64_t i, int count) FRNN_INLINE {
    Vec acc[R] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      const Vec token = vector_at(x + t * ldx + i);
      for (int r = 0; r < R; ++r) acc[r] += g[r * ldg + t] * token;
    }
    for (int r = 0; r < R; ++r) {
      A* at = out + r * ldo + i;
      if (past)
        stream(at, acc[r]);
      else
        store_vector(at, count, acc[r]);
    }
  });
}

template <class A>
__attribute__((noinline)) void outer_few(int64_t tokens, int64_t rows, const A* g, int64_t ldg,
                                         const A* x, int64_t ldx, int64_t n, A* out, int64_t ldo,
                                         bool past) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    outer_tile<4>(tokens, g + r * ldg, ldg, x, ldx, n, out + r * ldo, ldo, past);
  for (; r < rows; ++r)
    outer_tile<1>(tokens, g + r * ldg, ldg, x, ldx, n, out + r * ldo, ldo, past);
}

// n vectors of zeros.
template <class A>
inline void clear(A* out, int64_t n, bool past) {
  const typename Vector<A>::type zero = {};
  if (!past) return void(std::memset(out, 0, n * kVectorBytes));
  for (int64_t v = 0; v < n; ++v) stream(out + v * Vector<A>::lanes, zero);
}

template <class A>
__attribute__((noinline)) void add_few(int64_t tokens, int64_t rows, const A* g, int64_t ldg,
                                       const A* w, int64_t ldw, int64_t n, A* out, int64_t ldo) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    add_tile<4>(tokens, g + r * ldg, ldg, w + r * ldw, ldw, n, out, ldo);
  for (; r < rows; ++r) add_tile<1>(tokens, g + r * ldg, ldg, w + r * ldw, ldw, n, out, ldo);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
