// The stepwise kernel's host side: a whole sequence as one launch per step (and per extra product)
// on the given stream. Nothing is allocated, nothing waits: fit for capture in a CUDA graph.
#pragma once
#include <utility>

#include "launchers.h"
#include "norm_backward.cuh"
#include "norm_forward.cuh"
#include "step_arrive.cuh"
#include "step_backward.cuh"
#include "step_forward.cuh"

namespace fusedrnn {
namespace cuda {

// What the kernels take for granted, or why they cannot run.
template <class Cell>
const char* refusal(const SequenceSizes& n, bool projected) {
  if (n.P != n.H && !projected) return "h has another width than H, but no projection";
  if (projected && Cell::kSecond > 0) return "a cell with a second product takes no projection";
  return nullptr;
}

#define FRNN_TRY(call)                            \
  do {                                            \
    if (const char* wrong = (call)) return wrong; \
  } while (false)

// A step with layer normalisation.
template <class Cell, class Data>
const char* normed_step(const ForwardLayer<Data>& layer, int directions, cudaStream_t stream,
                        int64_t step) {
  if constexpr (Cell::kNorms > 0) {
    const int64_t B = layer.p[0].n.B, units = Cell::kGates * layer.p[0].n.H;
    FRNN_TRY(launch(forward_product<Data>, StepwiseTile::ctas(B, units), directions, kThreads,
                    stream, layer, Cell::kGates));
    return launch(forward_row<Cell, Data>, B, directions, kRowThreads, stream, layer, step);
  }
  return nullptr;
}

// And backward, after what arrives at h.
template <class Cell, class Data>
const char* normed_step(const BackwardLayer<Data>& layer, int directions, cudaStream_t stream,
                        int64_t step) {
  if constexpr (Cell::kNorms > 0) {
    const SequenceBackward& p = layer.p[0];
    if (p.weight_hr != nullptr) {
      FRNN_TRY(launch(backward_hidden<Data>, StepwiseTile::ctas(p.n.B, p.n.H), directions, kThreads,
                      stream, layer, step));
    }
    return launch(backward_row<Cell, Data>, p.n.B, directions, kRowThreads, stream, layer, step);
  }
  return nullptr;
}

// The directions with their states in the workspace.
template <class Cell, class State, class Args>
Layer<Args, State> in_workspace(const Args* p, int directions, void* workspace) {
  Layer<Args, State> layer = {};
  Pieces pieces{static_cast<char*>(workspace)};
  for (int d = 0; d < directions; ++d) {
    layer.p[d] = p[d];
    layer.state[d] = State::template in<Cell>(pieces, p[d].n);
  }
  return layer;
}

template <class Cell, DType kType>
const char* Stepwise<Cell, kType>::forward(const SequenceForward* p, int directions,
                                           void* workspace, void* to) {
  using Data = typename DataOf<kType>::type;
  const SequenceSizes& n = p->n;
  const bool projected = p->weight_hr != nullptr;
  if (n.B == 0) return nullptr;
  FRNN_TRY(refusal<Cell>(n, projected));
  const auto stream = static_cast<cudaStream_t>(to);
  // CTAs of a launch whose results are H wide, and P wide.
  const int64_t over_h = StepwiseTile::ctas(n.B, n.H), over_p = StepwiseTile::ctas(n.B, n.P);
  auto layer = in_workspace<Cell, ForwardState<Data>>(p, directions, workspace);
  const auto run = [&](auto kernel, int64_t ctas, int64_t step) {
    return launch(kernel, ctas, directions, kThreads, stream, layer, step);
  };

  FRNN_TRY(launch_copy(forward_begin<Data>, layer, directions, stream));
  for (int64_t step = 0; step < n.T; ++step) {
    if constexpr (Cell::kSecond > 0) FRNN_TRY(run(forward_operand<Cell, Data>, over_h, step));
    if (normed<Cell>(n.options)) {
      FRNN_TRY((normed_step<Cell, Data>(layer, directions, stream, step)));
    } else {
      FRNN_TRY(run(forward_step<Cell, Data>, over_h, step));
    }
    if (projected) FRNN_TRY(run(forward_projection<Data>, over_p, step));
    for (auto& state : layer.state) std::swap(state.operand, state.next);
  }
  return launch_copy(forward_end<Data>, layer, directions, stream);
}

template <class Cell, DType kType>
const char* Stepwise<Cell, kType>::backward(const SequenceBackward* p, int directions,
                                            void* workspace, void* to) {
  using Data = typename DataOf<kType>::type;
  const SequenceSizes& n = p->n;
  const bool projected = p->weight_hr != nullptr;
  if (n.B == 0) return nullptr;
  FRNN_TRY(refusal<Cell>(n, projected));
  const auto stream = static_cast<cudaStream_t>(to);
  // CTAs of a launch whose results are H wide, and P wide.
  const int64_t over_h = StepwiseTile::ctas(n.B, n.H), over_p = StepwiseTile::ctas(n.B, n.P);
  auto layer = in_workspace<Cell, BackwardState<Data>>(p, directions, workspace);
  for (int d = 0; d < directions; ++d) {
    if (p[d].dreset_h == nullptr) layer.state[d].reset_h = nullptr;
    if (p[d].dreset_c == nullptr) layer.state[d].reset_inner = nullptr;
  }
  const auto run = [&](auto kernel, int64_t ctas, int64_t step) {
    return launch(kernel, ctas, directions, kThreads, stream, layer, step);
  };

  const auto arrive = [&](int64_t step) -> const char* {
    if (!arrives_apart<Cell>(n.options) || step + 1 == n.T) return nullptr;
    return launch(backward_arrive<Data>, StepwiseTile::ctas(n.B, n.depth()), directions, kThreads,
                  stream, layer, step, MetGates::of<Cell>(n.options));
  };

  FRNN_TRY(launch_copy(backward_begin<Data>, layer, directions, stream));
  for (int64_t step = n.T - 1; step >= 0; --step) {
    FRNN_TRY(arrive(step));
    if (projected) FRNN_TRY(run(backward_state<Cell, Data>, over_p, step));
    if (normed<Cell>(n.options)) {
      FRNN_TRY((normed_step<Cell, Data>(layer, directions, stream, step)));
      continue;
    }
    FRNN_TRY(run(backward_step<Cell, Data>, over_h, step));
    if constexpr (Cell::kSecond > 0) FRNN_TRY(run(backward_operand<Cell, Data>, over_h, step));
  }
  FRNN_TRY(arrive(-1));
  FRNN_TRY(run(backward_state<Cell, Data>, over_p, -1));
  return launch_copy(backward_end<Data>, layer, directions, stream);
}

#undef FRNN_TRY

template <class Cell, DType kType>
size_t Stepwise<Cell, kType>::workspace_bytes(const SequenceSizes& n, bool backward) {
  using Data = typename DataOf<kType>::type;
  Pieces pieces{nullptr};
  if (backward) {
    BackwardState<Data>::template in<Cell>(pieces, n);
  } else {
    ForwardState<Data>::template in<Cell>(pieces, n);
  }
  return pieces.used;
}

}  // namespace cuda
}  // namespace fusedrnn
