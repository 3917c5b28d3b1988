// Forward with layer normalisation (csrc/cell_options.h): a step is the product, a barrier, and
// then whole rows, for a row's mean is that of all its units.
#pragma once
#include "forward.h"
#include "norm.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// f(Pair) for the units of row b. c: where the first unit's numbers lie in a row of `gates` * H.
template <class A, class F>
inline FRNN_INLINE void each_pair_of_row(int64_t b, int64_t H, const A* c, F f) {
  constexpr int lanes = Vector<A>::lanes;
  const auto units = [&](int64_t j) {
    return Units<A>{b, j, int(H - j < lanes ? H - j : lanes), c + j, H};
  };
  for (int64_t j = 0; j < H; j += 2 * lanes)
    f(Pair<A>{units(j), units(j + lanes < H ? j + lanes : j)});
}

// (v - mean) / sqrt(variance + eps)
template <class A>
inline FRNN_INLINE Lanes<A> normal(const Lanes<A>& v, const Moments<A>& of) {
  return (v - Lanes<A>(of.mean)) * Lanes<A>(of.inverse);
}

// weight_unit's rows: those of the cell, the gains of each gate, gain and bias of c.
template <class Cell, class D, class Args>
struct NormWeights {
  const D* rows;
  int64_t H;
  explicit NormWeights(const Args& a)
      : rows(static_cast<const D*>(a.weight_unit) + Cell::weights(a.n.options) * a.n.H), H(a.n.H) {}
  FRNN_INLINE Lanes<State<D>> operator()(int row, const Pair<State<D>>& p) const {
    const D* of = rows + row * H;
    return gather(p, [=](const Units<State<D>>& u) FRNN_INLINE { return of + u.j; });
  }
};

template <class Cell, class D>
class NormedForwardPass : public ForwardPass<Cell, D> {
  using Base = ForwardPass<Cell, D>;
  using A = State<D>;
  using O = Operand<D>;
  using L = Lanes<A>;
  using Two = Pair<A>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  using Base::a, Base::T, Base::B, Base::H, Base::P, Base::w1, Base::states, Base::row, Base::h;
  using Base::in;

 public:
  explicit NormedForwardPass(const SequenceForward& args)
      : Base(args), norm(a), sums(B * G * H), width(CallSizes<Cell>(a.n.options).saved) {}

  bool allocated() const { return Base::allocated() && sums; }

  void run(const Worker& worker, int crews) {
    this->prepare(worker);
    const Crew crew(worker, crews, B);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? T - 1 - i : i;
      const O* before = h.get() + (i % 2) * B * row;
      O* after = h.get() + ((i + 1) % 2) * B * row;
      const int64_t next = i + 1 == T ? -1 : a.n.reverse ? t - 1 : t + 1;
      StepAhead ahead = this->touched(crew, next);
      product(crew, before, w1, ahead, [&](const Tile<A>& tile) {
        each_pair<G>(tile, H, [&](const Two& p) FRNN_INLINE {
          each<G>([&](auto g) FRNN_INLINE {
            const auto at = [=](const Units<A>& u) FRNN_INLINE { return u.c + g * u.stride; };
            scatter(p, gather(p, at), in(sums.get() + g * H, G));
          });
        });
      });
      crew.barrier();
      for (int64_t b = crew.first_row(); b < crew.last_row(); ++b) {
        const Units<A> whole{b, 0, int(H), nullptr, 0};
        if (a.lengths && t >= a.lengths[b])
          past_row(t, whole, before, after);
        else
          step_row(t, b, before, after);
        if (a.reset && next >= 0) this->restart(next, whole, after);
      }
      if (a.weight_hr) this->project_all(crew, t, next, before, after);
      crew.barrier();
    }
    this->finish(crew);
  }

 private:
  void step_row(int64_t t, int64_t b, const O* before, O* after) {
    const D* gx = static_cast<const D*>(a.gx) + t * B * G * H;
    D* save = static_cast<D*>(a.saved) + t * B * width * H;
    A* cells = static_cast<A*>(a.cells) + t * (S - 1) * B * H;
    const D* bias = static_cast<const D*>(a.bias_hh);
    A* v = sums.get() + b * G * H;
    const Moments<A> of_v = moments(v, G * H);
    each_pair_of_row<A>(b, H, v, [&](const Two& p) {
      L x[G], u[G], s[S], out[S], saved[K];
      each<G>([&](auto g) FRNN_INLINE {
        x[g] = gather(p, in(gx + g * H, G));
        const L raw = gather(p, [&](const Units<A>& q) FRNN_INLINE { return q.c + g * q.stride; });
        u[g] = normal(raw, of_v) * norm(g, p);
        const D* of = bias + g * H;
        if (bias) u[g] += gather(p, [=](const Units<A>& q) FRNN_INLINE { return of + q.j; });
        if (a.saved) scatter(p, raw, in(save + (K + g) * H, width));
      });
      each<S>([&](auto k) FRNN_INLINE { s[k] = this->state(k, before, p); });
      const PerUnit<L> own = own_values<Cell, D>(a, t, p);
      Cell::forward(a.n.options, own, x, u, s, out, saved);
      if constexpr (Cell::kNorms == 2)  // in the place of the first gate's v, which is done with
        scatter(p, saved[Cell::kOutputGate], in(sums.get(), G));
      else
        finish_h(t, p, out[0], s[0], own, after);
      each<S, 1>([&](auto k) FRNN_INLINE {
        scatter(p, out[k], in(states.get() + k * B * H, 1));
        if (a.saved) scatter(p, out[k], in(cells + (k - 1) * B * H, 1));
      });
      if (!a.saved) return;
      each<K>([&](auto k) FRNN_INLINE { scatter(p, saved[k], in(save + k * H, width)); });
    });
    if constexpr (Cell::kNorms == 2) {
      const A* c = states.get() + (B + b) * H;
      const Moments<A> of_c = moments(c, H);
      each_pair_of_row<A>(b, H, c, [&](const Two& p) {
        const L o = gather(p, in(sums.get(), G));
        const L n = normal(gather(p, [](const Units<A>& q) { return q.c; }), of_c);
        const L y = apply(a.n.options.output, n * norm(G, p) + norm(G + 1, p));
        const L s = this->state(0, before, p);
        finish_h(t, p, o * y, s, own_values<Cell, D>(a, t, p), after);
      });
    }
  }

  FRNN_INLINE void finish_h(int64_t t, const Two& p, L h_new, const L& before,
                            const PerUnit<L>& own, O* after) {
    if (a.n.options.zoneout_h > 0) h_new = blended(own.keep_h, h_new, before);
    if (this->apart) scatter(p, h_new, in(states.get(), 1));
    this->leave_h(t, p, h_new, after);
  }

  void past_row(int64_t t, Units<A> whole, const O* before, O* after) {
    if (!a.weight_hr) this->rest(t, whole, before, after);
    if (!a.saved) return;
    std::memset(static_cast<D*>(a.saved) + (t * B + whole.b) * width * H, 0, width * H * sizeof(D));
    for (int k = 0; k < S - 1; ++k)
      std::memset(static_cast<A*>(a.cells) + ((t * (S - 1) + k) * B + whole.b) * H, 0,
                  H * sizeof(A));
    if (a.hidden) std::memset(static_cast<D*>(a.hidden) + (t * B + whole.b) * H, 0, H * sizeof(D));
  }

  const NormWeights<Cell, D, SequenceForward> norm;
  Buffer<A> sums;   // [B, G, H]: W_hh h
  const int width;  // vectors of saved
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
