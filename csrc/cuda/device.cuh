// What the CUDA kernels stand on: data types and their wide partners, launches, error texts.
//
// Nothing here or in the kernels needs a GPU to be tested: with FUSEDRNN_CUDA_HOST the same sources
// compile for the host, where csrc/testing/cuda_host.h runs every CUDA thread as a fiber.
#pragma once
#ifdef FUSEDRNN_CUDA_HOST
#include "../testing/cuda_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "../cells.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cuda {

template <DType>
struct DataOf;
template <>
struct DataOf<DType::f64> {
  using type = double;
};
template <>
struct DataOf<DType::f32> {
  using type = float;
};
template <>
struct DataOf<DType::bf16> {
  using type = __nv_bfloat16;
};
template <>
struct DataOf<DType::f16> {
  using type = __half;
};

// The type of states and accumulators: float for 16-bit data.
template <class Data>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class Data>
using Wide = typename WideOf<Data>::type;

__device__ inline double widen(double v) { return v; }
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }

__device__ inline void round_to(double& to, double v) { to = v; }
__device__ inline void round_to(float& to, float v) { to = v; }
__device__ inline void round_to(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }
__device__ inline void round_to(__half& to, float v) { to = __float2half_rn(v); }

#ifndef FUSEDRNN_CUDA_HOST
// CTAs are numbered in x, since the other dimensions end at 65535; y is the layer's direction.
//
// Returns null or what is wrong. The launch's own code, not cudaGetLastError's, which may be
// another call's; that one is cleared, so that nobody reports this error a second time.
template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t ctas, int directions, int threads,
                   cudaStream_t stream, const A&... args) {
  if (ctas > 0x7fffffff) return "the problem needs more than 2^31 - 1 CTAs in one launch";
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ctas), static_cast<unsigned>(directions));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error == cudaSuccess) return nullptr;
  (void)cudaGetLastError();
  return cudaGetErrorString(error);
}

// The memory of one CTA. Called once in a kernel.
template <class T>
__device__ inline T& shared_memory() {
  __shared__ T memory;
  return memory;
}
#endif

}  // namespace cuda
}  // namespace fusedrnn
