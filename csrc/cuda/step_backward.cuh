// One step backward, from the last step of the sequence to its first:
//   dh = dy[t] + (what the following step left) + sum over gates g of d_g(following step) W_hh[g]
//   (d, ds) = cell's backward;   grads[t] = d
// One launch. As in forward, a second product inside the cell or a projection takes one more each.
//
// What travels from step to step: the part of the states' gradients that does not pass through
// W_hh, wide, in the workspace ("carry"), and d itself, which the next launch reads from grads. dhn
// and dcn are the first carry. A row that takes no part in a step has d = 0 there and hands on all
// it was given.
#pragma once
#include "product.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

template <class Cell, class Data>
struct BackwardState {
  Wide<Data>* h;      // [B, P]
  Wide<Data>* inner;  // [S-1, B, H]

  static BackwardState in(Pieces& pieces, const SequenceSizes& n) {
    BackwardState s = {};
    s.h = pieces.take<Wide<Data>>(n.B * n.P);
    s.inner = pieces.take<Wide<Data>>((Cell::kStates - 1) * n.B * n.H);
    return s;
  }
};

// Times of the step at hand and of its neighbours in the order of forward; -1: there is none.
struct BackStep {
  int64_t t, before, after;
};

// d (gates first .. first + n - 1) at time t times their rows of W_hh: the terms of Product::run.
template <class Cell, class Data>
struct GateTerms {
  const Data* grads;
  const Data* weight;
  int64_t H, P;
  int first;

  __device__ GateTerms(const SequenceBackward& p, int64_t t, int first_gate)
      : grads(static_cast<const Data*>(p.grads) + t * p.n.B * Cell::kGrads * p.n.H),
        weight(static_cast<const Data*>(p.weight_hh)),
        H(p.n.H),
        P(p.n.P),
        first(first_gate) {}

  __device__ Term<Data> operator()(int g) const {
    return {grads + Cell::h_grad(first + g) * H, weight + (first + g) * H * P};
  }
};

// What forward knew of (t, b, unit): saved, the states before the step, the states after it.
template <class Cell, class Data>
struct Known {
  using W = Wide<Data>;
  W saved[Cell::kSaved], s[Cell::kStates], out[Cell::kStates];

  __device__ Known(const SequenceBackward& p, const BackStep& step, int64_t b, int64_t unit) {
    const int64_t B = p.n.B, H = p.n.H, t = step.t;
    const Data* from = static_cast<const Data*>(p.saved) + (t * B + b) * Cell::kSaved * H + unit;
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = widen(from[k * H]);

    // Before its first step a row has its initial states; y is no state where the row takes no
    // part.
    const bool first = step.before < 0 || !alive(p.lengths, b, step.before);
    s[0] = out[0] = W(0);  // out[0]: see Cell. h of another width than H has no unit's h.
    if (p.n.P == H) {
      const Data* y = static_cast<const Data*>(p.y);
      const Data* h = first ? static_cast<const Data*>(p.h0) : y + step.before * B * H;
      s[0] = widen(h[b * H + unit]);
    }
    const W* cells = static_cast<const W*>(p.cells);
#pragma unroll
    for (int i = 1; i < Cell::kStates; ++i) {
      const int64_t at = ((i - 1) * B + b) * H + unit, per_step = (Cell::kStates - 1) * B * H;
      s[i] = first ? widen(static_cast<const Data*>(p.c0)[at]) : cells[step.before * per_step + at];
      out[i] = cells[t * per_step + at];
    }
  }
};

