// A float whose sigmoid and tanh take a few instructions: for kernels in which gates are on the way
// from one step to the next, and whose data has 16 bits.
//
// exp and the quotient are the hardware's own, right to a few units in float's last place. tanh has
// an absolute error of that size, a relative one of nearly 1 where x is below 1e-7. (tanh.approx,
// one instruction, is right to 2^-11 only: a forget gate of 0.9999 would become anything from
// 0.9995 to 1, which is another memory after a thousand steps.) Where the data is float32 itself
// they are the standard library's, as in the stepwise kernels: BriefOf<float>.
#pragma once
#include <type_traits>

#include "device.cuh"

namespace fusedrnn {
namespace cuda {

template <bool kBrief>
struct Number {
  float v;
  Number() = default;
  FRNN_HD explicit Number(float value) : v(value) {}
  FRNN_HD Number& operator+=(Number b) {
    v += b.v;
    return *this;
  }
  friend FRNN_HD Number operator+(Number a, Number b) { return Number(a.v + b.v); }
  friend FRNN_HD Number operator-(Number a, Number b) { return Number(a.v - b.v); }
  friend FRNN_HD Number operator*(Number a, Number b) { return Number(a.v * b.v); }
  friend FRNN_HD Number operator/(Number a, Number b) {
#ifdef __CUDA_ARCH__
    if constexpr (kBrief) return Number(__fdividef(a.v, b.v));
#endif
    return Number(a.v / b.v);
  }
  friend FRNN_HD bool operator<(Number a, Number b) { return a.v < b.v; }
  friend FRNN_HD bool operator>(Number a, Number b) { return a.v > b.v; }
};
using Brief = Number<true>;
template <class Data>
using BriefOf = Number<sizeof(Data) == 2>;

template <bool kBrief>
FRNN_HD Number<kBrief> sigmoid(Number<kBrief> x) {
#ifdef __CUDA_ARCH__
  if constexpr (kBrief) return Number<kBrief>(__fdividef(1.0f, 1.0f + __expf(-x.v)));
#endif
  return Number<kBrief>(fusedrnn::sigmoid(x.v));
}

template <bool kBrief>
FRNN_HD Number<kBrief> tanh_of(Number<kBrief> x) {
#ifdef __CUDA_ARCH__
  if constexpr (kBrief) {
    return Number<kBrief>(1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x.v)));
  }
#endif
  return Number<kBrief>(fusedrnn::tanh_of(x.v));
}

// Of x <= 0.
template <bool kBrief>
FRNN_HD Number<kBrief> exp_of(Number<kBrief> x) {
#ifdef __CUDA_ARCH__
  if constexpr (kBrief) return Number<kBrief>(__expf(x.v));
#endif
  return Number<kBrief>(fusedrnn::exp_of(x.v));
}

// Its error is absolute too: that of 1 + e.
template <bool kBrief>
FRNN_HD Number<kBrief> log_sigmoid(Number<kBrief> x) {
#ifdef __CUDA_ARCH__
  if constexpr (kBrief) {
    return Number<kBrief>(fminf(x.v, 0.0f) - __logf(1.0f + __expf(-fabsf(x.v))));
  }
#endif
  return Number<kBrief>(fusedrnn::log_sigmoid(x.v));
}

}  // namespace cuda
}  // namespace fusedrnn
