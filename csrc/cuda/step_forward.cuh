// One step forward, t = 0 .. T-1 (reverse: T-1 .. 0):
//   u = W_hh h + b_hh,   (h, c) = cell(gx[t], u, h, c),   y[t] = h
// and with a projection h = W_hr h. One launch; a second product inside the cell or a projection
// takes one more each, since it needs the first one's result of every unit.
//
// States stay wide in the workspace, each element read and written by the one thread that owns it.
// What meets W_hh is a copy in the data's type; it is double-buffered, because all CTAs read all of
// it. With full peepholes c stands beside h there. A step leaves what the next one begins with:
// where a row is reset, the reset state.
#pragma once
#include "product.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

template <class Data>
struct ForwardState {
  Wide<Data>* h;      // [B, P]
  Wide<Data>* inner;  // [S-1, B, H]
  int64_t inner_size;
  int64_t row;        // P, with full peepholes P + H
  Data* operand;      // [B, row]   h (and c) as W_hh sees it, before the step ...
  Data* next;         // [B, row]   ... and after it; they change places with every step
  Data* hidden;       // [B, H]     h before the projection
  Data* second;       // [B, H]     the cell's own operand ...
  Wide<Data>* early;  // [B, K, H]  ... and what the cell saved together with it
  Wide<Data>* sums;   // [B, G, H]  W_hh h, where that is normalised

  template <class Cell>
  static ForwardState in(Pieces& pieces, const SequenceSizes& n) {
    ForwardState s = {};
    s.inner_size = (Cell::kStates - 1) * n.B * n.H;
    s.h = pieces.take<Wide<Data>>(n.B * n.P);
    s.inner = pieces.take<Wide<Data>>(s.inner_size);
    s.row = n.P + (peeps<Cell>(n.options) ? n.H : 0);
    s.operand = pieces.take<Data>(n.B * s.row);
    s.next = pieces.take<Data>(n.B * s.row);
    s.hidden = pieces.take<Data>(n.B * n.H);
    if (Cell::kSecond > 0) {
      s.second = pieces.take<Data>(n.B * n.H);
      s.early = pieces.take<Wide<Data>>(n.B * Cell::kSaved * n.H);
    }
    if (normed<Cell>(n.options)) s.sums = pieces.take<Wide<Data>>(n.B * Cell::kGates * n.H);
    return s;
  }
};

template <class Data>
using ForwardLayer = Layer<SequenceForward, ForwardState<Data>>;

// The states that the first step begins with.
template <class Data>
__global__ void __launch_bounds__(kCopyThreads)
    forward_begin(const __grid_constant__ ForwardLayer<Data> layer) {
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, i = copy_index();
  if (i < B * P) {
    const auto h = or_zero<Data>(is_reset(p, 0, i / P) ? p.reset_h : p.h0, i);
    state.h[i] = h;
    round_to(state.operand[i / P * state.row + i % P], h * meeting<Wide<Data>>(p, i / P, i % P));
  }
  if (i < state.inner_size) {
    const auto c = or_zero<Data>(is_reset(p, 0, i / H % B) ? p.reset_c : p.c0, i);
    state.inner[i] = c;
    if (state.row > P) round_to(state.operand[i / H * state.row + P + i % H], c);
  }
}

// hn and cn.
template <class Data>
__global__ void __launch_bounds__(kCopyThreads)
    forward_end(const __grid_constant__ ForwardLayer<Data> layer) {
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const int64_t i = copy_index();
  if (i < p.n.B * p.n.P) round_to(static_cast<Data*>(p.hn)[i], state.h[i]);
  if (i < state.inner_size) round_to(static_cast<Data*>(p.cn)[i], state.inner[i]);
}

// gx[t, b, :, unit]
template <class Cell, class Data>
__device__ inline void load_x(Wide<Data> (&x)[Cell::kGates], const SequenceForward& p, int64_t t,
                              int64_t b, int64_t unit) {
  const Data* gx = static_cast<const Data*>(p.gx) + (t * p.n.B + b) * Cell::kGates * p.n.H + unit;
#pragma unroll
  for (int g = 0; g < Cell::kGates; ++g) x[g] = widen(gx[g * p.n.H]);
}

