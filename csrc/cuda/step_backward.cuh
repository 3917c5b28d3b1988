// One step backward, from the last step of the sequence to its first:
//   dh = dy[t] + (what the following step left) + sum over gates g of d_g(following step) W_hh[g]
//   (d, ds) = cell's backward;   grads[t] = d
// One launch. As in forward, a second product inside the cell or a projection takes one more each;
// full peepholes and layer normalisation take one for the product with W_hh (step_arrive.cuh).
//
// What travels from step to step: the part of the states' gradients that does not pass through
// W_hh, wide, in the workspace ("carry"), and d itself, which the next launch reads from grads. dhn
// and dcn are the first carry. A row that takes no part in a step has d = 0 there and hands on all
// it was given. Where a row was reset, the gradients of what it began with are the reset state's:
// they are added up there, and the step before gets nothing.
#pragma once
#include "../cells/nonlinearity.h"
#include "product.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

template <class Data>
struct BackwardState {
  Wide<Data>* h;            // [B, P]      the carry
  Wide<Data>* inner;        // [S-1, B, H]
  Wide<Data>* reset_h;      // [B, P]      what the reset state gets, or null: not wanted
  Wide<Data>* reset_inner;  // [S-1, B, H]
  int64_t inner_size;
  // Layer normalisation: gradients of the cells' h before a projection, and of the normalised W_hh
  // h.
  Wide<Data>* hidden;  // [B, H]
  Wide<Data>* normal;  // [B, G, H]

  template <class Cell>
  static BackwardState in(Pieces& pieces, const SequenceSizes& n) {
    BackwardState s = {};
    s.inner_size = (Cell::kStates - 1) * n.B * n.H;
    s.h = pieces.take<Wide<Data>>(n.B * n.P);
    s.inner = pieces.take<Wide<Data>>(s.inner_size);
    s.reset_h = pieces.take<Wide<Data>>(n.B * n.P);
    s.reset_inner = pieces.take<Wide<Data>>(s.inner_size);
    if (normed<Cell>(n.options)) {
      s.hidden = pieces.take<Wide<Data>>(n.B * n.H);
      s.normal = pieces.take<Wide<Data>>(n.B * Cell::kGates * n.H);
    }
    return s;
  }
};

template <class Data>
using BackwardLayer = Layer<SequenceBackward, BackwardState<Data>>;

// The gradient v goes to the reset state; what is left for the step before.
template <class W>
__device__ inline W give_reset(W* sum, int64_t i, W v) {
  if (sum != nullptr) sum[i] += v;
  return W(0);
}

// dhn and dcn.
template <class Data>
__global__ void __launch_bounds__(kCopyThreads)
    backward_begin(const __grid_constant__ BackwardLayer<Data> layer) {
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  const int64_t i = copy_index();
  if (i < p.n.B * p.n.P) {
    carry.h[i] = or_zero<Data>(p.dhn, i);
    if (carry.reset_h != nullptr) carry.reset_h[i] = 0;
  }
  if (i < carry.inner_size) {
    carry.inner[i] = or_zero<Data>(p.dcn, i);
    if (carry.reset_inner != nullptr) carry.reset_inner[i] = 0;
  }
}

// dc0 and the reset state's gradients. dh0 takes a product: see backward_state.
template <class Data>
__global__ void __launch_bounds__(kCopyThreads)
    backward_end(const __grid_constant__ BackwardLayer<Data> layer) {
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  const int64_t i = copy_index();
  if (i < p.n.B * p.n.P && carry.reset_h != nullptr) {
    round_to(static_cast<Data*>(p.dreset_h)[i], carry.reset_h[i]);
  }
  if (i < carry.inner_size) {
    round_to(static_cast<Data*>(p.dc0)[i], carry.inner[i]);
    if (carry.reset_inner != nullptr) {
      round_to(static_cast<Data*>(p.dreset_c)[i], carry.reset_inner[i]);
    }
  }
}

// d (gates first .. first + n - 1) of a step times their rows of W_hh: the terms of Product::run.
template <class Cell, class Data>
struct GateTerms {
  const Data* grads;
  const Data* weight;
  int64_t H, P;
  int first;

  __device__ GateTerms(const SequenceBackward& p, int64_t step, int first_gate)
      : grads(static_cast<const Data*>(p.grads) +
              time_of(p.n, step) * p.n.B * Cell::kGrads * p.n.H),
        weight(static_cast<const Data*>(p.weight_hh)),
        H(p.n.H),
        P(p.n.P),
        first(first_gate) {}

  __device__ Term<Data> operator()(int g) const {
    return {grads + Cell::h_grad(first + g) * H, weight + (first + g) * H * P};
  }
};

// How many gates of the step after `step` met h, and have not been multiplied with W_hh yet.
template <class Cell>
__device__ inline int terms_after(const SequenceSizes& n, int64_t step) {
  if (arrives_apart<Cell>(n.options)) return 0;
  return step + 1 < n.T && n.depth() ? Cell::kGates - Cell::kSecond : 0;
}

// What forward knew of (t, b, unit): saved, the states before the step, the states after it.
template <class Cell, class Data>
struct Known {
  using W = Wide<Data>;
  W saved[Cell::kSaved], s[Cell::kStates], out[Cell::kStates];

