// A whole sequence forward on the CPU: in every step the recurrent product with the gates as its
// epilogue, one barrier, and again where a cell has a second product or there is a projection.
#pragma once
#include "own_values.h"
#include "step_ahead.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class Cell, class D>
class ForwardPass {
  using A = State<D>;
  using O = Operand<D>;
  using L = Lanes<A>;
  using Two = Pair<A>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int N2 = Cell::kSecond, N1 = G - N2;
  // 16-bit h is kept in float too: what meets the weights is rounded, the state is not.
  static constexpr bool kWide = sizeof(D) != sizeof(A);

 public:
  explicit ForwardPass(const SequenceForward& args)
      : a(args),
        T(a.n.T),
        B(a.n.B),
        H(a.n.H),
        P(a.n.P),
        w1(a.n.depth(), H, Rows::outputs, a.weight_hh, a.n.options.layer_norm ? nullptr : a.bias_hh,
           T, a.n.threads),
        w2(N2 ? H : 0, N2 ? H : 0, Rows::outputs, part(a.weight_hh, N1 * H * P),
           part(a.bias_hh, N1 * H), T, a.n.threads),
        wr(a.weight_hr ? H : 0, a.weight_hr ? P : 0, Rows::outputs, a.weight_hr, nullptr, T,
           a.n.threads),
        states(S * B * H),
        kept(N2 ? B * K * H : 0),
        row(a.n.options.independent ? P : w1.row),
        h(2 * B * row),
        operand(B * (N2 ? w2.row : wr.row)),
        meeting(a),
        apart(kWide || meeting.there) {}

  bool allocated() const { return w1 && w2 && wr && states && h && operand && kept && meeting; }

