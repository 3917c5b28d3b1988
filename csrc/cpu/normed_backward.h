// Backward with layer normalisation: as forward, a product and then whole rows. With
// n = (v - mean) / sqrt(variance + eps) of a row and dn its gradient,
//   dv = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps).
#pragma once
#include "backward.h"
#include "normed_forward.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// The two means of a row's gradient.
template <class A>
struct RowMeans {
  Lanes<A> sum = Lanes<A>(A(0)), with = Lanes<A>(A(0));
  A mean = 0, mean_with = 0;

  FRNN_INLINE void add(const Pair<A>& p, const Lanes<A>& dn, const Lanes<A>& n) {
    const bool both = p.second.c != p.first.c;  // an odd last vector comes twice
    sum.v[0] += dn.v[0], with.v[0] += dn.v[0] * n.v[0];
    if (both) sum.v[1] += dn.v[1], with.v[1] += dn.v[1] * n.v[1];
  }
  void close(int64_t count) {
    mean = (sum_of<A>(sum.v[0]) + sum_of<A>(sum.v[1])) / count;
    mean_with = (sum_of<A>(with.v[0]) + sum_of<A>(with.v[1])) / count;
  }
  FRNN_INLINE Lanes<A> through(const Lanes<A>& dn, const Lanes<A>& n, A inverse) const {
    return (dn - Lanes<A>(mean) - n * Lanes<A>(mean_with)) * Lanes<A>(inverse);
  }
};

template <class Cell, class D>
class NormedBackwardPass : public BackwardPass<Cell, D> {
  using Base = BackwardPass<Cell, D>;
  using A = State<D>;
  using O = Operand<D>;
  using L = Lanes<A>;
  using Two = Pair<A>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, N = Cell::kGrads;
  static constexpr int Inner = S - 1;
  static constexpr bool kInner = Cell::kNorms == 2;
  using Base::a, Base::T, Base::B, Base::H, Base::P, Base::w1, Base::wr, Base::row, Base::gates;
  using Base::direct, Base::dc, Base::dh, Base::own_sums, Base::projected, Base::in;

 public:
  explicit NormedBackwardPass(const SequenceBackward& args)
      : Base(args),
        norm(a),
        saved_width(CallSizes<Cell>(a.n.options).saved),
        width(CallSizes<Cell>(a.n.options).grads),
        dh_rows(B * H),
        du(B * G * H),
        through_c(kInner ? 2 * B * H : 0) {}

  bool allocated() const { return Base::allocated() && dh_rows && du && through_c; }