  // width: the vectors that a row of saved has.
  __device__ Known(const SequenceBackward& p, int64_t step, int64_t b, int64_t unit,
                   int width = Cell::kSaved) {
    const int64_t B = p.n.B, H = p.n.H, t = time_of(p.n, step), before = time_of(p.n, step - 1);
    const Data* from = static_cast<const Data*>(p.saved) + (t * B + b) * width * H + unit;
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = widen(from[k * H]);

    // Before its first step a row has its initial states; y is no state where the row takes no
    // part.
    const bool first = step == 0 || !alive(p.lengths, b, before), cut = is_reset(p, step, b);
    const void* given_h = cut ? p.reset_h : p.h0;
    const void* given_c = cut ? p.reset_c : p.c0;
    s[0] = out[0] = W(0);  // out[0]: see Cell. h of another width than H has no unit's h.
    if (p.n.P == H) {
      s[0] = first || cut
                 ? or_zero<Data>(given_h, b * H + unit)
                 : widen(static_cast<const Data*>(p.y)[(before * B + b) * p.n.y_row + unit]);
    }
    const W* cells = static_cast<const W*>(p.cells);
#pragma unroll
    for (int i = 1; i < Cell::kStates; ++i) {
      const int64_t at = ((i - 1) * B + b) * H + unit, per_step = (Cell::kStates - 1) * B * H;
      s[i] = first || cut ? or_zero<Data>(given_c, at) : cells[before * per_step + at];
      out[i] = cells[t * per_step + at];
    }
  }
};

// The same for the inner states' carry, when all of it has come in.
template <class Cell, class Data>
__device__ inline void reset_inner(const SequenceBackward& p, const BackwardState<Data>& carry,
                                   int64_t step, int64_t b, int64_t unit) {
  if (Cell::kStates == 1 || !is_reset(p, step, b)) return;
#pragma unroll
  for (int k = 1; k < Cell::kStates; ++k) {
    const int64_t i = ((k - 1) * p.n.B + b) * p.n.H + unit;
    carry.inner[i] = give_reset(carry.reset_inner, i, carry.inner[i]);
  }
}

// dh as it enters the cell, or the projection: the carry and the product with the following step's
// d. At a step: dh[t], whose dy is added. After the last one (step < 0): dh0.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_state(const __grid_constant__ BackwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, t = time_of(p.n, step);
  const Place at = place(B, P);
  const GateTerms<Cell, Data> terms(p, step + 1, 0);
  Cols::run(shared, at, terms_after<Cell>(p.n, step), terms, H, Cell::kGrads * H, P);

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    const int64_t i = b * P + unit;
    W dh = carry.h[i] + sums[0] * meeting<W>(p, b, unit);
    if (is_reset(p, step + 1, b)) dh = give_reset(carry.reset_h, i, dh);
    if (step < 0) {
      round_to(static_cast<Data*>(p.dh0)[i], dh);
      return;
    }
    const bool live = alive(p.lengths, b, t);
    carry.h[i] = live ? W(0) : dh;
    if (live) dh = limited(p.n.options, dh + or_zero<Data>(p.dy, (t * B + b) * p.n.y_row + unit));
    round_to(static_cast<Data*>(p.dh)[t * B * P + i], live ? dh : W(0));
  });
}

// The cell. Without a projection dh is made here; with one it is dh[t] W_hr.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_step(const __grid_constant__ BackwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, t = time_of(p.n, step);
  const bool projected = p.weight_hr != nullptr;
  const Place at = place(B, H);
  if (projected) {
    const Term<Data> dh = {static_cast<const Data*>(p.dh) + t * B * P,
                           static_cast<const Data*>(p.weight_hr)};
    Cols::run(shared, at, 1, [=](int) { return dh; }, P, P, H);
  } else {
    const GateTerms<Cell, Data> terms(p, step + 1, 0);
    Cols::run(shared, at, terms_after<Cell>(p.n, step), terms, H, Cell::kGrads * H, P);
  }

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    const int64_t i = b * H + unit;
    const bool live = alive(p.lengths, b, t);
    W d[Cell::kGrads] = {}, ds[Cell::kStates] = {}, dout[Cell::kStates];
    dout[0] = projected ? sums[0] : sums[0] * meeting<W>(p, b, unit) + carry.h[i];
    if (!projected && is_reset(p, step + 1, b)) dout[0] = give_reset(carry.reset_h, i, dout[0]);
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) dout[k] = carry.inner[(k - 1) * B * H + i];
    if (live) {
      const Known<Cell, Data> known(p, step, b, unit);
      if (!projected) {
        const W dy = or_zero<Data>(p.dy, (t * B + b) * p.n.y_row + unit);
        dout[0] = limited(p.n.options, dout[0] + dy);
      }
      cell_backward<Cell>(p.n.options, own_values<Cell, Data>(p, t, b, unit), known.saved, known.s,
                          known.out, dout, d, ds);
    }
    if (P == H && (live || !projected)) carry.h[i] = live ? ds[0] : dout[0];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) {
      carry.inner[(k - 1) * B * H + i] = live ? ds[k] : dout[k];
    }
    if (Cell::kSecond == 0) reset_inner<Cell>(p, carry, step, b, unit);
    Data* grads = static_cast<Data*>(p.grads) + (t * B + b) * Cell::kGrads * H + unit;
#pragma unroll
    for (int k = 0; k < Cell::kGrads; ++k) round_to(grads[k * H], d[k]);
  });
}

// Cells with a second product: its operand's gradient dp = d W_hh of the last gates, and what
// follows.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_operand(const __grid_constant__ BackwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, t = time_of(p.n, step);
  const Place at = place(B, H);
  const GateTerms<Cell, Data> terms(p, step, Cell::kGates - Cell::kSecond);
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
    Cell::backward_operand(p.n.options, known.saved, known.s, sums[0], d, ds);
    carry.h[i] = ds[0];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) carry.inner[(k - 1) * B * H + i] = ds[k];
    reset_inner<Cell>(p, carry, step, b, unit);
#pragma unroll
    for (int k = 0; k < Cell::kGrads; ++k) round_to(grads[k * H], d[k]);
  });
}

}  // namespace cuda
}  // namespace fusedrnn
