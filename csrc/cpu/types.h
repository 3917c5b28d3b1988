// The dtypes of tensors on the CPU: 16-bit ones are converted on load and store, all arithmetic is
// in float or double. The conversions are branch-free so that loops over units vectorise.
#pragma once
#include <cstdint>
#include <cstring>

#include "../activations.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct bf16 {
  uint16_t bits;
};
inline FRNN_INLINE float load(bf16 v) { return float_of(uint32_t(v.bits) << 16); }
inline FRNN_INLINE void store(bf16& v, float x) {  // round to nearest even
  const uint32_t u = bits_of(x), rounded = u + 0x7fffu + ((u >> 16) & 1u);
  v.bits = uint16_t((x != x ? 0x7fc00000u : rounded) >> 16);
}

struct f16 {
  uint16_t bits;
};
inline FRNN_INLINE float load(f16 v) {
  // The 15 low bits, moved to float's place, are the value times 2^-112; infinity and NaN keep
  // theirs.
  const uint32_t low = uint32_t(v.bits & 0x7fffu) << 13, sign = uint32_t(v.bits & 0x8000u) << 16;
  const float scaled = float_of(low) * 0x1p112f;
  const uint32_t special = low | 0x7f800000u;
  return float_of((low >= 0x0f800000u ? special : bits_of(scaled)) | sign);
}
inline FRNN_INLINE void store(f16& v, float x) {  // round to nearest even
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  // Normal results: round the mantissa's low 13 bits, shift the exponent's bias by 112.
  const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  // Subnormal results: adding 0.5 lets the float unit round at 2^-24.
  const uint32_t subnormal = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
  uint32_t h = a < (113u << 23) ? subnormal : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and more
  h = a > 0x7f800000u ? 0x7e00u : h;   // NaN
  v.bits = uint16_t(h | sign);
}

inline FRNN_INLINE float load(float v) { return v; }
inline FRNN_INLINE void store(float& v, float x) { v = x; }
inline FRNN_INLINE double load(double v) { return v; }
inline FRNN_INLINE void store(double& v, double x) { v = x; }

// float for 16-bit data, else the data's own type.
template <class D>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <class D>
using State = typename StateOf<D>::type;

// x as it is after being stored in a tensor of D.
template <class D>
inline FRNN_INLINE State<D> rounded(State<D> x) {
  D d;
  store(d, x);
  return load(d);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
