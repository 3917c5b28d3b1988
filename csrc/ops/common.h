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

// A contiguous tensor on like's device that holds anything. Not new_empty, which asks the
// dispatcher: 2.5 us instead of 0.7, and an op allocates seven.
inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& size,
                       std::optional<ScalarType> dtype = std::nullopt) {
  int32_t type = 0, device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  if (dtype) type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  std::vector<int64_t> stride(size.size(), 1);
  for (size_t i = size.size(); i-- > 1;) stride[i - 1] = stride[i] * (size[i] > 1 ? size[i] : 1);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(),
                                                  type, device, like.get_device(), &handle));
  return Tensor(handle);
}

// Whether products of float32 with W_hh may be rounded to tf32 on a GPU: fusedrnn/_precision.py,
// which reads torch's switch.
inline bool recurrence_in_tf32() {
  StableIValue stack[1] = {};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("fusedrnn::recurrence_in_tf32", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
}

}  // namespace fusedrnn
