// One step forward with layer normalisation, in two launches: the product W_hh h of all gates, and
// then rows, a CTA each, for a row's mean is that of all its units:
//   u = gain * normal(W_hh h) + b_hh,   (o, c) = cell(gx[t], u, c),   h = o * output(normal(c))
// GRU's h is its cell's. States, resets and what is left for the next step: as in step_forward.cuh.
#pragma once
#include "../cells/nonlinearity.h"
#include "norm.cuh"
#include "step_forward.cuh"

namespace fusedrnn {
namespace cuda {

// W_hh h: the same for every cell.
template <class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    forward_product(const __grid_constant__ ForwardLayer<Data> layer, int gates) {
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  using Rows = Product<Data, 1, Weights::rows>;
  auto& shared = shared_memory<typename Rows::Shared>();
  const int64_t units = gates * p.n.H, P = p.n.P;
  const Place at = place(p.n.B, units);
  const auto* weight = static_cast<const Data*>(p.weight_hh);
  const Data* h = state.operand;
  const auto term = [=](int) { return Term<Data>{h, weight}; };
  Rows::run(shared, at, 1, term, P, P, P);

  Rows::each(shared, at, [&](int64_t b, int64_t unit, const Wide<Data>(&sums)[1]) {
    state.sums[b * units + unit] = sums[0];
  });
}

// A row. Each thread has the same units throughout: what it leaves in sums it reads again itself.
template <class Cell, class Data>
__global__ void __launch_bounds__(kRowThreads, kRowCtas<Data>)
    forward_row(const __grid_constant__ ForwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  constexpr int kGates = Cell::kGates, kSaved = Cell::kSaved;
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const CellOptions& options = p.n.options;
  const int64_t B = p.n.B, H = p.n.H, b = blockIdx.x, t = time_of(p.n, step);
  const bool live = alive(p.lengths, b, t);
  const int width = CallSizes<Cell>(options).saved;
  const NormWeights<Cell, Data> norm(p);
  auto& shared = shared_memory<RowShared<W>>();
  W* v = state.sums + b * kGates * H;
  const Moments<W> of_v = moments(shared, v, kGates * H);

  for (int64_t unit = threadIdx.x; unit < H; unit += kRowThreads) {
    W x[kGates], u[kGates], saved[kSaved], s[Cell::kStates], out[Cell::kStates];
    Data* to = static_cast<Data*>(p.saved) + (t * B + b) * width * H + unit;
    load_x<Cell, Data>(x, p, t, b, unit);
    load_states<Cell, Data>(s, state, p.n, b, unit);
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const W raw = v[g * H + unit];
      u[g] = of_v.normal(raw) * norm.gain(g, unit) + or_zero<Data>(p.bias_hh, g * H + unit);
      if (p.saved != nullptr) round_to(to[(kSaved + g) * H], live ? raw : W(0));
    }
    const PerUnit<W> own = own_values<Cell, Data>(p, t, b, unit);
    if constexpr (Cell::kNorms == 2) {
      Cell::forward(options, own, x, u, s, out, saved);
      v[unit] = saved[Cell::kOutputGate], v[H + unit] = out[1];
    } else {
      cell_forward<Cell>(options, own, x, u, s, out, saved);
    }
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) out[i] = live ? out[i] : s[i];
    leave_inner<Cell>(p, state, step, b, unit, out);
    if (Cell::kNorms == 1) leave_cell_h(p, state, step, b, unit, out[0]);
    if (p.saved != nullptr) {
#pragma unroll
      for (int k = 0; k < kSaved; ++k) round_to(to[k * H], live ? saved[k] : W(0));
    }
  }

  if constexpr (Cell::kNorms == 2) {
    const Moments<W> of_c = moments(shared, v + H, H);
    for (int64_t unit = threadIdx.x; unit < H; unit += kRowThreads) {
      const W n = of_c.normal(v[H + unit]) * norm.gain_c(unit) + norm.bias_c(unit);
      W s[Cell::kStates], h = v[unit] * apply(options.output, n);
      load_states<Cell, Data>(s, state, p.n, b, unit);
      if (options.zoneout_h > 0) {
        h = blended(own_values<Cell, Data>(p, t, b, unit).keep_h, h, s[0]);
      }
      leave_cell_h(p, state, step, b, unit, live ? h : s[0]);
    }
  }
}

}  // namespace cuda
}  // namespace fusedrnn
