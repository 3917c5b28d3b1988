// What the kernels with W_hh on chip (cluster_*, grid_*) share of a GPU: what a warp multiplies and
// swaps with (Mma). csrc/testing/cluster_host.h has it for the host, so that the same control flow
// runs there.
#pragma once
#include "product_mma.cuh"

namespace fusedrnn {
namespace cuda {

constexpr uint32_t kTf32 = 0xffffe000;  // the bits of a float that tf32 has

}  // namespace cuda
}  // namespace fusedrnn

#ifdef FUSEDRNN_CUDA_HOST
#include "../testing/cluster_host.h"
#endif

// On older GPUs these kernels are empty.
#if defined(FUSEDRNN_CUDA_HOST) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FRNN_RESIDENT
#endif

#if defined(FRNN_RESIDENT) && !defined(FUSEDRNN_CUDA_HOST)
namespace fusedrnn {
namespace cuda {

struct Mma {
  // sums += a b. All lanes of a warp take part, here and below.
  template <class Data>
  static __device__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
    mma(Data(), sums, a, b0, b1);
  }
  // A float rounded to tf32, halves away from zero; the bits that tf32 has not may be any.
  static __device__ uint32_t rounded(uint32_t word) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(__uint_as_float(word)));
    return word;
  }
  // What the lane that differs in these bits gave.
  template <class T>
  static __device__ T swap(T mine, int bits) {
    return __shfl_xor_sync(0xffffffffu, mine, bits);
  }
};

// A CTA's dynamic shared memory.
__device__ inline char* cta_memory() {
  extern __shared__ __align__(128) char resident_memory[];
  return resident_memory;
}

}  // namespace cuda
}  // namespace fusedrnn
#endif