// h and the inner states of (b, unit). h of another width than H (a projection's) has no unit's h.
template <class Cell, class Data>
__device__ inline void load_states(Wide<Data> (&s)[Cell::kStates], const ForwardState<Data>& state,
                                   const SequenceSizes& n, int64_t b, int64_t unit) {
  s[0] = n.P == n.H ? state.h[b * n.H + unit] : Wide<Data>(0);
#pragma unroll
  for (int i = 1; i < Cell::kStates; ++i) s[i] = state.inner[((i - 1) * n.B + b) * n.H + unit];
}

// h of (b, unit) after a step: to y, and to the next step.
template <class Data>
__device__ inline void leave_h(const SequenceForward& p, const ForwardState<Data>& state,
                               int64_t step, int64_t b, int64_t unit, Wide<Data> h) {
  const int64_t t = time_of(p.n, step), at = b * p.n.P + unit;
  const Wide<Data> next = is_reset(p, step + 1, b) ? or_zero<Data>(p.reset_h, at) : h;
  state.h[at] = next;
  round_to(state.next[b * state.row + unit], next * meeting<Wide<Data>>(p, b, unit));
  round_to(static_cast<Data*>(p.y)[(t * p.n.B + b) * p.n.y_row + unit],
           alive(p.lengths, b, t) ? h : Wide<Data>(0));
}

// The cell's h, which a projection may await.
template <class Data>
__device__ inline void leave_cell_h(const SequenceForward& p, const ForwardState<Data>& state,
                                    int64_t step, int64_t b, int64_t unit, Wide<Data> h) {
  if (p.weight_hr == nullptr) return leave_h(p, state, step, b, unit, h);
  const int64_t t = time_of(p.n, step), size = p.n.B * p.n.H;
  Data* hidden = p.hidden == nullptr ? state.hidden : static_cast<Data*>(p.hidden) + t * size;
  round_to(hidden[b * p.n.H + unit], alive(p.lengths, b, t) ? h : Wide<Data>(0));
}

// The inner states of (b, unit) after a step: to the next step, and to backward.
template <class Cell, class Data>
__device__ inline void leave_inner(const SequenceForward& p, const ForwardState<Data>& state,
                                   int64_t step, int64_t b, int64_t unit,
                                   const Wide<Data> (&out)[Cell::kStates]) {
  const int64_t B = p.n.B, H = p.n.H, per_step = (Cell::kStates - 1) * B * H;
  const bool cut = is_reset(p, step + 1, b);
#pragma unroll
  for (int i = 1; i < Cell::kStates; ++i) {
    const int64_t at = ((i - 1) * B + b) * H + unit;
    const Wide<Data> next = cut ? or_zero<Data>(p.reset_c, at) : out[i];
    state.inner[at] = next;
    if (peeps<Cell>(p.n.options)) round_to(state.next[b * state.row + p.n.P + unit], next);
    if (p.cells != nullptr) {
      static_cast<Wide<Data>*>(p.cells)[time_of(p.n, step) * per_step + at] = out[i];
    }
  }
}

// Cells with a second product: the first gates, and the operand of the second product.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    forward_operand(const __grid_constant__ ForwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const SequenceSizes& n = layer.p[0].n;  // the sizes are both directions'
  const int64_t t = time_of(p.n, step);
  constexpr int kFirst = Cell::kGates - Cell::kSecond;
  using Gates = Product<Data, kFirst, Weights::rows>;
  auto& shared = shared_memory<typename Gates::Shared>();
  const Place at = place(n.B, n.H);
  const auto* weight = static_cast<const Data*>(p.weight_hh);
  const Data* h = state.operand;
  const auto term = [=](int) { return Term<Data>{h, weight}; };
  Gates::run(shared, at, 1, term, n.P, n.P, n.P);

  Gates::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[kFirst]) {
    W x[Cell::kGates], u[Cell::kGates] = {}, s[Cell::kStates], saved[Cell::kSaved] = {};
    load_x<Cell, Data>(x, p, t, b, unit);
    load_states<Cell, Data>(s, state, n, b, unit);
#pragma unroll
    for (int g = 0; g < kFirst; ++g) u[g] = sums[g] + or_zero<Data>(p.bias_hh, g * n.H + unit);
    round_to(state.second[b * n.H + unit], Cell::operand(p.n.options, x, u, s, saved));
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) {
      state.early[(b * Cell::kSaved + k) * n.H + unit] = saved[k];
    }
  });
}

