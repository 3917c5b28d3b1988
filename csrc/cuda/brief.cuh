// A float whose sigmoid and tanh take a few instructions: for kernels in which gates are on the way
// from one step to the next, and whose data has 16 bits.
//
// exp and the quotient are the hardware's own, right to a few units in float's last place. tanh has
// an absolute error of that size, a relative one of nearly 1 where x is below 1e-7. (tanh.approx,
// one instruction, is right to 2^-11 only: a forget gate of 0.9999 would become anything from
// 0.9995 to 1, which is another memory after a thousand steps.)
#pragma once
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

struct Brief {
  float v;
  Brief() = default;
  FRNN_HD explicit Brief(float value) : v(value) {}
  FRNN_HD Brief& operator+=(Brief b) {
    v += b.v;
    return *this;
  }
};
FRNN_HD Brief operator+(Brief a, Brief b) { return Brief(a.v + b.v); }
FRNN_HD Brief operator-(Brief a, Brief b) { return Brief(a.v - b.v); }
FRNN_HD Brief operator*(Brief a, Brief b) { return Brief(a.v * b.v); }
FRNN_HD Brief operator/(Brief a, Brief b) {
#ifdef __CUDA_ARCH__
  return Brief(__fdividef(a.v, b.v));
#else
  return Brief(a.v / b.v);
#endif
}
FRNN_HD bool operator<(Brief a, Brief b) { return a.v < b.v; }
FRNN_HD bool operator>(Brief a, Brief b) { return a.v > b.v; }

FRNN_HD Brief sigmoid(Brief x) {
#ifdef __CUDA_ARCH__
  return Brief(__fdividef(1.0f, 1.0f + __expf(-x.v)));
#else
  return Brief(fusedrnn::sigmoid(x.v));
#endif
}

FRNN_HD Brief tanh_of(Brief x) {
#ifdef __CUDA_ARCH__
  return Brief(1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x.v)));
#else
  return Brief(fusedrnn::tanh_of(x.v));
#endif
}

// Of x <= 0.
FRNN_HD Brief exp_of(Brief x) {
#ifdef __CUDA_ARCH__
  return Brief(__expf(x.v));
#else
  return Brief(fusedrnn::exp_of(x.v));
#endif
}

// Its error is absolute too: that of 1 + e.
FRNN_HD Brief log_sigmoid(Brief x) {
#ifdef __CUDA_ARCH__
  return Brief(fminf(x.v, 0.0f) - __logf(1.0f + __expf(-fabsf(x.v))));
#else
  return Brief(fusedrnn::log_sigmoid(x.v));
#endif
}

}  // namespace cuda
}  // namespace fusedrnn
