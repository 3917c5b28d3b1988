// Backward's product with W_hh in a launch of its own, for all columns of W_hh at once: what the
// following step's gradients bring to h, and with full peepholes to c. It is added to the carry,
// before the launches of step_backward.cuh or norm_backward.cuh read it.
#pragma once
#include "step_backward.cuh"

namespace fusedrnn {
namespace cuda {

// Which vectors of a step's grads met W_hh, in the order of its rows: `count` of `all`.
struct MetGates {
  int first, count, all;

  template <class Cell>
  static MetGates of(const CellOptions& options) {
    // With full peepholes: no cell that has them has h_grad(g) other than g.
    const int first = normed<Cell>(options) ? Cell::kGrads : 0;
    return {first, Cell::kGates, CallSizes<Cell>(options).grads};
  }
};

// There is a step after `step`.
template <class Data>
__global__ void __launch_bounds__(kThreads, kCtas<Data>)
    backward_arrive(const __grid_constant__ BackwardLayer<Data> layer, int64_t step,
                    MetGates gates) {
  using W = Wide<Data>;
  const SequenceBackward& p = layer.p[blockIdx.y];
  const BackwardState<Data>& carry = layer.state[blockIdx.y];
  using Cols = Product<Data, 1, Weights::cols>;
  auto& shared = shared_memory<typename Cols::Shared>();
  const int64_t B = p.n.B, H = p.n.H, P = p.n.P, row = gates.all * H, width = p.n.depth();
  const Place at = place(B, width);
  const Data* grads =
      static_cast<const Data*>(p.grads) + time_of(p.n, step + 1) * B * row + gates.first * H;
  const auto* weight = static_cast<const Data*>(p.weight_hh);
  const auto term = [=](int) { return Term<Data>{grads, weight}; };
  Cols::run(shared, at, 1, term, gates.count * H, row, width);

  Cols::each(shared, at, [&](int64_t b, int64_t column, const W(&sums)[1]) {
    if (column < P) {
      carry.h[b * P + column] += sums[0] * meeting<W>(p, b, column);
      return;
    }
    const int64_t i = b * H + column - P;
    carry.inner[i] +=
        is_reset(p, step + 1, b) ? give_reset(carry.reset_inner, i, sums[0]) : sums[0];
  });
}

}  // namespace cuda
}  // namespace fusedrnn