// The (last) product and the cell. Rows that have ended keep their states; their y is zero.
template <class Cell, class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    forward_step(const __grid_constant__ ForwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const int64_t t = time_of(p.n, step);
  constexpr int kMine = Cell::kSecond > 0 ? Cell::kSecond : Cell::kGates;
  constexpr int kFirst = Cell::kGates - kMine;
  using Gates = Product<Data, kMine, Weights::rows>;
  auto& shared = shared_memory<typename Gates::Shared>();
  const int64_t B = p.n.B, H = p.n.H, row = state.row;
  const Place at = place(B, H);
  const Data* weight = static_cast<const Data*>(p.weight_hh) + kFirst * H * row;
  const Data* h = Cell::kSecond > 0 ? state.second : state.operand;
  const auto term = [=](int) { return Term<Data>{h, weight}; };
  Gates::run(shared, at, p.n.depth() ? 1 : 0, term, row, row, row);

  Gates::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[kMine]) {
    W x[Cell::kGates], u[Cell::kGates] = {}, saved[Cell::kSaved] = {};
    W s[Cell::kStates], out[Cell::kStates];
    load_x<Cell, Data>(x, p, t, b, unit);
    load_states<Cell, Data>(s, state, p.n, b, unit);
#pragma unroll
    for (int g = 0; g < kMine; ++g) {
      u[kFirst + g] = sums[g] + or_zero<Data>(p.bias_hh, (kFirst + g) * H + unit);
    }
    if (Cell::kSecond > 0) {
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) {
        saved[k] = state.early[(b * Cell::kSaved + k) * H + unit];
      }
    }
    cell_forward<Cell>(p.n.options, own_values<Cell, Data>(p, t, b, unit), x, u, s, out, saved);
    const bool live = alive(p.lengths, b, t);
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) out[i] = live ? out[i] : s[i];
    leave_inner<Cell>(p, state, step, b, unit, out);
    if (p.saved != nullptr) {
      Data* to = static_cast<Data*>(p.saved) + (t * B + b) * Cell::kSaved * H + unit;
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) round_to(to[k * H], live ? saved[k] : W(0));
    }
    leave_cell_h(p, state, step, b, unit, out[0]);
  });
}

// h = W_hr hidden: the same for every cell.
template <class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    forward_projection(const __grid_constant__ ForwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  const SequenceForward& p = layer.p[blockIdx.y];
  const ForwardState<Data>& state = layer.state[blockIdx.y];
  const int64_t t = time_of(p.n, step);
  using Rows = Product<Data, 1, Weights::rows>;
  auto& shared = shared_memory<typename Rows::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P;
  const Place at = place(B, P);
  const auto* weight = static_cast<const Data*>(p.weight_hr);
  const Data* hidden =
      p.hidden == nullptr ? state.hidden : static_cast<const Data*>(p.hidden) + t * B * H;
  const auto term = [=](int) { return Term<Data>{hidden, weight}; };
  Rows::run(shared, at, 1, term, H, H, H);

  Rows::each(shared, at, [&](int64_t b, int64_t unit, const W(&sums)[1]) {
    const bool live = alive(p.lengths, b, t);
    leave_h(p, state, step, b, unit, live ? sums[0] : state.h[b * P + unit]);
  });
}

}  // namespace cuda
}  // namespace fusedrnn
