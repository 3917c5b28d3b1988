// The cells' scalar type on the CPU: two vectors of units at a time, so that the long chains of
// exp, division and tanh of one overlap with those of the other.
#pragma once
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "types.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class A>
struct Vector {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};

template <>
struct BitsOf<Vector<float>::type> {
  typedef uint32_t type __attribute__((vector_size(kVectorBytes)));
};

// f(I), ..., f(N - 1), unrolled from the start: a plain loop over a cell's arrays is unrolled too
// late for GCC 12 to keep them in registers.
template <int N, int I = 0, class F>
inline FRNN_INLINE void each(F&& f) {
  if constexpr (I < N) {
    f(std::integral_constant<int, I>{});
    each<N, I + 1>(f);
  }
}

// The integers that number the lanes of a vector.
template <class A>
struct Index {
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> type
      __attribute__((vector_size(kVectorBytes)));
};

// Rows of a square block become its columns: in log2(lanes) rounds, rows `step` apart exchange the
// halves in which their numbers and their lanes differ.
template <class A, int step = 1>
inline FRNN_INLINE void transpose(typename Vector<A>::type (&r)[Vector<A>::lanes]) {
  constexpr int lanes = Vector<A>::lanes;
  if constexpr (step < lanes) {
    typename Index<A>::type upper, lower;
    each<lanes>([&](auto lane) FRNN_INLINE {
      constexpr int l = lane;
      upper[l] = l & step ? lanes + l - step : l;
      lower[l] = l & step ? lanes + l : l + step;
    });
    each<lanes>([&](auto i) FRNN_INLINE {
      if constexpr (!(i & step)) {
        const auto a = r[i], b = r[i + step];
        r[i] = __builtin_shuffle(a, b, upper);
        r[i + step] = __builtin_shuffle(a, b, lower);
      }
    });
    transpose<A, 2 * step>(r);
  }
}

template <class A>
struct Lanes {
  using Vec = typename Vector<A>::type;
  static constexpr int count = 2;  // vectors
  Vec v[count];

  Lanes() = default;
  FRNN_INLINE Lanes(A x) {
    each<count>([&](auto i) FRNN_INLINE { v[i] = x - Vec{}; });
  }
};

// f of every vector of x.
template <class A, class F>
inline FRNN_INLINE Lanes<A> map(const Lanes<A>& x, F&& f) {
  Lanes<A> out;
  each<Lanes<A>::count>([&](auto i) FRNN_INLINE { out.v[i] = f(x.v[i]); });
  return out;
}

#define FRNN_OPERATOR(op)                                                            \
  template <class A>                                                                 \
  inline FRNN_INLINE Lanes<A> operator op(const Lanes<A>& x, const Lanes<A>& y) {    \
    Lanes<A> out;                                                                    \
    each<Lanes<A>::count>([&](auto i) FRNN_INLINE { out.v[i] = x.v[i] op y.v[i]; }); \
    return out;                                                                      \
  }
FRNN_OPERATOR(+)
FRNN_OPERATOR(-)
FRNN_OPERATOR(*)
FRNN_OPERATOR(/)
#undef FRNN_OPERATOR

template <class A>
inline FRNN_INLINE Lanes<A>& operator+=(Lanes<A>& x, const Lanes<A>& y) {
  return x = x + y;
}

// One at a time, by the scalar function: what double does, whose exp is the standard library's.
template <class Vec, class F>
inline FRNN_INLINE Vec by_lane(Vec x, F&& f) {
  for (size_t l = 0; l < sizeof(Vec) / sizeof(x[0]); ++l) x[l] = f(x[l]);
  return x;
}

