// A whole sequence forward on the CPU: in every step the recurrent product with the gates as its
// epilogue, one barrier, and again where a cell has a second product or there is a projection.
#pragma once
#include "../cell.h"
#include "../random.h"
#include "../sequence.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// One vector of a tile's result: units [j, j + n) of row b; c points at its first gate, the others
// follow `stride` apart.
template <class A>
struct Units {
  int64_t b, j;
  int n;
  const A* c;
  int64_t stride;
};

// Two of them: what the cell's maths is done on at a time.
template <class A>
struct Pair {
  Units<A> first, second;
};

// f(Pair) for all of a tile; an odd last one comes as both.
template <int N, class A, class F>
inline FRNN_INLINE void each_pair(const Tile<A>& tile, int64_t units, F f) {
  constexpr int lanes = Vector<A>::lanes;
  const int64_t stride = tile.vectors * lanes;
  const A* c = tile.c;
  int64_t b = tile.b, j = tile.first * lanes;
  int v = 0;
  const auto next = [&]() FRNN_INLINE {
    const Units<A> u{b, j, int(units - j < lanes ? units - j : lanes), c, stride};
    j += lanes, c += lanes;
    if (++v == tile.vectors) v = 0, ++b, j = tile.first * lanes, c += (N - 1) * stride;
    return u;
  };
  for (int left = tile.rows * tile.vectors; left > 0; left -= 2) {
    const Units<A> u = next();
    f(Pair<A>{u, left > 1 ? next() : u});
  }
}

// f(Pair) of the rows that take part in step t, past(Units) for those beyond their end. One call
// of f, so that all rows meet the same instructions.
template <class A, class F, class G>
inline FRNN_INLINE void where_alive(const int64_t* lengths, int64_t t, Pair<A> p, F f, G past) {
  if (lengths) {
    const bool first = t < lengths[p.first.b], second = t < lengths[p.second.b];
    if (!first) past(p.first);
    if (!second && p.second.c != p.first.c) past(p.second);
    if (!first && !second) return;
    if (!first) p.first = p.second;
    if (!second) p.second = p.first;
  }
  f(p);
}

// Whether row b begins anew at step t (csrc/sequence.h).
template <class Args>
inline FRNN_INLINE bool begins_anew(const Args& a, int64_t t, int64_t b) {
  const int64_t boundary = a.n.reverse ? t + 1 : t;
  return a.reset && boundary < a.n.T && (!a.lengths || boundary < a.lengths[b]) &&
         a.reset[boundary * a.n.B + b];
}

// Asks for the `vectors` vectors from p on, and for those of n - 1 more rows, `stride` apart.
template <class E>
inline FRNN_INLINE void prefetch_rows(const E* p, int n, int64_t stride, int vectors) {
  constexpr int64_t line = 64 / sizeof(E);
  const int64_t width = vectors * Vector<State<E>>::lanes;
  for (int i = 0; i < n; ++i)
    for (int64_t l = 0; l < width; l += line) __builtin_prefetch(p + i * stride + l);
}

// Lanes from or to memory: at(unit) is where a unit's numbers lie.
template <class A, class F>
inline FRNN_INLINE Lanes<A> gather(const Pair<A>& p, F at) {
  Lanes<A> x;
  x.v[0] = load_vector(at(p.first), p.first.n);
  x.v[1] = load_vector(at(p.second), p.second.n);
  return x;
}
template <class A, class F>
inline FRNN_INLINE void scatter(const Pair<A>& p, const Lanes<A>& x, F at) {
  store_vector(at(p.first), p.first.n, x.v[0]);
  store_vector(at(p.second), p.second.n, x.v[1]);
}

// Where the numbers of some units lie in rows that are `row` apart.
template <class E>
inline FRNN_INLINE auto in_rows(E* rows, int64_t row) {
  return [=](const Units<State<std::remove_const_t<E>>>& u)
             FRNN_INLINE { return rows + u.b * row + u.j; };
}

