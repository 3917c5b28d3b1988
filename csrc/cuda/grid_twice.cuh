// The grid kernels of cells with a second product, of an operand of their own: two exchanges in
// each step.
//
//   forward    u of the first gates = W_hh h; operand(...); of the last ones = W_hh operand
//   backward   backward(...) gives d of the last gates; dp = sum over them of d_g W_hh[g];
//              backward_operand(...) gives the others, which the step before meets
//
// The rest is that of grid_forward.cuh and grid_backward.cuh: a CTA has all gates of its own units,
// and both products have its warps, batch rows and room for sums. In backward both exchanges go
// through grads: the vectors of the last gates are published before the others.
#pragma once
#include "grid_backward.cuh"
#include "grid_forward.cuh"

namespace fusedrnn {
namespace cuda {

// Where forward publishes the operands of the second product: rows of H, `row` elements apart, one
// for each step and batch row. They are among what is saved; where nothing is, in the workspace.
template <class Cell, class Data>
struct Operands {
  Data* at;
  int64_t row;

  FRNN_HD Operands(const SequenceForward& p, void* workspace)
      : at(static_cast<Data*>(p.saved == nullptr ? workspace : p.saved)), row(p.n.H) {
    if (p.saved != nullptr) at += Cell::kOperand * p.n.H, row *= Cell::kSaved;
  }
};

#ifdef FRNN_RESIDENT

template <class Cell, class Data>
struct GridForwardTwice : GridForward<Cell, Data> {
  using Base = GridForward<Cell, Data>;
  using Base::exists, Base::p, Base::place, Base::row0, Base::row_of, Base::rows;
  using Base::state, Base::unit_of, Base::work;
  using First = typename Base::First;
  using Brief = typename Base::Brief;
  using Last = LastGates<Cell>;
  static constexpr int G = Base::G, K = Base::K, kPairs = Base::kPairs;
  static constexpr GridShape kShape = grid_second_shape(false, sizeof(Data));

  const GridCall<SequenceForward>* call;  // the kernel's own argument, which takes no registers
  Resident<Data, kShape.tiles, kShape.spans> second;

  __device__ GridForwardTwice(const SequenceForward& problem, const GridWork& share, int rank)
      : Base(problem, share, rank),
        second(0, 1, share.second_tiles, share.second_spans,
               rest_of<kShape.spans>(share.second_rest, share.second_tiles, share.second_spans),
               problem.n.tf32) {}

  __device__ Operands<Cell, Data> operands() const {
    return {p, call->operands[blockIdx.x / work.size / work.groups]};
  }
  __device__ int64_t operand_of(int step, int row) const {
    return (time_of(p.n, step) * p.n.B + row0 + row) * operands().row;
  }

  __device__ void load_weights() {
    Base::load_weights();
    Base::template load<Last>(second);
  }

  __device__ void step(int step) {
    const bool wide = rows_are_wide<Data>(operands().at, p.n.H, operands().row);
    Brief saved[kPairs][K];
    Base::product(step);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i >= work.pairs) break;
      Brief of_x[G], u[G], operand(0.0f);
      if (exists(i)) {
        Base::template preactivations<First>(i, of_x, u);
        operand = Cell::operand(p.n.options.without_stepwise_only(), of_x, u, state[i], saved[i]);
      }
      const bool live = exists(i) && time_of(p.n, step) < Base::lengths()[row_of(i)];
      publish<Data>(operands().at, operand_of(step, row_of(i)) + unit_of(i),
                    live ? operand.v : 0.0f, exists(i), wide);
    }
    multiply(step, wide);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i >= work.pairs) break;
      Base::template leave<Last>(step, i, saved[i]);
    }
    Base::request(step + 1);
  }

  // What the operands of a step give the last gates.
  __device__ void multiply(int step, bool wide) const {
    const auto row = [&](int column) {
      const int mine = column * kClusterRows + my_lane().g;
      return RowOfB<Data>{mine < rows ? operands().at + operand_of(step, mine) : nullptr, true};
    };
    const auto at = [&](int span) { return Base::eight_of(span); };
    grid_product<kShape.sums>(second, Base::template sums<Last>(), wide, row, at);
  }
};

template <class Cell, class Data>
struct GridBackwardTwice : GridBackward<Cell, Data> {
  using Base = GridBackward<Cell, Data>;
  using Base::carry, Base::exists, Base::known, Base::p, Base::place, Base::row_of, Base::work;
  static constexpr int G = Base::G, S = Base::S, K = Base::K, D = Base::D;
  using Brief = typename Base::Brief;
  using Last = LastGates<Cell>;
  static constexpr int kPairs = Base::kPairs;
  static constexpr GridShape kShape = grid_second_shape(true, sizeof(Data));
  static_assert(kShape.sums == Base::kShape.sums, "");

  Resident<Data, kShape.tiles, kShape.spans> second;

  __device__ GridBackwardTwice(const SequenceBackward& problem, const GridWork& share, int rank)
      : Base(problem, share, rank),
        second(0, 1, share.second_tiles, share.second_spans,
               rest_of<kShape.spans>(share.second_rest, share.second_tiles, share.second_spans),
               problem.n.tf32) {}

  __device__ void load_weights() {
    Base::load_weights();
    Base::template load<Last>(second);
  }

  __device__ static constexpr bool of_last(int k) {
    for (int g = Last::kFrom; g < G; ++g) {
      if (k == Cell::h_grad(g)) return true;
    }
    return false;
  }

  __device__ void step(int i) {
    const bool last = i + 1 == p.n.T;
    Brief d[kPairs][D];
    if (!last) Base::product(i + 1);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (j >= work.pairs) break;
#pragma unroll
      for (int k = 0; k < D; ++k) d[j][k] = Brief(0.0f);
      if (exists(j)) Base::retreat(i, j, last, d[j]);
      hand_out<true>(i, j, d[j]);
    }
    Base::template multiply<Last>(i, second);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (j >= work.pairs) break;
      if (exists(j) && time_of(p.n, i) < Base::lengths()[row_of(j)]) complete(i, j, d[j]);
      hand_out<false>(i, j, d[j]);
    }
    Base::request(i - 1);
  }

  // Gradients of the last gates' h-preactivations, or the others.
  template <bool kLast>
  __device__ void hand_out(int i, int j, const Brief (&d)[D]) const {
    const int64_t row = time_of(p.n, i) * p.n.B + Base::row0 + row_of(j);
#pragma unroll
    for (int k = 0; k < D; ++k) {
      if (of_last(k) != kLast) continue;
      const int64_t at = (row * D + k) * p.n.H + Base::unit_of(j);
      publish<Data>(p.grads, at, d[k].v, exists(j), Base::wide);
    }
  }

  // What hangs on the operand's gradient.
  __device__ void complete(int i, int j, Brief (&d)[D]) {
    Brief saved[K], s[S], ds[S];
#pragma unroll
    for (int k = 0; k < K; ++k) saved[k] = Brief(widen(known[j].saved[k]));
    Base::states_before(i, j, s);
#pragma unroll
    for (int k = 0; k < S; ++k) ds[k] = Brief(carry[j][k]);
    const Brief dp(Base::sums().total(work.warps, place[j] & 0xffff, row_of(j)));
    Cell::backward_operand(p.n.options.without_stepwise_only(), saved, s, dp, d, ds);
#pragma unroll
    for (int k = 0; k < S; ++k) carry[j][k] = ds[k].v;
  }
};

#endif

}  // namespace cuda
}  // namespace fusedrnn
