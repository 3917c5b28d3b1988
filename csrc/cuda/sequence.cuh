// The stepwise kernel's host side: a whole sequence as one launch per step (and per extra product)
// on the given stream. Nothing is allocated, nothing waits: fit for capture in a CUDA graph.
#pragma once
#include <utility>

#include "launchers.h"
#include "step_backward.cuh"
#include "step_forward.cuh"

namespace fusedrnn {
namespace cuda {

// What the kernels take for granted, or why they cannot run.
template <class Cell>
const char* refusal(const SequenceSizes& n, const void* weight_hr) {
  if (n.P != n.H && weight_hr == nullptr) return "h has another width than H, but no projection";
  if (n.P != n.H && Cell::kSecond > 0) return "a cell with a second product takes no projection";
  return nullptr;
}

#define FRNN_TRY(call)                            \
  do {                                            \
    if (const char* wrong = (call)) return wrong; \
  } while (false)

template <class Cell, DType kType>
const char* Stepwise<Cell, kType>::forward(const SequenceForward& p, void* workspace, void* to) {
  using Data = typename DataOf<kType>::type;
  const SequenceSizes& n = p.n;
  if (n.B == 0) return nullptr;
  FRNN_TRY(refusal<Cell>(n, p.weight_hr));
  const auto stream = static_cast<cudaStream_t>(to);
  // CTAs of a launch whose results are H wide, and P wide.
  const int64_t over_h = StepwiseTile::ctas(n.B, n.H), over_p = StepwiseTile::ctas(n.B, n.P);
  Pieces pieces{static_cast<char*>(workspace)};
  auto state = ForwardState<Cell, Data>::in(pieces, n);
  const int64_t inner = (Cell::kStates - 1) * n.B * n.H;

  FRNN_TRY(launch_load<Data>(n.B * n.P, p.h0, state.h, state.operand, stream));
  FRNN_TRY(launch_load<Data>(inner, p.c0, state.inner, nullptr, stream));
  for (int64_t i = 0; i < n.T; ++i) {
    const int64_t t = n.reverse ? n.T - 1 - i : i;
    if constexpr (Cell::kSecond > 0) {
      FRNN_TRY(launch(forward_operand<Cell, Data>, over_h, kThreads, stream, p, state, t));
    }
    FRNN_TRY(launch(forward_step<Cell, Data>, over_h, kThreads, stream, p, state, t));
    if constexpr (Cell::kSecond == 0) {
      if (p.weight_hr != nullptr) {
        FRNN_TRY(launch(forward_projection<Cell, Data>, over_p, kThreads, stream, p, state, t));
      }
    }
    std::swap(state.operand, state.next);
  }
  FRNN_TRY(launch_store<Data>(n.B * n.P, state.h, p.hn, stream));
  return launch_store<Data>(inner, state.inner, p.cn, stream);
}

template <class Cell, DType kType>
const char* Stepwise<Cell, kType>::backward(const SequenceBackward& p, void* workspace, void* to) {
  using Data = typename DataOf<kType>::type;
  const SequenceSizes& n = p.n;
  if (n.B == 0) return nullptr;
  FRNN_TRY(refusal<Cell>(n, p.weight_hr));
  const auto stream = static_cast<cudaStream_t>(to);
  // CTAs of a launch whose results are H wide, and P wide.
  const int64_t over_h = StepwiseTile::ctas(n.B, n.H), over_p = StepwiseTile::ctas(n.B, n.P);
  Pieces pieces{static_cast<char*>(workspace)};
  const auto carry = BackwardState<Cell, Data>::in(pieces, n);
  const int64_t inner = (Cell::kStates - 1) * n.B * n.H;

  FRNN_TRY(launch_load<Data>(n.B * n.P, p.dhn, carry.h, nullptr, stream));
  FRNN_TRY(launch_load<Data>(inner, p.dcn, carry.inner, nullptr, stream));
  const auto time = [&](int64_t i) {  // of step number i in the order of forward; -1 outside
    return i < 0 || i >= n.T ? -1 : n.reverse ? n.T - 1 - i : i;
  };
  for (int64_t i = n.T - 1; i >= 0; --i) {
    const BackStep step = {time(i), time(i - 1), time(i + 1)};
    if constexpr (Cell::kSecond == 0) {
      if (p.weight_hr != nullptr) {
        FRNN_TRY(launch(backward_state<Cell, Data>, over_p, kThreads, stream, p, carry, step));
      }
    }
    FRNN_TRY(launch(backward_step<Cell, Data>, over_h, kThreads, stream, p, carry, step));
    if constexpr (Cell::kSecond > 0) {
      FRNN_TRY(launch(backward_operand<Cell, Data>, over_h, kThreads, stream, p, carry, step));
    }
  }
  const BackStep last = {-1, -1, time(0)};
  FRNN_TRY(launch(backward_state<Cell, Data>, over_p, kThreads, stream, p, carry, last));
  return launch_store<Data>(inner, carry.inner, p.dc0, stream);
}

#undef FRNN_TRY

template <class Cell, DType kType>
size_t Stepwise<Cell, kType>::workspace_bytes(const SequenceSizes& n, bool backward) {
  using Data = typename DataOf<kType>::type;
  Pieces pieces{nullptr};
  if (backward) {
    BackwardState<Cell, Data>::in(pieces, n);
  } else {
    ForwardState<Cell, Data>::in(pieces, n);
  }
  return pieces.used;
}

}  // namespace cuda
}  // namespace fusedrnn