template <class A>
inline FRNN_INLINE Lanes<A> sigmoid(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    if constexpr (sizeof(A) == sizeof(float))
      return sigmoid_host(v);
    else
      return by_lane(v, [](A s) { return sigmoid(s); });
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> tanh_of(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    if constexpr (sizeof(A) == sizeof(float))
      return tanh_host(v);
    else
      return by_lane(v, [](A s) { return tanh_of(s); });
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> exp_of(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    if constexpr (sizeof(A) == sizeof(float))
      return exp_host(v);
    else
      return by_lane(v, [](A s) { return exp_of(s); });
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> log_sigmoid(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    if constexpr (sizeof(A) == sizeof(float))
      return log_sigmoid_host(v);
    else
      return by_lane(v, [](A s) { return log_sigmoid(s); });
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> bounded(const Lanes<A>& x, double limit) {
  return map(x, [=](auto v) FRNN_INLINE {
    const auto top = A(limit) - decltype(v){}, low = A(-limit) - decltype(v){};
    v = v > top ? top : v;
    return v < low ? low : v;
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> bounded_slope(const Lanes<A>& y, double limit) {
  return map(y, [=](auto v) FRNN_INLINE {
    using Vec = decltype(v);
    const Vec one = A(1) - Vec{}, inside = v < A(limit) - Vec{} ? one : Vec{};
    return v > A(-limit) - Vec{} ? inside : Vec{};
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> relu(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    const decltype(v) zero{};
    return v < zero ? zero : v;
  });
}

template <class A>
inline FRNN_INLINE Lanes<A> relu_slope(const Lanes<A>& x) {
  return map(x, [](auto v) FRNN_INLINE {
    const decltype(v) zero{};
    return v > zero ? zero + A(1) : zero;
  });
}

// The 16-bit types, a vector at a time: as load and store in types.h, or as the hardware does it.
using Half = uint16_t __attribute__((vector_size(kVectorBytes / 2)));
using Single = Vector<float>::type;
using SingleBits = BitsOf<Single>::type;

inline FRNN_INLINE Single widened(bf16, Half h) {
  return (Single)(__builtin_convertvector(h, SingleBits) << 16);
}
inline FRNN_INLINE Half narrowed(bf16, Single x) {
  const SingleBits u = (SingleBits)x, even = u + 0x7fffu + ((u >> 16) & 1u);
  const SingleBits nan = SingleBits{} + 0x7fc00000u;
  return __builtin_convertvector((x != x ? nan : even) >> 16, Half);
}

#if defined(__AVX512F__)
inline FRNN_INLINE Single widened(f16, Half h) { return _mm512_cvtph_ps((__m256i)h); }
inline FRNN_INLINE Half narrowed(f16, Single x) { return (Half)_mm512_cvtps_ph(x, 0); }
#elif defined(__F16C__)
inline FRNN_INLINE Single widened(f16, Half h) { return _mm256_cvtph_ps((__m128i)h); }
inline FRNN_INLINE Half narrowed(f16, Single x) { return (Half)_mm256_cvtps_ph(x, 0); }
#else
inline FRNN_INLINE Single widened(f16, Half h) {
  const SingleBits u = __builtin_convertvector(h, SingleBits);
  const SingleBits low = (u & 0x7fffu) << 13, sign = (u & 0x8000u) << 16;
  const SingleBits scaled = (SingleBits)((Single)low * 0x1p112f), special = low | 0x7f800000u;
  return (Single)((low >= 0x0f800000u ? special : scaled) | sign);
}
inline FRNN_INLINE Half narrowed(f16, Single x) {
  const SingleBits u = (SingleBits)x, sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const SingleBits normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  const SingleBits subnormal = (SingleBits)((Single)a + 0.5f) - bits_of(0.5f);
  SingleBits h = a < (113u << 23) ? subnormal : normal;
  h = a >= 0x477ff000u ? SingleBits{} + 0x7c00u : h;
  h = a > 0x7f800000u ? SingleBits{} + 0x7e00u : h;
  return __builtin_convertvector(h | sign, Half);
}
#endif

// The first n numbers at p, zeros after; and back. n is a vector's lanes but at the end of a row:
// AVX-512 has masks for that, without a branch; elsewhere the end goes through a copy.
template <class D>
inline FRNN_INLINE typename Vector<State<D>>::type load_vector(const D* p, int n) {
  using A = State<D>;
  constexpr int lanes = Vector<A>::lanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(D) == 4) return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  if constexpr (sizeof(D) == 2)
    return widened(D{}, (Half)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#endif
  D padded[lanes];
  if (n < lanes) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, p, n * sizeof(D));
    p = padded;
  }
  if constexpr (sizeof(D) == sizeof(A)) {
    typename Vector<A>::type v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  } else {
    Half h;
    std::memcpy(&h, p, sizeof(h));
    return widened(D{}, h);
  }
}

template <class D>
inline FRNN_INLINE void store_vector(D* p, int n, typename Vector<State<D>>::type v) {
  using A = State<D>;
  constexpr int lanes = Vector<A>::lanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(D) == 4) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
  if constexpr (sizeof(D) == 2)
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrowed(D{}, v));
#endif
  if constexpr (sizeof(D) == sizeof(A)) {
    std::memcpy(p, &v, n == lanes ? sizeof(v) : n * sizeof(D));
  } else {
    const Half h = narrowed(D{}, v);
    std::memcpy(p, &h, n == lanes ? sizeof(h) : n * sizeof(D));
  }
}

// x as it is after being stored in a tensor of D.
template <class D, class A>
inline FRNN_INLINE Lanes<A> rounded(const Lanes<A>& x) {
  if constexpr (sizeof(D) == sizeof(A))
    return x;
  else
    return map(x, [](auto v) FRNN_INLINE { return widened(D{}, narrowed(D{}, v)); });
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
