// Finds the CUDA kernels of a cell by name. Each call goes to the cluster or the grid kernel where
// the planner says so, else to the stepwise kernel of its dtype.
#include <algorithm>
#include <cstring>

#include "launchers.h"
// On the host each kernel is tested in a module of its own: here the stepwise ones are.
#ifndef FUSEDRNN_CUDA_HOST
#include "choice.h"
#endif

namespace fusedrnn {
namespace {

using cuda::Stepwise;

// call(kernels of this dtype)
template <class Cell, class F>
auto with_dtype(DType dtype, F call) {
  switch (dtype) {
    case DType::f64:
      return call(Stepwise<Cell, DType::f64>());
    case DType::f32:
      return call(Stepwise<Cell, DType::f32>());
    case DType::bf16:
      return call(Stepwise<Cell, DType::bf16>());
    case DType::f16:
      break;
  }
  return call(Stepwise<Cell, DType::f16>());
}

template <class Cell>
const char* forward(const SequenceForward* p, int directions, void* workspace, void* stream) {
#ifndef FUSEDRNN_CUDA_HOST
  const char* wrong = nullptr;
  const auto run = [&](auto k, const auto& work, bool& refused) {
    return k.forward(p, directions, work, workspace, stream, refused);
  };
  if (cuda::by_resident<Cell>(p, directions, false, wrong, run)) return wrong;
#endif
  return with_dtype<Cell>(p->n.dtype,
                          [&](auto k) { return k.forward(p, directions, workspace, stream); });
}

template <class Cell>
const char* backward(const SequenceBackward* p, int directions, void* workspace, void* stream) {
#ifndef FUSEDRNN_CUDA_HOST
  const char* wrong = nullptr;
  const auto run = [&](auto k, const auto& work, bool& refused) {
    return k.backward(p, directions, work, stream, refused);
  };
  if (cuda::by_resident<Cell>(p, directions, true, wrong, run)) return wrong;
#endif
  return with_dtype<Cell>(p->n.dtype,
                          [&](auto k) { return k.backward(p, directions, workspace, stream); });
}

template <class Cell>
size_t workspace_bytes(const SequenceSizes& n, bool back, bool save) {
  size_t bytes = with_dtype<Cell>(n.dtype, [&](auto k) { return k.workspace_bytes(n, back); });
#ifndef FUSEDRNN_CUDA_HOST
  // One of the two serves the call: which one depends on the GPU at that moment.
  const bool by_grid = !back && !save && n.dtype != DType::f64;
  if (by_grid) bytes = std::max(bytes, cuda::Gridded<Cell, DType::bf16>::workspace_bytes(n));
#else
  (void)save;
#endif
  return bytes;
}

#define X(...) \
  {__VA_ARGS__::kName, forward<__VA_ARGS__>, backward<__VA_ARGS__>, workspace_bytes<__VA_ARGS__>},
const SequenceKernels kKernels[] = {FRNN_FOR_EACH_CELL(X)};
#undef X

}  // namespace

const SequenceKernels* find_cuda_sequence(const char* cell) {
  for (const SequenceKernels& k : kKernels) {
    if (std::strcmp(k.cell, cell) == 0) return &k;
  }
  return nullptr;
}

}  // namespace fusedrnn
