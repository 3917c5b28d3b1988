// A whole sequence forward on the CPU: in every step the recurrent product with the gates as its
// epilogue, one barrier, and again where a cell has a second product or there is a projection.
#pragma once
#include "../sequence.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Vectors of one gate in a panel, so that a panel is three or four vectors wide.
constexpr int unit_vectors(int gates) { return gates >= 3 ? 1 : 4 / gates; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool alive(const int64_t* lengths, int64_t b, int64_t t) {
  return lengths == nullptr || t < lengths[b];
}

// W_hh rows of gates [first, first + N), interleaved so that a panel holds all N gates of its
// units.
template <class A, int N>
struct GatePanels : Panels<A, N * unit_vectors(N)> {
  using Base = Panels<A, N * unit_vectors(N)>;
  static constexpr int V = N * unit_vectors(N), units = unit_vectors(N) * Base::lanes;

  GatePanels(int64_t K, int64_t H) : Base(K, K ? ceil_div(H, units) : 0) {}

  template <class D>
  void pack_gates(const Worker& worker, const D* weight, int first, int64_t H) {
    this->pack(worker, [=, this](int64_t k, int64_t panel, int c) {
      const int64_t unit = panel * units + c % units;
      return unit < H ? load(weight[((first + c / units) * H + unit) * this->K + k]) : A(0);
    });
  }
};

template <class Cell, class D>
class ForwardPass {
  using A = State<D>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int N2 = Cell::kSecond, N1 = G - N2;

 public:
  explicit ForwardPass(const SequenceForward& args)
      : a(args),
        T(a.n.T),
        B(a.n.B),
        H(a.n.H),
        P(a.n.P),
        w1(P, H),
        w2(N2 ? H : 0, H),
        wr(a.weight_hr ? H : 0, a.weight_hr ? ceil_div(P, wr.width) : 0),
        bias(G * H),
        states(S * B * H),
        h(2 * B * P),
        operand(N2 || a.weight_hr ? B * H : 0),
        kept(N2 ? B * K * H : 0) {}

  bool allocated() const {
    return w1.data && w2.data && wr.data && bias && states && h && operand && kept;
  }

  void run(const Worker& worker) {
    prepare(worker);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? T - 1 - i : i;
      const A* before = h.get() + (i % 2) * B * P;
      A* after = h.get() + ((i + 1) % 2) * B * P;
      if constexpr (N2 > 0) {
        product(worker, B, before, w1, [&](int64_t b, int64_t panel, const A* c) {
          first_gates(t, b, panel * w1.units, c);
        });
#pragma omp barrier
        product(worker, B, operand.get(), w2, [&](int64_t b, int64_t panel, const A* c) {
          row(t, b, panel * w2.units, w2.units, before, after, c);
        });
      } else {
        product(worker, B, before, w1, [&](int64_t b, int64_t panel, const A* c) {
          row(t, b, panel * w1.units, w1.units, before, after, c);
        });
      }
      if (a.weight_hr) {
#pragma omp barrier
        product(worker, B, operand.get(), wr, [&](int64_t b, int64_t panel, const A* c) {
          project(t, b, panel * wr.width, before, after, c);
        });
      }
#pragma omp barrier
    }
    finish(worker);
  }

 private:
  void prepare(const Worker& worker) {
    const D* w = static_cast<const D*>(a.weight_hh);
    w1.pack_gates(worker, w, 0, H);
    if constexpr (N2 > 0) w2.pack_gates(worker, w, N1, H);
    if (const D* r = static_cast<const D*>(a.weight_hr))
      wr.pack(worker, [=, this](int64_t k, int64_t panel, int c) {
        const int64_t p = panel * wr.width + c;
        return p < P ? load(r[p * H + k]) : A(0);
      });
    if (worker.index == 0) {
      if (const D* b = static_cast<const D*>(a.bias_hh))
        for (int64_t i = 0; i < G * H; ++i) bias.get()[i] = load(b[i]);
      const D* h0 = static_cast<const D*>(a.h0);
      const D* c0 = static_cast<const D*>(a.c0);
      for (int64_t i = 0; i < B * P; ++i) h.get()[i] = load(h0[i]);
      if (!a.weight_hr)
        for (int64_t i = 0; i < B * H; ++i) states.get()[i] = load(h0[i]);
      for (int64_t i = 0; i < (S - 1) * B * H; ++i) states.get()[B * H + i] = load(c0[i]);
    }
#pragma omp barrier
  }

  // Units [j, j + n) of row b at step t, n cut at H; c holds the gates' last product.
  void row(int64_t t, int64_t b, int64_t j, int units, const A* before, A* after, const A* c) {
    const int64_t n = H - j < units ? H - j : units;
    D* y = static_cast<D*>(a.y) + (t * B + b) * P + j;
    if (!alive(a.lengths, b, t)) {
      dead(t, b, j, n);
      if (!a.weight_hr)
        for (int64_t l = 0; l < n; ++l) {
          after[b * P + j + l] = before[b * P + j + l];
          store(y[l], A(0));
        }
      return;
    }
    const D* gx = static_cast<const D*>(a.gx) + (t * B + b) * G * H + j;
    const A* bias_j = bias.get() + j;
    A* state = states.get() + b * H + j;
    A* old = N2 ? kept.get() + b * K * H + j : nullptr;
    // Without backward to come, what is saved goes nowhere - by the same instructions, hence with
    // the same bits in y: a second instance of the loop would round differently.
    D no_saved[K * Panels<A, 4>::width];
    A no_cells[S * Panels<A, 4>::width];
    const int64_t k_stride = a.saved ? H : units, s_stride = a.saved ? B * H : units;
    D* save = a.saved ? static_cast<D*>(a.saved) + (t * B + b) * K * H + j : no_saved;
    A* cells = a.saved ? static_cast<A*>(a.cells) + (t * (S - 1) * B + b) * H + j : no_cells;
    A* to_h = a.weight_hr ? operand.get() + b * H + j : after + b * P + j;
    const int64_t BH = B * H, H_ = H;
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      A x[G], u[G], s[S], out[S], saved[K];
      each<G>([&](auto g) FRNN_INLINE {
        x[g] = load(gx[g * H_ + l]);
        u[g] = g < N1 && N2 ? A(0) : c[(g - (N2 ? N1 : 0)) * units + l] + bias_j[g * H_ + l];
      });
      each<S>([&](auto k) FRNN_INLINE { s[k] = state[k * BH + l]; });
      if constexpr (N2 > 0) each<K>([&](auto k) FRNN_INLINE { saved[k] = old[k * H_ + l]; });
      Cell::forward(x, u, s, out, saved);
      each<S>([&](auto k) FRNN_INLINE { state[k * BH + l] = out[k]; });
      to_h[l] = rounded<D>(out[0]);
      each<K>([&](auto k) FRNN_INLINE { store(save[k * k_stride + l], saved[k]); });
      each<S, 1>([&](auto k) FRNN_INLINE { cells[(k - 1) * s_stride + l] = out[k]; });
    }
    if (!a.weight_hr)
      for (int64_t l = 0; l < n; ++l) store(y[l], to_h[l]);
    if (a.hidden) {
      D* hidden = static_cast<D*>(a.hidden) + (t * B + b) * H + j;
      for (int64_t l = 0; l < n; ++l) store(hidden[l], to_h[l]);
    }
  }

  // The gates before the second product: leaves its operand.
  void first_gates(int64_t t, int64_t b, int64_t j, const A* c) {
    const int64_t n = H - j < w1.units ? H - j : w1.units;
    const D* gx = static_cast<const D*>(a.gx) + (t * B + b) * G * H + j;
    const A* bias_j = bias.get() + j;
    const A* state = states.get() + b * H + j;
    A* keep = kept.get() + b * K * H + j;
    A* to = operand.get() + b * H + j;
    const int64_t BH = B * H, H_ = H;
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      A x[G], u[G] = {}, s[S], saved[K] = {};
      each<G>([&](auto g) FRNN_INLINE { x[g] = load(gx[g * H_ + l]); });
      each<N1>([&](auto g) FRNN_INLINE { u[g] = c[g * w1.units + l] + bias_j[g * H_ + l]; });
      each<S>([&](auto k) FRNN_INLINE { s[k] = state[k * BH + l]; });
      to[l] = rounded<D>(Cell::operand(x, u, s, saved));
      each<K>([&](auto k) FRNN_INLINE { keep[k * H_ + l] = saved[k]; });
    }
  }

  void project(int64_t t, int64_t b, int64_t j, const A* before, A* after, const A* c) {
    const bool live = alive(a.lengths, b, t);
    D* y = static_cast<D*>(a.y) + (t * B + b) * P;
    for (int64_t p = j; p < P && p < j + wr.width; ++p) {
      after[b * P + p] = live ? rounded<D>(c[p - j]) : before[b * P + p];
      store(y[p], live ? after[b * P + p] : A(0));
    }
  }

  // A row past its end leaves zeros for backward, which does not read them.
  void dead(int64_t t, int64_t b, int64_t j, int64_t n) {
    if (!a.saved) return;
    for (int k = 0; k < K; ++k)
      std::memset(static_cast<D*>(a.saved) + ((t * B + b) * K + k) * H + j, 0, n * sizeof(D));
    for (int k = 0; k < S - 1; ++k)
      std::memset(static_cast<A*>(a.cells) + ((t * (S - 1) + k) * B + b) * H + j, 0, n * sizeof(A));
    if (a.hidden) std::memset(static_cast<D*>(a.hidden) + (t * B + b) * H + j, 0, n * sizeof(D));
  }

  void finish(const Worker& worker) {
    const A* last = a.weight_hr ? h.get() + (T % 2) * B * P : states.get();
    for (int64_t i = worker.first(B * P); i < worker.last(B * P); ++i)
      store(static_cast<D*>(a.hn)[i], last[i]);
    const int64_t inner = (S - 1) * B * H;
    for (int64_t i = worker.first(inner); i < worker.last(inner); ++i)
      store(static_cast<D*>(a.cn)[i], states.get()[B * H + i]);
  }

  const SequenceForward& a;
  const int64_t T, B, H, P;
  GatePanels<A, N1> w1;
  GatePanels<A, N2 ? N2 : 1> w2;
  Panels<A, 4> wr;
  Buffer<A> bias, states, h, operand, kept;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