  void run(const Worker& worker, int crews) {
    this->prepare(worker);
    const Crew crew(worker, crews, B);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? i : T - 1 - i;
      const int64_t later = i == 0 ? -1 : a.n.reverse ? t - 1 : t + 1;
      const O* following = i == 0 ? nullptr : gates.get() + (i % 2) * B * row;
      O* now = gates.get() + ((i + 1) % 2) * B * row;
      const auto nothing = [](const Tile<A>&) {};
      StepAhead ahead = this->touched(crew, a.n.reverse ? t + 1 : t - 1);
      product(crew, following, w1, ahead, [&](const Tile<A>& tile) {
        each_pair<1>(tile, P, [&](const Two& pair) FRNN_INLINE {
          where_alive(
              a.lengths, t, pair,
              [&](const Two& p) FRNN_INLINE {
                const L total = this->arriving(t, later, p);
                if (projected)
                  this->to_projection(t, p, total);
                else
                  scatter(p, total, in(dh_rows.get(), 1));
              },
              [&](const Units<A>& u) { this->pass_h(t, u); });
        });
      });
      crew.barrier();
      if (projected) {
        product(crew, dh.get(), wr, nothing, [&](const Tile<A>& tile) {
          each_pair<1>(tile, H, [&](const Two& p) FRNN_INLINE {
            scatter(p, this->product_of(p), in(dh_rows.get(), 1));
          });
        });
        crew.barrier();
      }
      for (int64_t b = crew.first_row(); b < crew.last_row(); ++b) {
        if (a.lengths && t >= a.lengths[b])
          silence_row(t, b, now);
        else
          step_row(t, later, b, now);
      }
      crew.barrier();
    }
    this->finish(crew);
    if (own_sums.any) own_sums.finish(worker, static_cast<D*>(a.dweight_unit));
  }

 private:
  void silence_row(int64_t t, int64_t b, O* now) {
    std::memset(static_cast<D*>(a.grads) + (t * B + b) * width * H, 0, width * H * sizeof(D));
    std::memset(now + b * row, 0, G * H * sizeof(O));
  }

  FRNN_INLINE L dh_of(const Two& p) const { return gather(p, in(dh_rows.get(), 1)); }

  void step_row(int64_t t, int64_t later, int64_t b, O* now) {
    const CellOptions& options = a.n.options;
    const int weights = Cell::weights(options);
    const D* save = static_cast<const D*>(a.saved) + t * B * saved_width * H;
    D* grads = static_cast<D*>(a.grads) + t * B * width * H;
    const D* v = save + (b * saved_width + K) * H;
    const A* c = static_cast<const A*>(a.cells) + (t * Inner * B + b) * H;
    A *d_o = through_c.get(), *d_n = d_o + B * H;
    Moments<A> of_c{};
    RowMeans<A> c_means;
    if constexpr (kInner) {
      of_c = moments(c, H);
      each_pair_of_row<A>(b, H, c, [&](const Two& p) {
        L dh_new = dh_of(p);
        if (options.zoneout_h > 0) dh_new = own_values<Cell, D>(a, t, p).keep_h * dh_new;
        const L o = gather(p, in(save + Cell::kOutputGate * H, saved_width));
        const L n = normal(this->product_of(p), of_c), gain = norm(G, p);
        const L y = apply(options.output, n * gain + norm(G + 1, p));
        const L dn = dh_new * o * slope(options.output, y);
        scatter(p, dh_new * y * o * (L(1) - o), in(d_o, 1));
        scatter(p, dn, in(grads + (width - 1) * H, width));
        if (own_sums.any) {
          own_sums.add(weights + G, p, dn * n);
          own_sums.add(weights + G + 1, p, dn);
        }
        scatter(p, dn * gain, in(d_n, 1));
        c_means.add(p, dn * gain, n);
      });
      c_means.close(H);
    }
    const Moments<A> of_v = moments(v, G * H);
    RowMeans<A> v_means;
    each_pair_of_row<A>(b, H, c, [&](const Two& p) {
      L saved[K], s[S], out[S], dout[S], d[N], ds[S];
      const PerUnit<L> own = own_values<Cell, D>(a, t, p);
      const L dh_new = dh_of(p);
      each<K>([&](auto k) FRNN_INLINE { saved[k] = gather(p, in(save + k * H, saved_width)); });
      this->states_around(t, later, p, s, out, dout);
      dout[0] = dh_new;
      if (options.zoneout_h > 0) dout[0] = own.keep_h * dh_new;
      if constexpr (kInner) {
        const L n = normal(this->product_of(p), of_c), o = gather(p, in(d_o, 1));
        dout[0] = L(0);
        dout[1] += c_means.through(gather(p, in(d_n, 1)), n, of_c.inverse);
        if (options.peephole) dout[1] += o * own.weight[Cell::weights(options) - 1];
      }
      Cell::backward(options, own, saved, s, out, dout, d, ds);
      if constexpr (kInner) d[Cell::kOutputGate] = gather(p, in(d_o, 1));
      if (own_sums.any) this->add_own(p, s, out, d);
      if (options.zoneout_h > 0) ds[0] += (L(1) - own.keep_h) * dh_new;
      if (!projected) scatter(p, ds[0], in(direct.get(), 1));
      each<S, 1>([&](auto k) FRNN_INLINE { scatter(p, ds[k], in(dc.get() + (k - 1) * B * H, 1)); });
      each<N>([&](auto k) FRNN_INLINE { scatter(p, d[k], in(grads + k * H, width)); });
      each<G>([&](auto g) FRNN_INLINE {
        const L n = normal(gather(p, in(save + (K + g) * H, saved_width)), of_v);
        const L du_g = d[Cell::h_grad(g)], dn = du_g * norm(g, p);
        scatter(p, dn, in(du.get() + g * H, G));
        v_means.add(p, dn, n);
        if (own_sums.any) own_sums.add(weights + g, p, du_g * n);
      });
    });
    v_means.close(G * H);
    each_pair_of_row<A>(b, H, c, [&](const Two& p) {
      each<G>([&](auto g) FRNN_INLINE {
        const L n = normal(gather(p, in(save + (K + g) * H, saved_width)), of_v);
        const L dv = v_means.through(gather(p, in(du.get() + g * H, G)), n, of_v.inverse);
        scatter(p, dv, in(grads + (N + g) * H, width));
        scatter(p, dv, in_rows(now + g * H, row));
      });
    });
  }

  const NormWeights<Cell, D, SequenceBackward> norm;
  const int saved_width, width;  // vectors of saved and of grads
  Buffer<A> dh_rows;             // [B, H]: gradients of the cells' h
  Buffer<A> du;                  // [B, G, H]: of the normalised W_hh h
  Buffer<A> through_c;           // [2, B, H]: of o before its sigmoid, and of the normalised c
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