  void run(const Worker& worker, int crews) {
    prepare(worker);
    const Crew crew(worker, crews, B);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? T - 1 - i : i;
      const O* before = h.get() + (i % 2) * B * row;
      O* after = h.get() + ((i + 1) % 2) * B * row;
      const int64_t next = i + 1 == T ? -1 : a.n.reverse ? t - 1 : t + 1;
      const auto units = [&](const Two& pair) FRNN_INLINE {
        where_alive(
            a.lengths, t, pair, [&](const Two& p) FRNN_INLINE { step(t, p, before, after); },
            [&](const Units<A>& u) { past(t, u, before, after); });
        if (a.reset && next >= 0) {
          restart(next, pair.first, after);
          restart(next, pair.second, after);
        }
      };
      StepAhead ahead = touched(crew, next);
      const auto nothing = [](const Tile<A>&) {};
      if constexpr (N2 > 0) {
        product(crew, before, w1, ahead, [&](const Tile<A>& tile) {
          each_pair<N1>(tile, H, [&](const Two& p) FRNN_INLINE { first_gates(t, p, before); });
        });
        crew.barrier();
        product(crew, operand.get(), w2, nothing,
                [&](const Tile<A>& tile) { each_pair<N2>(tile, H, units); });
      } else {
        product(crew, before, w1, ahead,
                [&](const Tile<A>& tile) { each_pair<N1>(tile, H, units); });
      }
      if (a.weight_hr) project_all(crew, t, next, before, after);
      crew.barrier();
    }
    finish(crew);
  }

 protected:
  static const void* part(const void* tensor, int64_t from) {
    return tensor ? static_cast<const D*>(tensor) + from : nullptr;
  }

  // h of a step from the cells' h, which lies in operand.
  void project_all(const Crew& crew, int64_t t, int64_t next, const O* before, O* after) {
    crew.barrier();
    product(
        crew, operand.get(), wr, [](const Tile<A>&) {},
        [&](const Tile<A>& tile) {
          each_pair<1>(tile, P, [&](const Two& p) FRNN_INLINE {
            project(t, p, before, after);
            if (a.reset && next >= 0) {
              restart_h(next, p.first, after);
              restart_h(next, p.second, after);
            }
          });
        });
  }

  FRNN_COLD void prepare(const Worker& worker) {
    w1.prepare(worker);
    w2.prepare(worker);
    wr.prepare(worker);
    if (worker.index == 0) {
      const D* h0 = static_cast<const D*>(a.h0);
      const D* c0 = static_cast<const D*>(a.c0);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < P; ++j)
          store(h.get()[b * row + j], meeting.met(b, j, load(h0[b * P + j])));
      if (apart && !a.weight_hr)
        for (int64_t i = 0; i < B * H; ++i) states.get()[i] = load(h0[i]);
      for (int64_t i = 0; i < (S - 1) * B * H; ++i) states.get()[B * H + i] = load(c0[i]);
      for (int64_t i = 0; i < B * H && a.n.options.full; ++i)
        store(h.get()[i / H * row + P + i % H], load(c0[i]));
      const int64_t first = a.n.reverse ? T - 1 : 0;
      for (int64_t b = 0; b < B && a.reset; ++b) {
        restart(first, {b, 0, int(H), nullptr, 0}, h.get());
        if (a.weight_hr) restart_h(first, {b, 0, int(P), nullptr, 0}, h.get());
      }
    }
    worker.barrier();
  }

  // Where the numbers of some units lie in a tensor [..., B, width, H], [..., B, H] and [.., B, P].
  template <class E>
  auto in(E* row, int width) const {
    return in_rows(row, width * H);
  }

  // y[t, b, j]
  D* y_at(int64_t t, int64_t b, int64_t j) const {
    return static_cast<D*>(a.y) + (t * B + b) * a.n.y_row + j;
  }
  auto in_y(int64_t t) const {
    return [=, this](const Units<A>& u) FRNN_INLINE { return y_at(t, u.b, u.j); };
  }

  // What step t reads and writes.
  StepAhead touched(const Crew& crew, int64_t t) const {
    StepAhead ahead(crew, H);
    if (t < 0 || all_near(a.n, (G + K + S) * H)) return ahead;
    const int width = CallSizes<Cell>(a.n.options).saved;
    ahead.add(static_cast<const D*>(a.gx) + t * B * G * H, G * H, G * H);
    ahead.add(y_at(t, 0, 0), P, a.n.y_row);
    if (!a.saved) return ahead;
    ahead.add(static_cast<D*>(a.saved) + t * B * width * H, width * H, width * H);
    for (int k = 0; k < S - 1; ++k)
      ahead.add(static_cast<A*>(a.cells) + (t * (S - 1) + k) * B * H, H, H);
    return ahead;
  }

  FRNN_INLINE void step(int64_t t, const Two& p, const O* before, O* after) {
    const D* gx = static_cast<const D*>(a.gx) + t * B * G * H;
    L x[G], u[G], s[S], out[S], saved[K];
    each<G>([&](auto g) FRNN_INLINE { x[g] = gather(p, in(gx + g * H, G)); });
    each<G>([&](auto g) FRNN_INLINE {
      if constexpr (N2 > 0 && g < N1)
        u[g] = L(0);
      else
        u[g] = gather(p, [&](const Units<A>& q) { return q.c + (g - (N2 ? N1 : 0)) * q.stride; });
    });
    each<S>([&](auto k) FRNN_INLINE { s[k] = state(k, before, p); });
    if constexpr (N2 > 0)
      each<K>([&](auto k) FRNN_INLINE { saved[k] = gather(p, in(kept.get() + k * H, K)); });
    cell_forward<Cell>(a.n.options, own_values<Cell, D>(a, t, p), x, u, s, out, saved);
    each<S, !kWide>([&](auto k)
                        FRNN_INLINE { scatter(p, out[k], in(states.get() + k * B * H, 1)); });
    if (!kWide && apart) scatter(p, out[0], in(states.get(), 1));
    if constexpr (S > 1)
      if (a.n.options.full) scatter(p, rounded<D>(out[1]), in_rows(after + P, row));
    leave_h(t, p, out[0], after);
    if (!a.saved) return;
    D* save = static_cast<D*>(a.saved) + t * B * K * H;
    A* cells = static_cast<A*>(a.cells) + t * (S - 1) * B * H;
    each<K>([&](auto k) FRNN_INLINE { scatter(p, saved[k], in(save + k * H, K)); });
    each<S, 1>([&](auto k) FRNN_INLINE { scatter(p, out[k], in(cells + (k - 1) * B * H, 1)); });
  }

  // h of the cells: to y and the next step, or to the projection.
  FRNN_INLINE void leave_h(int64_t t, const Two& p, const L& h_new, O* after) {
    const L hidden = rounded<D>(h_new);
    if (a.weight_hr) {
      scatter(p, hidden, in_rows(operand.get(), wr.row));
    } else {
      scatter(p, meeting.there ? rounded<D>(meeting.met(p, h_new)) : hidden, in_rows(after, row));
      scatter(p, hidden, in_y(t));
    }
    if (a.hidden) scatter(p, hidden, in(static_cast<D*>(a.hidden) + t * B * H, 1));
  }

  // The gates before the second product: leaves its operand.
  FRNN_INLINE void first_gates(int64_t t, const Two& p, const O* before) {
    const D* gx = static_cast<const D*>(a.gx) + t * B * G * H;
    L x[G], u[G], s[S], saved[K];
    each<G>([&](auto g) FRNN_INLINE { x[g] = gather(p, in(gx + g * H, G)); });
    each<N1>([&](auto g) FRNN_INLINE {
      u[g] = gather(p, [&](const Units<A>& q) { return q.c + g * q.stride; });
    });
    each<S>([&](auto k) FRNN_INLINE { s[k] = state(k, before, p); });
    each<K>([&](auto k) FRNN_INLINE { saved[k] = L(0); });
    scatter(p, rounded<D>(Cell::operand(a.n.options, x, u, s, saved)),
            in_rows(operand.get(), w2.row));
    each<K>([&](auto k) FRNN_INLINE { scatter(p, saved[k], in(kept.get() + k * H, K)); });
  }

  // State k of some units before a step. With a projection no cell sees h itself.
  FRNN_INLINE L state(int k, const O* before, const Two& p) const {
    if constexpr (!kWide)
      if (k == 0 && !a.weight_hr && !apart) return gather(p, in_rows(before, row));
    return gather(p, in(states.get() + k * B * H, 1));
  }

  void project(int64_t t, const Two& p, const O* before, O* after) {
    where_alive(
        a.lengths, t, p,
        [&](const Two& q) FRNN_INLINE {
          const L hidden = rounded<D>(gather(q, [](const Units<A>& u) { return u.c; }));
          scatter(q, hidden, in_rows(after, row));
          scatter(q, hidden, in_y(t));
        },
        [&](const Units<A>& u) { rest(t, u, before, after); });
  }

  // Units that begin anew at the step to come: their states are the reset state.
  FRNN_COLD void restart(int64_t next, Units<A> u, O* after) {
    if (!begins_anew(a, next, u.b)) return;
    if (!a.weight_hr) {
      restart_h(next, u, after);
      if (apart) reset_to(a.reset_h, u.b * H + u.j, u.n, in(states.get(), 1)(u));
    }
    for (int k = 0; k < S - 1; ++k)
      reset_to(a.reset_c, (k * B + u.b) * H + u.j, u.n, in(states.get() + (k + 1) * B * H, 1)(u));
    if (a.n.options.full) reset_to(a.reset_c, u.b * H + u.j, u.n, in_rows(after + P, row)(u));
  }
  FRNN_COLD void restart_h(int64_t next, Units<A> u, O* after) {
    if (!begins_anew(a, next, u.b)) return;
    O* to = in_rows(after, row)(u);
    reset_to(a.reset_h, u.b * P + u.j, u.n, to);
    for (int l = 0; meeting.there && l < u.n; ++l)
      store(to[l], meeting.met(u.b, u.j + l, load(to[l])));
  }
  template <class E>
  FRNN_COLD static void reset_to(const void* state, int64_t at, int n, E* to) {
    for (int l = 0; l < n; ++l)
      store(to[l], state ? load(static_cast<const D*>(state)[at + l]) : A(0));
  }

  // Units of a row past its end: the state stays, y is zero.
  FRNN_COLD void rest(int64_t t, Units<A> u, const O* before, O* after) {
    std::memcpy(in_rows(after, row)(u), in_rows(before, row)(u), u.n * sizeof(O));
    std::memset(y_at(t, u.b, u.j), 0, u.n * sizeof(D));
  }

  // What such a row saves is zero: backward does not read it.
  FRNN_COLD void past(int64_t t, Units<A> u, const O* before, O* after) {
    if (!a.weight_hr) rest(t, u, before, after);
    if (a.n.options.full)
      std::memcpy(in_rows(after + P, row)(u), in_rows(before + P, row)(u), u.n * sizeof(O));
    if (!a.saved) return;
    const auto clear = [&](auto* row, int width) {
      std::memset(in(row, width)(u), 0, u.n * sizeof(*row));
    };
    for (int k = 0; k < K; ++k) clear(static_cast<D*>(a.saved) + t * B * K * H + k * H, K);
    for (int k = 0; k < S - 1; ++k) clear(static_cast<A*>(a.cells) + (t * (S - 1) + k) * B * H, 1);
    if (a.hidden) clear(static_cast<D*>(a.hidden) + t * B * H, 1);
  }

  FRNN_COLD void finish(const Crew& crew) {
    const O* last = h.get() + (T % 2) * B * row;
    const bool wide = apart && !a.weight_hr;
    for (int64_t b = crew.first_row(); b < crew.last_row(); ++b)
      for (int64_t j = 0; j < P; ++j) {
        const A h_n = wide ? states.get()[b * H + j] : load(last[b * row + j]);
        store(static_cast<D*>(a.hn)[b * P + j], h_n);
      }
    for (int64_t k = 0; k < S - 1; ++k)
      for (int64_t i = (k * B + crew.first_row()) * H; i < (k * B + crew.last_row()) * H; ++i)
        store(static_cast<D*>(a.cn)[i], states.get()[B * H + i]);
  }

  const SequenceForward& a;
  const int64_t T, B, H, P;
  Panels<D, N1> w1;
  Panels<D, N2 ? N2 : 1> w2;
  Panels<D, 1> wr;
  Buffer<A> states, kept;
  const int64_t row;     // from one row of what meets W_hh to the next
  Buffer<O> h, operand;  // [2, B, P] (full: then c) and [B, H], rows as the products want them
  const Meeting<A> meeting;
  const bool apart;  // h as a state is kept in states, apart from what meets the weights
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