// 32 bits for each lane of a vector of A.
typedef uint32_t FloatBits __attribute__((vector_size(kVectorBytes)));
typedef uint32_t DoubleBits __attribute__((vector_size(kVectorBytes / 2)));
template <class A>
using LaneBits = std::conditional_t<sizeof(A) == 4, FloatBits, DoubleBits>;

// 1 where a unit's bits say that it is kept, with probability 1 - p; 0 elsewhere.
template <class A>
inline FRNN_INLINE Lanes<A> drawn(const Pair<A>& units, const uint64_t (&keys)[2], Stream stream,
                                  double p) {
  const Units<A>* const of[] = {&units.first, &units.second};
  Lanes<A> x;
  each<2>([&](auto i) FRNN_INLINE {
    LaneBits<A> unit;
    for (int l = 0; l < Vector<A>::lanes; ++l) unit[l] = uint32_t(of[i]->j) + l;
    const LaneBits<A> bits = random_bits(keys[i], stream, unit);
    const uint32_t below = bits_below(p);
    for (int l = 0; l < Vector<A>::lanes; ++l) x.v[i][l] = bits[l] < below ? A(1) : A(0);
  });
  return x;
}

// Shares of what is new: zoneout's and dropout's.
template <class A>
struct Shares {
  Lanes<A> h, c, drop;
};

// Not inline: most calls draw nothing, and inline it takes the compiler as long as all else.
template <class A>
[[gnu::noinline]] Shares<A> shares_of(const CellOptions& options, const int64_t* seed, int64_t t,
                                      const Pair<A>& units) {
  const double h = options.zoneout_h, c = options.zoneout_c, drop = options.dropout;
  Shares<A> x{Lanes<A>(A(1 - h)), Lanes<A>(A(1 - c)), Lanes<A>(A(1))};
  if (!seed) return x;
  const uint64_t keys[] = {row_key(*seed, t, units.first.b), row_key(*seed, t, units.second.b)};
  if (h > 0) x.h = drawn(units, keys, Stream::keep_h, h);
  if (c > 0) x.c = drawn(units, keys, Stream::keep_c, c);
  const Lanes<A> scale(drop < 1 ? A(1 / (1 - drop)) : A(0));
  if (drop > 0) x.drop = scale * drawn(units, keys, Stream::drop, drop);
  return x;
}

// What the units have of their own at step t: D is the tensors' type.
template <class Cell, class D, class Args>
inline FRNN_INLINE PerUnit<Lanes<State<D>>> own_values(const Args& a, int64_t t,
                                                       const Pair<State<D>>& units) {
  using A = State<D>;
  const CellOptions& options = a.n.options;
  PerUnit<Lanes<A>> own;
  const int weights = Cell::weights(options);
  if (weights > 0) {
    each<3>([&](auto k) FRNN_INLINE {
      const D* row = static_cast<const D*>(a.weight_unit) + (k < weights ? k : 0) * a.n.H;
      own.weight[k] = gather(units, [=](const Units<A>& u) FRNN_INLINE { return row + u.j; });
    });
  }
  if (options.random()) {
    const Shares<A> shares = shares_of<A>(options, a.seed, t, units);
    own.keep_h = shares.h, own.keep_c = shares.c, own.drop = shares.drop;
  }
  return own;
}

// Factors of h where it meets W_hh, [B, P]; empty where there are none.
template <class A>
class Meeting {
 public:
  template <class Args>
  FRNN_COLD explicit Meeting(const Args& a)
      : there(a.n.options.variational > 0 && a.seed),
        factors_(there ? a.n.B * a.n.P : 0),
        P_(a.n.P) {
    for (int64_t i = 0; there && factors_ && i < a.n.B * P_; ++i)
      factors_.get()[i] = sequence_factor<A>(*a.seed, i / P_, i % P_, a.n.options.variational);
  }
  explicit operator bool() const { return bool(factors_); }
  const bool there;
  FRNN_INLINE Lanes<A> met(const Pair<A>& p, const Lanes<A>& h) const {
    return there ? h * gather(p, in_rows(factors_.get(), P_)) : h;
  }
  A met(int64_t b, int64_t j, A h) const { return there ? h * factors_.get()[b * P_ + j] : h; }

