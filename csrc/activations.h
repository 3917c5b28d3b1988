// sigmoid, tanh and relu for the cells, on host and device.
//
// On the host float has its own branch-free code, always inlined, so that loops over units
// vectorise (a call left in the loop made the LSTM five times slower). tanh is within 2 ULP,
// sigmoid within 3 for |x| <= 87 (tests/test_cells.py, over every 97th float). double, and
// everything on the device, goes to the standard library.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define FRNN_INLINE __attribute__((always_inline))
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

inline FRNN_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline FRNN_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// exp(x) for x in [-87, 88], saturating outside (never 0 or infinity); NaN stays NaN.
// x = n ln 2 + r; 2^n by its exponent bits; exp(r) = 1 + r + r^2 P(r), P fitted for least relative
// error on |r| <= ln 2 / 2 (3e-9).
inline FRNN_INLINE float exp_host(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float t = x * 1.44269504f + shift, n = t - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.38145394e-3f;
  p = p * r + 8.36874545e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r * r + r + 1.0f;
  return p * float_of((bits_of(t) + 127u) << 23);  // the low bits of t hold n
}

// tanh(x) = x + x^3 Q(x^2) for |x| < 0.625 (Q fitted, 8e-9), else 1 - 2 / (exp(2|x|) + 1), signed.
// The choice is made on bits: GCC 12 turns ?: here into a branch, and the cell's loop stays scalar.
inline FRNN_INLINE float tanh_host(float x) {
  const uint32_t sign = bits_of(x) & 0x80000000u;
  const float a = float_of(bits_of(x) ^ sign), z = x * x;
  float q = -5.43944491e-3f;
  q = q * z + 2.03979705e-2f;
  q = q * z - 5.36650531e-2f;
  q = q * z + 1.33305430e-1f;
  q = q * z - 3.33332479e-1f;
  const uint32_t small = bits_of(a + a * z * q);
  const uint32_t big = bits_of(1.0f - 2.0f / (exp_host(a + a) + 1.0f));
  const uint32_t pick = -uint32_t(a < 0.625f);
  return float_of((small & pick) | (big & ~pick) | sign);
}

template <class T>
FRNN_HD T sigmoid(T x) {
#ifndef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return 1.0f / (1.0f + exp_host(-x));
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

template <class T>
FRNN_HD T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN stays NaN, as in torch.relu
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
