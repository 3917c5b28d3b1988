// What the op files share: the stable ABI's headers, dtypes, argument checks, the CUDA stream.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "../sequence.h"

#ifdef FUSEDRNN_CUDA
// Weak: libtorch_cpu does not have it, and Python opens libraries with RTLD_NOW.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace fusedrnn {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, "fusedrnn: dtype must be float64, float32, bfloat16 or float16");
  return DType::f32;
}

// 16-bit data has float32 state and accumulation.
inline ScalarType state_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline const void* data(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

inline Tensor allocate(const Tensor& like, std::vector<int64_t> size,
                       std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, size, dtype);
}

}  // namespace fusedrnn