 private:
  Buffer<A> factors_;
  const int64_t P_;
};

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

  void run(const Worker& worker) {
    prepare(worker);
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
      const auto fetch = [&](const Tile<A>& tile) { prefetch(t, tile); };
      const auto nothing = [](const Tile<A>&) {};
      if constexpr (N2 > 0) {
        product(worker, B, before, w1, fetch, [&](const Tile<A>& tile) {
          each_pair<N1>(tile, H, [&](const Two& p) FRNN_INLINE { first_gates(t, p, before); });
        });
        worker.barrier();
        product(worker, B, operand.get(), w2, nothing,
                [&](const Tile<A>& tile) { each_pair<N2>(tile, H, units); });
      } else {
        product(worker, B, before, w1, fetch,
                [&](const Tile<A>& tile) { each_pair<N1>(tile, H, units); });
      }
      if (a.weight_hr) project_all(worker, t, next, before, after);
      worker.barrier();
    }
    finish(worker);
  }

 protected:
  static const void* part(const void* tensor, int64_t from) {
    return tensor ? static_cast<const D*>(tensor) + from : nullptr;
  }

  // h of a step from the cells' h, which lies in operand.
  void project_all(const Worker& worker, int64_t t, int64_t next, const O* before, O* after) {
    worker.barrier();
    product(
        worker, B, operand.get(), wr, [](const Tile<A>&) {},
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

  // What the epilogue of a tile will read and write in memory that no step has touched before.
  void prefetch(int64_t t, const Tile<A>& tile) const {
    const int64_t j = tile.first * Vector<A>::lanes;
    for (int64_t b = tile.b; b < tile.b + tile.rows; ++b) {
      prefetch_rows(static_cast<const D*>(a.gx) + (t * B + b) * G * H + j, G, H, tile.vectors);
      if (!a.saved) continue;
      prefetch_rows(static_cast<D*>(a.saved) + (t * B + b) * K * H + j, K, H, tile.vectors);
      prefetch_rows(static_cast<A*>(a.cells) + (t * (S - 1) * B + b) * H + j, S - 1, B * H,
                    tile.vectors);
    }
    for (int64_t b = tile.b; b < tile.b + tile.rows && !a.weight_hr; ++b)
      prefetch_rows(y_at(t, b, j), 1, 0, tile.vectors);
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
  FRNN_COLD void restart(int64_t next, const Units<A>& u, O* after) {
    if (!begins_anew(a, next, u.b)) return;
    if (!a.weight_hr) {
      restart_h(next, u, after);
      if (apart) reset_to(a.reset_h, u.b * H + u.j, u.n, in(states.get(), 1)(u));
    }
    for (int k = 0; k < S - 1; ++k)
      reset_to(a.reset_c, (k * B + u.b) * H + u.j, u.n, in(states.get() + (k + 1) * B * H, 1)(u));
    if (a.n.options.full) reset_to(a.reset_c, u.b * H + u.j, u.n, in_rows(after + P, row)(u));
  }
  FRNN_COLD void restart_h(int64_t next, const Units<A>& u, O* after) {
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
  FRNN_COLD void rest(int64_t t, const Units<A>& u, const O* before, O* after) {
    std::memcpy(in_rows(after, row)(u), in_rows(before, row)(u), u.n * sizeof(O));
    std::memset(y_at(t, u.b, u.j), 0, u.n * sizeof(D));
  }

  // What such a row saves is zero: backward does not read it.
  FRNN_COLD void past(int64_t t, const Units<A>& u, const O* before, O* after) {
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

  FRNN_COLD void finish(const Worker& worker) {
    const O* last = h.get() + (T % 2) * B * row;
    const bool wide = apart && !a.weight_hr;
    for (int64_t b = worker.first(B); b < worker.last(B); ++b)
      for (int64_t j = 0; j < P; ++j) {
        const A h_n = wide ? states.get()[b * H + j] : load(last[b * row + j]);
        store(static_cast<D*>(a.hn)[b * P + j], h_n);
      }
    const int64_t inner = (S - 1) * B * H;
    for (int64_t i = worker.first(inner); i < worker.last(inner); ++i)
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
