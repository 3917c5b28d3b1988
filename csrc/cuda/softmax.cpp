// Picks the CUDA softmax kernels of a dtype.
#include <cstdint>

#include "softmax_launchers.h"

namespace fusedrnn {
namespace {

using cuda::SoftmaxLaunch;

// call(kernels of this dtype)
template <class F>
const char* with_dtype(DType dtype, F call) {
  switch (dtype) {
    case DType::f64:
      return call(SoftmaxLaunch<DType::f64>());
    case DType::f32:
      return call(SoftmaxLaunch<DType::f32>());
    case DType::bf16:
      return call(SoftmaxLaunch<DType::bf16>());
    case DType::f16:
      break;
  }
  return call(SoftmaxLaunch<DType::f16>());
}

}  // namespace

size_t cuda_softmax_forward_workspace(int64_t N) { return cuda::plan_softmax_bytes(N); }

size_t cuda_softmax_backward_workspace(int64_t rows) { return cuda::meet_rows_bytes(rows); }

const char* cuda_softmax_forward(const SoftmaxForward& a, const SoftmaxTree& tree,
                                 const SoftmaxTargets& targets, const SoftmaxGpuPlan& plan,
                                 void* workspace, void* stream) {
  constexpr int64_t kMost = INT32_MAX;
  if (a.n.N > kMost || a.n.R > kMost || tree.words >= kMost || plan.path_rows > kMost / 32)
    return "more than 2^31 - 1 tokens, weight rows or rows that a block of tokens meets";
  if (const char* wrong = cuda::plan_softmax(tree, targets, plan, workspace, stream)) return wrong;
  if (a.n.N == 0) return nullptr;
  return with_dtype(a.n.dtype, [&](auto k) { return k.forward(a, tree, plan, stream); });
}

const char* cuda_softmax_backward(const SoftmaxBackward& a, const SoftmaxTree& tree,
                                  const SoftmaxGpuPlan& plan, const SoftmaxRows& rows,
                                  void* workspace, void* stream) {
  if (const char* wrong = cuda::meet_rows(rows, tree, plan, workspace, stream)) return wrong;
  return with_dtype(a.n.dtype,
                    [&](auto k) { return k.backward(a, tree, plan, rows, workspace, stream); });
}

size_t cuda_softmax_search_workspace(const SoftmaxSearch& a) {
  return cuda::search_softmax_bytes(a);
}

const char* cuda_softmax_search(const SoftmaxSearch& a, void* workspace, void* stream) {
  if (a.n.N == 0) return nullptr;
  if (a.k > kMostBest) return "a search on a GPU finds at most 128 words";
  if (a.n.N >= INT32_MAX || a.tree.words >= INT32_MAX || a.n.R > INT32_MAX)
    return "more than 2^31 - 1 tokens, words or weight rows";
  return with_dtype(a.n.dtype, [&](auto k) {
    return cuda::search_softmax(a, {k.search, k.marked_logits}, workspace, stream);
  });
}

}  // namespace fusedrnn
