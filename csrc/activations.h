// sigmoid, tanh, relu and their like for the cells, on host and device.
//
// On the host float has its own branch-free code, always inlined, so that loops over units
// vectorise (a call left in the loop made the LSTM five times slower). tanh is within 3 ULP,
// sigmoid within 3 for |x| <= 87 (tests/test_isa.py, over every float; seen: 2.67 and 2.49),
// log_sigmoid within 4 there (tests/test_cells.py; seen: 3.67). double, and everything on the
// device, goes to the standard library.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define FRNN_INLINE __attribute__((always_inline))
// What runs once a call, or seldom: small, where inline and vectorised it is half of the code.
#define FRNN_COLD __attribute__((cold, noinline))
#ifdef __CUDACC__
#define FRNN_HD __host__ __device__ __forceinline__
#else
#define FRNN_HD inline FRNN_INLINE
#endif

// The CPU kernels are compiled once per instruction set. Their copies of everything below must not
// be merged by the linker (an AVX-512 copy would crash an older machine), hence one namespace for
// each.
#ifndef FRNN_ISA
#define FRNN_ISA base
#endif

namespace fusedrnn {
inline namespace FRNN_ISA {

// The integers that hold the bits of float, or of each float of a vector (cpu/lanes.h).
template <class F>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};

template <class F>
inline FRNN_INLINE typename BitsOf<F>::type bits_of(F x) {
  typename BitsOf<F>::type u;
  std::memcpy(&u, &x, sizeof(x));
  return u;
}
inline FRNN_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// exp(x) = 2^n (1 + q): x = n ln 2 + r, q = exp(r) - 1 = r + r^2 P(r), P fitted for least relative
// error of 1 + q on |r| <= ln 2 / 2 (3e-9). F is float or a vector of floats.
template <class F>
inline FRNN_INLINE void exp_parts(F x, F& scale, F& q) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F t = x * 1.44269504f + shift, n = t - shift;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 1.38145394e-3f + 8.36874545e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  q = p * (r * r) + r;
  const auto power = (bits_of(t) + 127u) << 23;  // the low bits of t hold n
  std::memcpy(&scale, &power, sizeof(scale));
}

// exp(x) for x in [-87, 88], saturating outside (never 0 or infinity); NaN stays NaN.
template <class F>
inline FRNN_INLINE F exp_host(F x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  F scale, q;
  exp_parts(x, scale, q);
  return q * scale + scale;
}

template <class F>
inline FRNN_INLINE F sigmoid_host(F x) {
  return 1.0f / (1.0f + exp_host(-x));
}

// tanh(x) = m / (m + 2), m = exp(2x) - 1 without cancellation: scale q + (scale - 1). From 9.02 on
// it is 1 in float. The sign is that of x, of zero too.
template <class F>
inline FRNN_INLINE F tanh_host(F x) {
  const auto sign = bits_of(x) & 0x80000000u, size = bits_of(x) ^ sign;
  std::memcpy(&x, &size, sizeof(x));
  x = x > 9.02f ? 9.02f : x;
  F scale, q;
  exp_parts(x + x, scale, q);
  const F m = q * scale + (scale - 1.0f), d = m + 2.0f, ratio = (x > 0.5f ? 2.0f - F{} : m) / d;
  const F y =
      x > 0.5f ? 1.0f - ratio : ratio;  // 1 - 2 / d: more exact near 1, where 1 - y^2 counts
  const auto bits = bits_of(y) | sign;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// log(sigmoid(x)) = min(x, 0) - log(1 + e), e = exp(-|x|), by log(1 + e) = 2 artanh(e / (2 + e)):
// its series in q <= 1/9, whose rest is below 2e-9 of it.
template <class F>
inline FRNN_INLINE F log_sigmoid_host(F x) {
  const F low = x < 0.0f ? x : F{}, e = exp_host(x < 0.0f ? x : -x);
  const F s = e / (e + 2.0f), q = s * s;
  F p = q * (1 / 15.0f) + 1 / 13.0f;
  p = p * q + 1 / 11.0f;
  p = p * q + 1 / 9.0f;
  p = p * q + 1 / 7.0f;
  p = p * q + 1 / 5.0f;
  p = p * q + 1 / 3.0f;
  p = p * q + 1.0f;
  return low - (s + s) * p;
}

template <class T>
FRNN_HD T sigmoid(T x) {
#ifndef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return sigmoid_host(x);
#endif
  using std::exp;
  return T(1) / (T(1) + exp(-x));
}

template <class T>
FRNN_HD T tanh_of(T x) {
#ifndef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return tanh_host(x);
#endif
  using std::tanh;
  return tanh(x);
}

// exp(x) for x <= 0.
template <class T>
FRNN_HD T exp_of(T x) {
#ifndef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return exp_host(x);
#endif
  using std::exp;
  return exp(x);
}

template <class T>
FRNN_HD T log_sigmoid(T x) {
#ifndef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return log_sigmoid_host(x);
#endif
  using std::exp;
  using std::log1p;
  return (x < T(0) ? x : T(0)) - log1p(exp(x < T(0) ? x : -x));
}

template <class T>
FRNN_HD T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN stays NaN, as in torch.relu
}

// x, but no further from 0 than limit; NaN stays NaN.
template <class T>
FRNN_HD T bounded(T x, double limit) {
  return x > T(limit) ? T(limit) : x < T(-limit) ? T(-limit) : x;
}

// The slope of bounded, at its value.
template <class T>
FRNN_HD T bounded_slope(T y, double limit) {
  return y < T(limit) && y > T(-limit) ? T(1) : T(0);
}

// The slope of relu at x.
template <class T>
FRNN_HD T relu_slope(T x) {
  return x > T(0) ? T(1) : T(0);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
