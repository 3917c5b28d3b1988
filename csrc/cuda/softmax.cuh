// The softmax kernels' host side: launches on the given stream. Nothing is allocated, nothing
// waits: fit for capture in a CUDA graph.
#pragma once
#include <algorithm>

#include "softmax_backward.cuh"
#include "softmax_forward.cuh"
#include "softmax_launchers.h"
#include "softmax_search.cuh"

namespace fusedrnn {
namespace cuda {

template <DType kType>
const char* SoftmaxLaunch<kType>::forward(const SoftmaxForward& a, const SoftmaxTree& tree,
                                          const SoftmaxGpuPlan& plan, void* to) {
  using Data = typename DataOf<kType>::type;
  const auto stream = static_cast<cudaStream_t>(to);
  const int64_t most = ceil_div(std::min<int64_t>(a.n.R, kBlock * plan.path_rows), kColumns);
  const int shares = static_cast<int>(std::min<int64_t>(most, kRowShares));
  const int64_t ctas = ceil_div(a.n.N, kBlock) * shares;
  const char* wrong = start(softmax_logits<Data>, ctas, kThreads, stream, a, tree, plan, shares);
  if (wrong != nullptr) return wrong;
  return start(softmax_paths<Data>, a.n.N, kPathThreads, stream, a, tree, plan);
}

template <DType kType>
const char* SoftmaxLaunch<kType>::backward(const SoftmaxBackward& a, const SoftmaxTree& tree,
                                           const SoftmaxGpuPlan& plan, const SoftmaxRows& rows,
                                           void* workspace, void* to) {
  using Data = typename DataOf<kType>::type;
  const auto stream = static_cast<cudaStream_t>(to);
  const auto* met = static_cast<const MetRow*>(workspace);
  const int64_t across = ceil_div(a.n.H, kColumns), R = rows.count;
  const int64_t blocks = ceil_div(R, kBlock);
  const char* wrong = nullptr;
  if (a.dinput != nullptr && a.n.N * a.n.H > 0)
    wrong = start(softmax_input_grad<Data>, ceil_div(a.n.N, kBlock) * across, kThreads, stream, a,
                  tree, plan);
  if (wrong == nullptr && a.dweight != nullptr && R * a.n.H > 0)
    wrong = start(softmax_weight_grad<Data>, blocks * across, kThreads, stream, a, plan, met, R);
  if (wrong == nullptr && a.dbias != nullptr && R > 0)
    wrong = start(softmax_bias_grad<Data>, blocks, kBlock * kBiasShares, stream, a, plan, met, R);
  return wrong;
}

template <DType kType>
const char* SoftmaxLaunch<kType>::search(const SoftmaxSearch& a, const int32_t* word, int64_t ctas,
                                         void* scratch, void* to) {
  using Data = typename DataOf<kType>::type;
  const auto kernel = a.uniform == nullptr ? softmax_search<Data> : softmax_draw<Data>;
  return start(kernel, ctas, kSearchThreads, static_cast<cudaStream_t>(to), a, word, ctas,
               static_cast<Wide<Data>*>(scratch));
}

template <DType kType>
const char* SoftmaxLaunch<kType>::marked_logits(const SoftmaxSearch& a, const SoftmaxMarked& marked,
                                                void* logits, void* to) {
  using Data = typename DataOf<kType>::type;
  constexpr int64_t kMost = 444;  // CTAs: three an SM of the largest GPUs
  const int64_t tiles = ceil_div(marked.most, kBlock) * ceil_div(a.n.R, kColumns);
  const int64_t ctas = std::min(tiles, kMost);
  return start(softmax_marked_logits<Data>, ctas, kThreads, static_cast<cudaStream_t>(to), a,
               marked, ctas, static_cast<Wide<Data>*>(logits));
}

}  // namespace cuda
}  // namespace fusedrnn
