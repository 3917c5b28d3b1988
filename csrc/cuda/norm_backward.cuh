// One step backward with layer normalisation: what arrives at h (step_arrive.cuh; with a projection
// also backward_state), and then rows, a CTA each. With n = (v - mean) / sqrt(variance + eps) of a
// row and dn its gradient,
//   dv = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps).
// Mean and variance are taken again, of what forward saved.
#pragma once
#include "norm.cuh"
#include "step_backward.cuh"

namespace fusedrnn {
namespace cuda {

// The gradient of the cells' h, dh[t] W_hr: the same for every cell.
template <class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_hidden(const __grid_constant__ BackwardLayer<Data> layer, int64_t step) {
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P;
  const Place at = place(B, H);
  const Term<Data> dh = {static_cast<const Data*>(p.dh) + time_of(p.n, step) * B * P,
                         static_cast<const Data*>(p.weight_hr)};
  Cols::run(shared, at, 1, [=](int) { return dh; }, P, P, H);

  Cols::each(shared, at, [&](int64_t b, int64_t unit, const Wide<Data>(&sums)[1]) {
    carry.hidden[b * H + unit] = sums[0];
  });
}

// Back through h = o * output(n * gain + bias), n being the normalised c.
template <class W>
struct ThroughOutput {
  W n, of_o, of_y, of_n;  // n; gradients of o before its sigmoid, of n * gain + bias, and of n

  __device__ ThroughOutput(const CellOptions& options, W normal, W gain, W bias, W o, W dh)
      : n(normal) {
    const W y = apply(options.output, n * gain + bias);
    of_o = dh * y * o * (W(1) - o);
    of_y = dh * o * slope(options.output, y);
    of_n = of_y * gain;
  }
};

// A row. Each thread has the same units throughout: what it leaves in memory it reads again itself.
template <class Cell, class Data>
__global__ void __launch_bounds__(kRowThreads, kRowCtas<Data>)
    backward_row(const __grid_constant__ BackwardLayer<Data> layer, int64_t step) {
  using W = Wide<Data>;
  constexpr int kGates = Cell::kGates, kSaved = Cell::kSaved, kGrads = Cell::kGrads;
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  const CellOptions& options = p.n.options;
  const int64_t B = p.n.B, H = p.n.H, b = blockIdx.x, t = time_of(p.n, step);
  const CallSizes<Cell> sizes(options);
  Data* grads = static_cast<Data*>(p.grads) + (t * B + b) * sizes.grads * H;
  if (!alive(p.lengths, b, t)) {  // the carry stays
    for (int64_t i = threadIdx.x; i < sizes.grads * H; i += kRowThreads) round_to(grads[i], W(0));
    return;
  }
  const Data* saved = static_cast<const Data*>(p.saved) + (t * B + b) * sizes.saved * H;
  const Data* v = saved + kSaved * H;
  const bool projected = p.weight_hr != nullptr;
  const NormWeights<Cell, Data> norm(p);
  auto& shared = shared_memory<RowShared<W>>();

  W* dh = (projected ? carry.hidden : carry.h) + b * H;
  for (int64_t unit = threadIdx.x; unit < H && !projected; unit += kRowThreads) {
    W all = dh[unit];
    if (is_reset(p, step + 1, b)) all = give_reset(carry.reset_h, b * H + unit, all);
    dh[unit] = limited(options, all + or_zero<Data>(p.dy, (t * B + b) * p.n.y_row + unit));
  }

  const W* c = static_cast<const W*>(p.cells) + (t * (Cell::kStates - 1) * B + b) * H;
  Moments<W> of_c = {};
  RowGradient<W> in_c;
  // keep_h: zoneout's, or 1.
  const auto through_output = [&](int64_t unit, W o, W keep_h) {
    return ThroughOutput<W>(options, of_c.normal(c[unit]), norm.gain_c(unit), norm.bias_c(unit), o,
                            keep_h * dh[unit]);
  };
  const bool keeps = options.zoneout_h > 0;
  if constexpr (Cell::kNorms == 2) {
    of_c = moments(shared, c, H);
    for (int64_t unit = threadIdx.x; unit < H; unit += kRowThreads) {
      const W o = widen(saved[Cell::kOutputGate * H + unit]);
      const W keep_h = keeps ? own_values<Cell, Data>(p, t, b, unit).keep_h : W(1);
      const auto back = through_output(unit, o, keep_h);
      round_to(grads[(sizes.grads - 1) * H + unit], back.of_y);
      in_c.add(back.of_n, back.n);
    }
    in_c.close(shared, H);
  }

  const Moments<W> of_v = moments(shared, v, kGates * H);
  RowGradient<W> in_v;
  W* dn = carry.normal + b * kGates * H;
  for (int64_t unit = threadIdx.x; unit < H; unit += kRowThreads) {
    const Known<Cell, Data> known(p, step, b, unit, sizes.saved);
    const PerUnit<W> own = own_values<Cell, Data>(p, t, b, unit);
    const W total = dh[unit];
    W d[kGrads] = {}, ds[Cell::kStates] = {}, dout[Cell::kStates];
    dout[0] = total;
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) dout[k] = carry.inner[((k - 1) * B + b) * H + unit];
    if constexpr (Cell::kNorms == 2) {
      const W keep_h = keeps ? own.keep_h : W(1);
      const auto back = through_output(unit, known.saved[Cell::kOutputGate], keep_h);
      dout[0] = W(0);
      dout[1] += in_c.through(back.of_n, back.n, of_c.inverse);
      if (options.peephole) dout[1] += back.of_o * norm.output_peephole(unit);
      Cell::backward(options, own, known.saved, known.s, known.out, dout, d, ds);
      d[Cell::kOutputGate] = back.of_o;
      if (keeps) ds[0] += (W(1) - keep_h) * total;
    } else {
      cell_backward<Cell>(options, own, known.saved, known.s, known.out, dout, d, ds);
    }
    if (!projected) carry.h[b * H + unit] = ds[0];
#pragma unroll
    for (int k = 1; k < Cell::kStates; ++k) carry.inner[((k - 1) * B + b) * H + unit] = ds[k];
    reset_inner<Cell>(p, carry, step, b, unit);
#pragma unroll
    for (int k = 0; k < kGrads; ++k) round_to(grads[k * H + unit], d[k]);
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const W of_normal = d[Cell::h_grad(g)] * norm.gain(g, unit);
      dn[g * H + unit] = of_normal;
      in_v.add(of_normal, of_v.normal(widen(v[g * H + unit])));
    }
  }

  in_v.close(shared, kGates * H);
  for (int64_t unit = threadIdx.x; unit < H; unit += kRowThreads) {
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const int64_t i = g * H + unit;
      round_to(grads[kGrads * H + i], in_v.through(dn[i], of_v.normal(widen(v[i])), of_v.inverse));
    }
  }
}

}  // namespace cuda
}  // namespace fusedrnn
