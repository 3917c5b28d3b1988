// Products of CPU matrices by torch's BLAS.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <utility>

#include "common.h"

namespace fusedrnn {

// rows x columns numbers of t from an element on; rows are `pitch` apart.
inline Tensor matrix(const Tensor& t, int64_t from, int64_t rows, int64_t columns, int64_t pitch,
                     bool transposed = false) {
  int64_t size[] = {rows, columns}, stride[] = {pitch, 1};
  if (transposed) std::swap(size[0], size[1]), std::swap(stride[0], stride[1]);
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(  // which adds the tensor's own offset
      aoti_torch__reinterpret_tensor(t.get(), 2, size, stride, from, &view));
  return Tensor(view);
}

// out = a b, or out = a b + added, which may be a row that is added to all, or out itself.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b,
                     const std::optional<Tensor>& added = std::nullopt) {
  TORCH_ERROR_CODE_CHECK(
      added ? aoti_torch_cpu_addmm_out(out.get(), added->get(), a.get(), b.get(), 1, 1)
            : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

}  // namespace fusedrnn
