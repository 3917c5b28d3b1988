// float32 on tensor cores, which multiply tf32: the first 11 bits of a number in the place of 24.
// They do not look at the others.
//
//   rounded   one product of rounded numbers, where torch's switch allows it: 2^-11 of each number
//   parts     a number is the sum of two of tf32, high and low, |low| <= 2^-11 |high|; of the four
//             products three are made, and low * low, 2^-22 of the whole, is left out
//
// Tensor cores do not round their sums: they cut them off. What they add to is therefore zero in
// each product of parts, and its sum is added here, rounded (Ootomo and Yokota 2022): a hundred
// products in a row would lose six bits. An infinite number has no low part: it becomes NaN.
#pragma once
#include "resident_device.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_RESIDENT

__device__ inline float float_of_word(uint32_t word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}
// The parts of a number. low has two bits more than are looked at, of either sign.
__device__ inline void take_apart(uint32_t word, uint32_t& high, uint32_t& low) {
  high = (word + 0x1000u) & kTf32;
  const float rest = float_of_word(word) - float_of_word(high);
  memcpy(&low, &rest, 4);
}

// What a lane has of B in a span, as products take it: rounded, or in parts.
struct Parts {
  uint4 high, low;
  __device__ Parts(const uint4& given, bool tf32) {
    if (tf32) {
      high = {Mma::rounded(given.x), Mma::rounded(given.y), Mma::rounded(given.z),
              Mma::rounded(given.w)};
      low = {0, 0, 0, 0};
    } else {
      take_apart(given.x, high.x, low.x), take_apart(given.y, high.y, low.y);
      take_apart(given.z, high.z, low.z), take_apart(given.w, high.w, low.w);
    }
  }
};

// sums += a b, in parts.
__device__ inline void multiply_parts(float (&sums)[4], const uint32_t (&a)[4], uint32_t high0,
                                      uint32_t high1, uint32_t low0, uint32_t low1) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) take_apart(a[i], high[i], low[i]);
  float sum[4] = {};
  Mma::multiply<float>(sum, low, high0, high1);
  Mma::multiply<float>(sum, high, low0, low1);
  Mma::multiply<float>(sum, high, high0, high1);
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] += sum[e];
}

// Both products of a span. Where numbers are rounded, those of a have been once for all steps.
__device__ inline void multiply_float(float (&first)[4], float (&second)[4],
                                      const uint32_t (&a)[2][4], const Parts& b, bool tf32) {
  if (tf32) {
    Mma::multiply<float>(first, a[0], b.high.x, b.high.y);
    Mma::multiply<float>(second, a[1], b.high.z, b.high.w);
  } else {
    multiply_parts(first, a[0], b.high.x, b.high.y, b.low.x, b.low.y);
    multiply_parts(second, a[1], b.high.z, b.high.w, b.low.z, b.low.w);
  }
}

#endif

}  // namespace cuda
}  // namespace fusedrnn
