// A whole sequence backward on the CPU: in every step the gradient of h arrives as a product of the
// following step's gate gradients with W_hh, whose epilogue runs the cell backward; one barrier,
// and again where a cell has a second product or there is a projection. dW, dx and db are the
// caller's: large products over all steps.
#pragma once
#include "../cells/nonlinearity.h"
#include "forward.h"
#include "unit_sums.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class Cell, class D>
class BackwardPass {
  using A = State<D>;
  using O = Operand<D>;
  using L = Lanes<A>;
  using Two = Pair<A>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, N = Cell::kGrads;
  static constexpr int N2 = Cell::kSecond, N1 = G - N2, Inner = S - 1;

 public:
  explicit BackwardPass(const SequenceBackward& args)
      : a(args),
        T(a.n.T),
        B(a.n.B),
        H(a.n.H),
        P(a.n.P),
        projected(a.weight_hr != nullptr),
        full(a.n.options.full),
        w1(a.n.options.independent ? 0 : N1 * H, P, Rows::inputs, a.weight_hh, nullptr, T,
           a.n.threads, a.n.depth()),
        wc(full ? N1 * H : 0, full ? H : 0, Rows::inputs, static_cast<const D*>(a.weight_hh) + P,
           nullptr, T, a.n.threads, a.n.depth()),
        w2(N2 * H, N2 ? H : 0, Rows::inputs, static_cast<const D*>(a.weight_hh) + N1 * H * P,
           nullptr, T, a.n.threads),
        wr(projected ? P : 0, projected ? H : 0, Rows::inputs, a.weight_hr, nullptr, T,
           a.n.threads),
        c0(Inner * B * H),
        row(a.n.options.independent ? N1 * H : w1.row),
        gates(2 * B * row),
        dh(B * wr.row),
        second(B * w2.row),
        direct(B * P),
        dc(Inner * B * H),
        partial(N2 ? B * N * H : 0),
        anew_h(a.reset ? B * P : 0),
        anew_c(a.reset ? Inner * B * H : 0),
        danew_h(a.reset ? B * P : 0),
        danew_c(a.reset ? Inner * B * H : 0),
        meeting(a),
        own_sums(a.dweight_unit ? CallSizes<Cell>(a.n.options).weights : 0, H, B) {}

  bool allocated() const {
    return w1 && wc && w2 && wr && c0 && gates && direct && dc && dh && second && partial &&
           anew_h && anew_c && danew_h && danew_c && meeting && own_sums;
  }