// dh as it enters the cell, or the projection: the carry and the product with the following step's
// d. At a step: dh[t], whose dy is added. After the last step (t < 0): dh0.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_state(SequenceBackward p, BackwardState<Cell, Data> carry, BackStep step) {
  using W = Wide<Data>;
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, t = step.t;
  const Place at = place(B, P);
  const GateTerms<Cell, Data> terms(p, step.after, 0);
  Cols::run(shared, at, step.after < 0 ? 0 : Cell::kGates - Cell::kSecond, terms, H,
            Cell::kGrads * H, P);

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    const int64_t i = b * P + unit;
    W dh = carry.h[i] + sums[0];
    if (t < 0) {
      round_to(static_cast<Data*>(p.dh0)[i], dh);
      return;
    }
    const bool live = alive(p.lengths, b, t);
    carry.h[i] = live ? W(0) : dh;
    if (live && p.dy != nullptr) dh += widen(static_cast<const Data*>(p.dy)[t * B * P + i]);
    round_to(static_cast<Data*>(p.dh)[t * B * P + i], live ? dh : W(0));
  });
}

// The cell. Without a projection dh is made here; with one it is dh[t] W_hr.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_step(SequenceBackward p, BackwardState<Cell, Data> carry, BackStep step) {
  using W = Wide<Data>;
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, t = step.t;
  const bool projected = p.weight_hr != nullptr;
  const Place at = place(B, H);
  if (projected) {
    const Term<Data> dh = {static_cast<const Data*>(p.dh) + t * B * P,
                           static_cast<const Data*>(p.weight_hr)};
    Cols::run(shared, at, 1, [=](int) { return dh; }, P, P, H);
  } else {
    const GateTerms<Cell, Data> terms(p, step.after, 0);
    Cols::run(shared, at, step.after < 0 ? 0 : Cell::kGates - Cell::kSecond, terms, H,
              Cell::kGrads * H, P);
  }

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    const int64_t i = b * H + unit;
    const bool live = alive(p.lengths, b, t);
    W d[Cell::kGrads] = {}, ds[Cell::kStates] = {}, dout[Cell::kStates];
    dout[0] = sums[0] + (projected ? W(0) : carry.h[i]);
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) dout[k] = carry.inner[(k - 1) * B * H + i];
    if (live) {
      const Known<Cell, Data> known(p, step, b, unit);
      if (!projected && p.dy != nullptr) {
        dout[0] += widen(static_cast<const Data*>(p.dy)[t * B * H + i]);
      }
      Cell::backward(known.saved, known.s, known.out, dout, d, ds);
    }
    if (P == H && (live || !projected)) carry.h[i] = live ? ds[0] : dout[0];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) {
      carry.inner[(k - 1) * B * H + i] = live ? ds[k] : dout[k];
    }
    Data* grads = static_cast<Data*>(p.grads) + (t * B + b) * Cell::kGrads * H + unit;
#pragma unroll
    for (int k = 0; k < Cell::kGrads; ++k) round_to(grads[k * H], d[k]);
  });
}

// Cells with a second product: its operand's gradient dp = d W_hh of the last gates, and what
// follows.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_operand(SequenceBackward p, BackwardState<Cell, Data> carry, BackStep step) {
  using W = Wide<Data>;
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, t = step.t;
  const Place at = place(B, H);
  const GateTerms<Cell, Data> terms(p, t, Cell::kGates - Cell::kSecond);
  Cols::run(shared, at, Cell::kSecond, terms, H, Cell::kGrads * H, H);

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    if (!alive(p.lengths, b, t)) return;
    const int64_t i = b * H + unit;
    const Known<Cell, Data> known(p, step, b, unit);
    Data* grads = static_cast<Data*>(p.grads) + (t * B + b) * Cell::kGrads * H + unit;
    W d[Cell::kGrads], ds[Cell::kStates];
#pragma unroll
    for (int k = 0; k < Cell::kGrads; ++k) d[k] = widen(grads[k * H]);
    ds[0] = carry.h[i];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) ds[k] = carry.inner[(k - 1) * B * H + i];
    Cell::backward_operand(known.saved, known.s, sums[0], d, ds);
    carry.h[i] = ds[0];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) carry.inner[(k - 1) * B * H + i] = ds[k];
#pragma unroll
    for (int k = 0; k < Cell::kGrads; ++k) round_to(grads[k * H], d[k]);
  });
}

}  // namespace cuda
}  // namespace fusedrnn
