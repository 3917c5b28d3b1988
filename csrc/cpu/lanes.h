// The cells' scalar type on the CPU: two vectors of units at a time, so that the long chains of
// exp, division and tanh of one overlap with those of the other.
#pragma once
#if defined(__AVX512F__)
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

// The first n numbers at p, zeros after; and back. n is a vector's lanes but at the end of a row:
// AVX-512 has masks for that, without a branch; elsewhere the end goes through a copy.
template <class D>
inline FRNN_INLINE typename Vector<State<D>>::type load_vector(const D* p, int n) {
  using A = State<D>;
  constexpr int lanes = Vector<A>::lanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(D) == 4) return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#endif
  typename Vector<A>::type v;
  D padded[lanes];
  if (n < lanes) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, p, n * sizeof(D));
    p = padded;
  }
  if constexpr (sizeof(D) == sizeof(A)) {
    std::memcpy(&v, p, sizeof(v));
  } else {
    A wide[lanes];
#pragma omp simd
    for (int l = 0; l < lanes; ++l) wide[l] = load(p[l]);
    std::memcpy(&v, wide, sizeof(v));
  }
  return v;
}

template <class D>
inline FRNN_INLINE void store_vector(D* p, int n, typename Vector<State<D>>::type v) {
  using A = State<D>;
  constexpr int lanes = Vector<A>::lanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(D) == 4) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
#endif
  D narrow[lanes];
  if constexpr (sizeof(D) == sizeof(A)) {
    if (n == lanes) {
      std::memcpy(p, &v, sizeof(v));
      return;
    }
    std::memcpy(narrow, &v, sizeof(v));
  } else {
    A wide[lanes];
    std::memcpy(wide, &v, sizeof(v));
#pragma omp simd
    for (int l = 0; l < lanes; ++l) store(narrow[l], wide[l]);
  }
  std::memcpy(p, narrow, n * sizeof(D));
}

// x as it is after being stored in a tensor of D.
template <class D, class A>
inline FRNN_INLINE Lanes<A> rounded(const Lanes<A>& x) {
  if constexpr (sizeof(D) == sizeof(A)) return x;
  return map(x, [](auto v) FRNN_INLINE {
    D d[Vector<A>::lanes];
    store_vector(d, Vector<A>::lanes, v);
    return load_vector(d, Vector<A>::lanes);
  });
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
