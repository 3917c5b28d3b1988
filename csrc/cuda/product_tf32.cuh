// float32 on tensor cores, which multiply tf32: 11 bits of a number in the place of 24.
//
//   rounded   one product of rounded numbers, where torch's switch allows it: 2^-11 of each number
//   split     each number is the sum of two of tf32, a = high + low, |low| <= 2^-11 |a|; of the
//   four
//             products three are made, and low * low, 2^-22 of the whole, is left out
//
// Tensor cores do not round their sums: they cut them off. What they add to is therefore zero in
// each split product, and its sum is added here, rounded (Ootomo and Yokota 2022): a hundred
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

// sums += a b; a has been rounded before, once for all steps.
__device__ inline void multiply_rounded(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  Mma::multiply<float>(sums, a, Mma::rounded(float_of_word(b0)), Mma::rounded(float_of_word(b1)));
}

// The two parts of a number.
struct Split {
  uint32_t high, low;
};
__device__ inline Split split(uint32_t word) {
  const float value = float_of_word(word);
  const uint32_t high = Mma::rounded(value);
  return {high, Mma::rounded(value - float_of_word(high))};
}

// sums += a b.
__device__ inline void multiply_split(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                      uint32_t b1) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Split of_a = split(a[i]);
    high[i] = of_a.high, low[i] = of_a.low;
  }
  const Split first = split(b0), second = split(b1);
  float sum[4] = {};
  Mma::multiply<float>(sum, low, first.high, second.high);
  Mma::multiply<float>(sum, high, first.low, second.low);
  Mma::multiply<float>(sum, high, first.high, second.high);
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] += sum[e];
}

#endif

}  // namespace cuda
}  // namespace fusedrnn
