// Products of CPU matrices.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <utility>

#include "../cpu/matrix.h"
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

// As the CPU kernel takes it; rows or columns of each must be in a row, as those of matrix() are.
inline MatrixProduct product_of(const Tensor& out, const Tensor& a, const Tensor& b,
                                const std::optional<Tensor>& added) {
  const auto turned = [](const Tensor& t) { return t.stride(1) != 1 && t.size(1) != 1; };
  const auto row = [&](const Tensor& t) { return t.stride(turned(t) ? 1 : 0); };
  const bool row_added = added && added->dim() == 1;
  return {.dtype = dtype_of(out),
          .threads = int(torch::stable::get_num_threads()),
          .M = out.size(0),
          .N = out.size(1),
          .K = a.size(1),
          .a = a.const_data_ptr(),
          .a_row = row(a),
          .a_transposed = turned(a),
          .b = b.const_data_ptr(),
          .b_row = row(b),
          .b_transposed = turned(b),
          .bias = row_added ? added->const_data_ptr() : nullptr,
          .c = out.mutable_data_ptr(),
          .c_row = row(out),
          .add = added && !row_added};
}

// Below so many rows packing the other matrix costs more than it saves.
constexpr int64_t kFewRows = 8;

// out = a b, or out = a b + added, which may be a row that is added to all, or out itself. By the
// CPU's own kernel where there is one (csrc/cpu/matrix.h), else by torch's BLAS.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b,
                     const std::optional<Tensor>& added = std::nullopt) {
  if (has_matrix_product(dtype_of(out)) && out.size(0) >= kFewRows && a.size(1) >= kFewRows) {
    const MatrixProduct product = product_of(out, a, b, added);
    if (!product.b_transposed || product.b_row == product.K) {
      const char* wrong = matrix_product(product);
      STD_TORCH_CHECK(wrong == nullptr, "fusedrnn: ", wrong ? wrong : "");
      return;
    }
  }
  TORCH_ERROR_CODE_CHECK(
      added ? aoti_torch_cpu_addmm_out(out.get(), added->get(), a.get(), b.get(), 1, 1)
            : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

}  // namespace fusedrnn