  void run(const Worker& worker, int crews) {
    prepare(worker);
    const Crew crew(worker, crews, B);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? i : T - 1 - i;
      const int64_t later = i == 0 ? -1 : a.n.reverse ? t - 1 : t + 1;
      const O* following = i == 0 ? nullptr : gates.get() + (i % 2) * B * row;
      O* now = gates.get() + ((i + 1) % 2) * B * row;
      StepAhead ahead = touched(crew, a.n.reverse ? t + 1 : t - 1);
      const auto nothing = [](const Tile<A>&) {};
      if (full) through_full(crew, following);
      product(crew, following, w1, ahead, [&](const Tile<A>& tile) {
        each_pair<1>(tile, P, [&](const Two& pair) FRNN_INLINE {
          where_alive(
              a.lengths, t, pair, [&](const Two& p) FRNN_INLINE { arrive(t, later, p, now); },
              [&](const Units<A>& u) { pass_by(t, u, now); });
        });
      });
      if constexpr (N2 > 0) {
        crew.barrier();
        product(crew, second.get(), w2, nothing, [&](const Tile<A>& tile) {
          each_pair<1>(tile, H, [&](const Two& pair) FRNN_INLINE {
            where_alive(
                a.lengths, t, pair, [&](const Two& p) FRNN_INLINE { complete(t, p, now); },
                [](const Units<A>&) {});
          });
        });
      }
      if (projected) {
        crew.barrier();
        product(crew, dh.get(), wr, nothing, [&](const Tile<A>& tile) {
          each_pair<1>(tile, H, [&](const Two& pair) FRNN_INLINE {
            where_alive(
                a.lengths, t, pair,
                [&](const Two& p) FRNN_INLINE { through_cell(t, later, p, now, product_of(p)); },
                [&](const Units<A>& u) { silence(t, u, now); });
          });
        });
      }
      crew.barrier();
    }
    finish(crew);
    if (own_sums.any) own_sums.finish(worker, static_cast<D*>(a.dweight_unit));
  }

 protected:
  // Full peepholes: what reaches c through the gates of the following step.
  void through_full(const Crew& crew, const O* following) {
    if constexpr (Inner > 0) {
      product(
          crew, following, wc, [](const Tile<A>&) {},
          [&](const Tile<A>& tile) {
            each_pair<1>(tile, H, [&](const Two& p) FRNN_INLINE {
              scatter(p, gather(p, in(dc.get(), 1)) + product_of(p), in(dc.get(), 1));
            });
          });
      crew.barrier();
    }
  }

  FRNN_COLD void prepare(const Worker& worker) {
    w1.prepare(worker);
    wc.prepare(worker);
    w2.prepare(worker);
    wr.prepare(worker);
    if (worker.index == 0) {
      widen(a.c0, c0, Inner * B * H);
      widen(a.dcn, dc, Inner * B * H);
      widen(a.dhn, direct, B * P);
      if (a.reset_h) std::memcpy(anew_h.get(), a.reset_h, B * P * sizeof(D));
      widen(a.reset_c, anew_c, a.reset ? Inner * B * H : 0);
    }
    worker.barrier();
  }

  FRNN_COLD static void widen(const void* from, const Buffer<A>& to, int64_t n) {
    if (const D* d = static_cast<const D*>(from))
      for (int64_t i = 0; i < n; ++i) to.get()[i] = load(d[i]);
  }

  // Where the numbers of some units lie in a tensor [..., B, width, H] or [..., B, width, P].
  template <class E>
  auto in(E* row, int width) const {
    return in_rows(row, width * H);
  }
  template <class E>
  auto in_h(E* row) const {
    return in_rows(row, P);
  }

  static FRNN_INLINE L product_of(const Two& p) {
    return gather(p, [](const Units<A>& u) FRNN_INLINE { return u.c; });
  }

  // What step t reads and writes and none before it has.
  StepAhead touched(const Crew& crew, int64_t t) const {
    StepAhead ahead(crew, P);
    if (t < 0 || t >= T || all_near(a.n, (K + N + S) * H)) return ahead;
    const CallSizes<Cell> width(a.n.options);
    const int64_t before = a.n.reverse ? t + 1 : t - 1, K_H = width.saved * H,
                  N_H = width.grads * H;
    ahead.add(static_cast<const D*>(a.saved) + t * B * K_H, K_H, K_H);
    ahead.add(static_cast<D*>(a.grads) + t * B * N_H, N_H, N_H);
    if (a.dy) ahead.add(row_of(a.dy, t, 0), P, a.n.y_row);
    if (before < 0 || before >= T) return ahead;
    ahead.add(row_of(a.y, before, 0), P, a.n.y_row);
    for (int k = 0; k < Inner; ++k)
      ahead.add(static_cast<const A*>(a.cells) + (before * Inner + k) * B * H, H, H);
    return ahead;
  }

  // Row b at step t of y or dy.
  const D* row_of(const void* y, int64_t t, int64_t b) const {
    return static_cast<const D*>(y) + (t * B + b) * a.n.y_row;
  }

  // A gradient on its way from the following step: of units that begin anew there it is the reset
  // state's, and zero here. at(unit) is where the reset state's lies.
  template <class At>
  FRNN_INLINE void stop(int64_t later, const Two& p, L& d, At at) {
    if (!a.reset || later < 0) return;
    if (begins_anew(a, later, p.first.b)) take(p.first, d.v[0], at(p.first), true);
    if (begins_anew(a, later, p.second.b))
      take(p.second, d.v[1], at(p.second), p.second.c != p.first.c);
  }
  template <class V>
  static void take(const Units<A>& u, V& d, A* sum, bool add) {
    if (add) store_vector(sum, u.n, load_vector(sum, u.n) + d);
    d = V{};
  }

  // The gradient of h at step t: product, direct part, dy.
  FRNN_INLINE L arriving(int64_t t, int64_t later, const Two& p) {
    L total = meeting.met(p, product_of(p)) + gather(p, in_h(direct.get()));
    stop(later, p, total, in_h(danew_h.get()));
    if (a.dy)
      total += gather(p, [&](const Units<A>& u) FRNN_INLINE { return row_of(a.dy, t, u.b) + u.j; });
    return limited(a.n.options, total);
  }
  FRNN_INLINE void arrive(int64_t t, int64_t later, const Two& p, O* now) {
    const L total = arriving(t, later, p);
    if (projected)
      to_projection(t, p, total);
    else
      through_cell(t, later, p, now, total);
  }
  FRNN_INLINE void to_projection(int64_t t, const Two& p, const L& total) {
    scatter(p, L(0), in_h(direct.get()));
    scatter(p, total, in_rows(dh.get(), wr.row));
    scatter(p, total, in_h(static_cast<D*>(a.dh) + t * B * P));
  }

  // Units of a row past its end: gradients of its state go on unchanged, all others are zero.
  void pass_by(int64_t t, Units<A> u, O* now) {
    pass_h(t, u);
    if (!projected) silence(t, u, now);
  }
  FRNN_COLD void pass_h(int64_t t, Units<A> u) {
    for (int l = 0; l < u.n; ++l)
      direct.get()[u.b * P + u.j + l] += meeting.met(u.b, u.j + l, u.c[l]);
    if (!projected) return;
    std::memset(in_rows(dh.get(), wr.row)(u), 0, u.n * sizeof(O));
    std::memset(static_cast<D*>(a.dh) + (t * B + u.b) * P + u.j, 0, u.n * sizeof(D));
  }

  FRNN_COLD void silence(int64_t t, Units<A> u, O* now) {
    D* grads = static_cast<D*>(a.grads) + t * B * N * H;
    const auto clear = [&](auto* rows, int64_t row) {
      std::memset(in_rows(rows, row)(u), 0, u.n * sizeof(*rows));
    };
    for (int k = 0; k < N; ++k) clear(grads + k * H, N * H);
    for (int g = 0; g < N1; ++g) clear(now + g * H, row);
    for (int g = 0; g < N2; ++g) clear(second.get() + g * H, w2.row);
  }

  // Where the states before step t lie: in a tensor of all steps, or with those that rows begin
  // with. step(before, unit), begin(unit) and anew(unit) say where in each.
  template <class Step, class Begin, class Anew>
  auto previous(int64_t t, Step step, Begin begin, Anew anew) const {
    const int64_t before = a.n.reverse ? t + 1 : t - 1;
    return [=, this](const Units<A>& u) FRNN_INLINE {
      if (begins_anew(a, t, u.b)) return anew(u);
      const bool inside =
          before >= 0 && before < T && (a.lengths == nullptr || before < a.lengths[u.b]);
      return inside ? step(before, u) : begin(u);
    };
  }

  // h before step t; zero with a projection, for then no cell sees h itself.
  FRNN_INLINE L h_before(int64_t t, const Two& p) const {
    if (projected) return L(0);
    return gather(
        p, previous(
               t, [=, this](int64_t s, const Units<A>& u) { return row_of(a.y, s, u.b) + u.j; },
               in_h(static_cast<const D*>(a.h0)), in_h(static_cast<const D*>(anew_h.get()))));
  }

  // The states before and after step t, and the gradients of the inner ones after it.
  FRNN_INLINE void states_around(int64_t t, int64_t later, const Two& p, L (&s)[S], L (&out)[S],
                                 L (&dout)[S]) {
    const A* cells = static_cast<const A*>(a.cells);
    const auto inner = [=, this](int k) {
      const auto of = [=, this](const A* all) FRNN_INLINE { return in(all + k * B * H, 1); };
      return previous(
          t, [=, this](int64_t s, const Units<A>& u) { return of(cells + s * Inner * B * H)(u); },
          of(c0.get()), of(anew_c.get()));
    };
    s[0] = h_before(t, p);
    out[0] = dout[0] = L(0);
    each<S, 1>([&](auto k) FRNN_INLINE {
      s[k] = gather(p, inner(k - 1));
      out[k] = gather(p, in(cells + (t * Inner + k - 1) * B * H, 1));
      dout[k] = gather(p, in(dc.get() + (k - 1) * B * H, 1));
      stop(later, p, dout[k], in(danew_c.get() + (k - 1) * B * H, 1));
    });
  }

  // Backward of the cell: total is the gradient of its h.
  FRNN_INLINE void through_cell(int64_t t, int64_t later, const Two& p, O* now, const L& total) {
    const D* save = static_cast<const D*>(a.saved) + t * B * K * H;
    L saved[K], s[S], out[S], dout[S], d[N], ds[S];
    each<K>([&](auto k) FRNN_INLINE { saved[k] = gather(p, in(save + k * H, K)); });
    each<N>([&](auto k) FRNN_INLINE { d[k] = L(0); });
    states_around(t, later, p, s, out, dout);
    dout[0] = total;
    cell_backward<Cell>(a.n.options, own_values<Cell, D>(a, t, p), saved, s, out, dout, d, ds);
    if (own_sums.any) add_own(p, s, out, d);
    if (!projected) scatter(p, ds[0], in(direct.get(), 1));
    each<S, 1>([&](auto k) FRNN_INLINE { scatter(p, ds[k], in(dc.get() + (k - 1) * B * H, 1)); });
    each<N2>([&](auto g) FRNN_INLINE {
      scatter(p, d[Cell::h_grad(N1 + g)], in_rows(second.get() + g * H, w2.row));
    });
    if constexpr (N2 > 0)
      each<N>([&](auto k) FRNN_INLINE { scatter(p, d[k], in(partial.get() + k * H, N)); });
    else
      leave(t, p, now, d);
  }

  // The gradients of the cell's own weights.
  FRNN_INLINE void add_own(const Two& p, const L (&s)[S], const L (&out)[S], const L (&d)[N]) {
    if constexpr (Cell::kWeights > 0) {
      L dw[Cell::kWeights];
      Cell::weight_grads(s, out, d, dw);
      for (int w = 0; w < Cell::weights(a.n.options); ++w) own_sums.add(w, p, dw[w]);
    }
  }

  // After the second product, which brings the gradient of the cell's operand.
  FRNN_INLINE void complete(int64_t t, const Two& p, O* now) {
    const D* save = static_cast<const D*>(a.saved) + t * B * K * H;
    L saved[K], s[S], d[N], ds[S];
    each<K>([&](auto k) FRNN_INLINE { saved[k] = gather(p, in(save + k * H, K)); });
    each<S>([&](auto k) FRNN_INLINE { s[k] = ds[k] = L(0); });
    s[0] = h_before(t, p);
    each<N>([&](auto k) FRNN_INLINE { d[k] = gather(p, in(partial.get() + k * H, N)); });
    ds[0] = gather(p, in(direct.get(), 1));
    Cell::backward_operand(a.n.options, saved, s, product_of(p), d, ds);
    scatter(p, ds[0], in(direct.get(), 1));
    leave(t, p, now, d);
  }

  // The gradients of a step: for the next product, and for the caller.
  FRNN_INLINE void leave(int64_t t, const Two& p, O* now, const L (&d)[N]) {
    D* grads = static_cast<D*>(a.grads) + t * B * N * H;
    each<N1>([&](auto g)
                 FRNN_INLINE { scatter(p, d[Cell::h_grad(g)], in_rows(now + g * H, row)); });
    each<N>([&](auto k) FRNN_INLINE { scatter(p, d[k], in(grads + k * H, N)); });
  }

  void finish(const Crew& crew) {
    const int64_t first = a.n.reverse ? T - 1 : 0;
    const O* gates0 = gates.get() + (T % 2) * B * row;
    if (full) through_full(crew, gates0);
    product(
        crew, gates0, w1, [](const Tile<A>&) {},
        [&](const Tile<A>& tile) {
          each_pair<1>(tile, P, [&](const Two& p) FRNN_INLINE {
            L total = meeting.met(p, product_of(p)) + gather(p, in_h(direct.get()));
            stop(first, p, total, in_h(danew_h.get()));
            scatter(p, total, in_h(static_cast<D*>(a.dh0)));
            if (a.dreset_h)
              scatter(p, gather(p, in_h(danew_h.get())), in_h(static_cast<D*>(a.dreset_h)));
          });
        });
    for (int64_t k = 0; k < Inner; ++k)
      for (int64_t b = crew.first_row(); b < crew.last_row(); ++b) {
        const bool anew = begins_anew(a, first, b);
        for (int64_t i = (k * B + b) * H; i < (k * B + b + 1) * H; ++i) {
          store(static_cast<D*>(a.dc0)[i], anew ? A(0) : dc.get()[i]);
          if (!a.dreset_c) continue;
          store(static_cast<D*>(a.dreset_c)[i], danew_c.get()[i] + (anew ? dc.get()[i] : A(0)));
        }
      }
  }

  const SequenceBackward& a;
  const int64_t T, B, H, P;
  const bool projected, full;
  Panels<D, 1> w1, wc, w2, wr;  // W_hh of the first gates, of c, and of the second product; W_hr
  Buffer<A> c0;
  // Gradients that meet weights, in rows as the products want them.
  const int64_t row;  // from one row of gates to the next
  Buffer<O> gates;    // 2 * [B, N1*H]: h-gradients of the first gates, of two steps in turn
  Buffer<O> dh;       // [B, P]: gradient of the projected h
  Buffer<O> second;   // [B, N2*H]: h-gradients of the gates of the second product
  Buffer<A> direct;   // [B, P]: the part of the gradient of h that does not pass W_hh
  Buffer<A> dc;       // [S-1, B, H]: gradients of the inner states
  Buffer<A> partial;  // [B, N, H]: d between the two halves of a step
  Buffer<D> anew_h;   // [B, P]: the reset state, zero if none is given ...
  Buffer<A> anew_c;   // [S-1, B, H]
  Buffer<A> danew_h, danew_c;  // ... and its gradient
  const Meeting<A> meeting;
  UnitSums<A> own_sums;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
