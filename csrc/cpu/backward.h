// A whole sequence backward on the CPU: in every step the gradient of h arrives as a product of the
// following step's gate gradients with W_hh, whose epilogue runs the cell backward; one barrier,
// and again where a cell has a second product or there is a projection. dW, dx and db are the
// caller's: large products over all steps.
#pragma once
#include "forward.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class Cell, class D>
class BackwardPass {
  using A = State<D>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, N = Cell::kGrads;
  static constexpr int N2 = Cell::kSecond, N1 = G - N2;

 public:
  explicit BackwardPass(const SequenceBackward& args)
      : a(args),
        T(a.n.T),
        B(a.n.B),
        H(a.n.H),
        P(a.n.P),
        projected(a.weight_hr != nullptr),
        w1(N1 * H, ceil_div(P, w1.width)),
        w2(N2 * H, N2 ? ceil_div(H, w2.width) : 0),
        wr(projected ? P : 0, projected ? ceil_div(H, wr.width) : 0),
        c0(Inner * B * H),
        gates(2 * B * N1 * H),
        direct(B * P),
        dc(Inner * B * H),
        dh(projected ? B * P : 0),
        second(B * N2 * H),
        partial(N2 ? B * N * H : 0) {}

  bool allocated() const {
    return w1.data && w2.data && wr.data && c0 && gates && direct && dc && dh && second && partial;
  }

  void run(const Worker& worker) {
    prepare(worker);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = a.n.reverse ? i : T - 1 - i;
      const A* following = i == 0 ? nullptr : gates.get() + (i % 2) * B * N1 * H;
      A* now = gates.get() + ((i + 1) % 2) * B * N1 * H;
      product(worker, B, following, w1, [&](int64_t b, int64_t panel, const A* c) {
        arrive(t, b, panel * w1.width, now, c);
      });
      if constexpr (N2 > 0) {
#pragma omp barrier
        product(worker, B, second.get(), w2, [&](int64_t b, int64_t panel, const A* c) {
          complete(t, b, panel * w2.width, now, c);
        });
      }
      if (projected) {
#pragma omp barrier
        product(worker, B, dh.get(), wr, [&](int64_t b, int64_t panel, const A* c) {
          through_cell(t, b, panel * wr.width, wr.width, now, c, nullptr);
        });
      }
#pragma omp barrier
    }
    finish(worker);
  }

 private:
  static constexpr int Inner = S - 1;

  void prepare(const Worker& worker) {
    const D* w = static_cast<const D*>(a.weight_hh);
    w1.pack(worker, [=, this](int64_t k, int64_t panel, int c) {
      const int64_t p = panel * w1.width + c;
      return p < P ? load(w[k * P + p]) : A(0);
    });
    if constexpr (N2 > 0)
      w2.pack(worker, [=, this](int64_t k, int64_t panel, int c) {
        const int64_t p = panel * w2.width + c;
        return p < H ? load(w[(N1 * H + k) * P + p]) : A(0);
      });
    if (const D* r = static_cast<const D*>(a.weight_hr))
      wr.pack(worker, [=, this](int64_t k, int64_t panel, int c) {
        const int64_t unit = panel * wr.width + c;
        return unit < H ? load(r[k * H + unit]) : A(0);
      });
    if (worker.index == 0) {
      widen(a.c0, c0, Inner * B * H);
      widen(a.dcn, dc, Inner * B * H);
      widen(a.dhn, direct, B * P);
    }
#pragma omp barrier
  }

  static void widen(const void* from, const Buffer<A>& to, int64_t n) {
    if (const D* d = static_cast<const D*>(from))
      for (int64_t i = 0; i < n; ++i) to.get()[i] = load(d[i]);
  }

  // The gradient of h at step t, columns [j, j + panel): product, direct part, dy.
  void arrive(int64_t t, int64_t b, int64_t j, A* now, const A* c) {
    const int64_t n = P - j < w1.width ? P - j : w1.width;
    A* keep = direct.get() + b * P + j;
    const D* dy = static_cast<const D*>(a.dy);
    if (!alive(a.lengths, b, t)) return pass_by(t, b, j, n, now, c);
    A total[Panels<A, 4>::width];
    for (int64_t l = 0; l < n; ++l) total[l] = c[l] + keep[l];
    if (dy)
      for (int64_t l = 0; l < n; ++l) total[l] += load(dy[(t * B + b) * P + j + l]);
    if (!projected) return through_cell(t, b, j, int(n), now, total, keep);
    for (int64_t l = 0; l < n; ++l) {
      keep[l] = A(0);
      dh.get()[b * P + j + l] = total[l];
      store(static_cast<D*>(a.dh)[(t * B + b) * P + j + l], total[l]);
    }
  }

  // A row past its end: gradients of its state go on unchanged, all others are zero.
  void pass_by(int64_t t, int64_t b, int64_t j, int64_t n, A* now, const A* c) {
    for (int64_t l = 0; l < n; ++l) direct.get()[b * P + j + l] += c[l];
    if (projected) {
      std::memset(dh.get() + b * P + j, 0, n * sizeof(A));
      std::memset(static_cast<D*>(a.dh) + (t * B + b) * P + j, 0, n * sizeof(D));
    } else {
      silence(t, b, j, n, now);
    }
  }

  void silence(int64_t t, int64_t b, int64_t j, int64_t n, A* now) {
    D* grads = static_cast<D*>(a.grads) + (t * B + b) * N * H + j;
    for (int k = 0; k < N; ++k) std::memset(grads + k * H, 0, n * sizeof(D));
    for (int g = 0; g < N1; ++g) std::memset(now + (b * N1 + g) * H + j, 0, n * sizeof(A));
    for (int g = 0; g < N2; ++g) std::memset(second.get() + (b * N2 + g) * H + j, 0, n * sizeof(A));
  }

  // What backward of one unit needs besides its incoming gradient.
  struct Unit {
    const D* saved;        // [K] with stride H
    const D* h;            // state 0 before the step, or null with a projection
    const A* inner;        // [S-1] before the step, stride BH
    const A* inner_after;  // [S-1] after it
  };

  Unit unit(int64_t t, int64_t b, int64_t j) const {
    const int64_t before = a.n.reverse ? t + 1 : t - 1;
    const bool inside = before >= 0 && before < T && alive(a.lengths, b, before);
    const A* cells = static_cast<const A*>(a.cells);
    const D* h = inside ? static_cast<const D*>(a.y) + before * B * P : static_cast<const D*>(a.h0);
    return {static_cast<const D*>(a.saved) + (t * B + b) * K * H + j,
            projected ? nullptr : h + b * P + j,
            (inside ? cells + before * Inner * B * H : c0.get()) + b * H + j,
            cells + (t * Inner * B + b) * H + j};
  }

  // Units [j, j + n) of row b: total is the gradient of their h; direct_h takes what passes W_hh
  // by.
  void through_cell(int64_t t, int64_t b, int64_t j, int width, A* now, const A* total,
                    A* direct_h) {
    const int64_t n = H - j < width ? H - j : width;
    if (projected && !alive(a.lengths, b, t)) return silence(t, b, j, n, now);
    const Unit v = unit(t, b, j);
    A* dc_j = dc.get() + b * H + j;
    A* now_j = now + b * N1 * H + j;
    A* second_j = N2 ? second.get() + b * N2 * H + j : nullptr;
    A* partial_j = N2 ? partial.get() + b * N * H + j : nullptr;
    D* grads = static_cast<D*>(a.grads) + (t * B + b) * N * H + j;
    const int64_t BH = B * H, H_ = H;
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      A saved[K], s[S], out[S], dout[S], d[N] = {}, ds[S];
      each<K>([&](auto k) FRNN_INLINE { saved[k] = load(v.saved[k * H_ + l]); });
      s[0] = v.h ? load(v.h[l]) : A(0);
      out[0] = A(0);
      dout[0] = total[l];
      each<S, 1>([&](auto k) FRNN_INLINE {
        s[k] = v.inner[(k - 1) * BH + l];
        out[k] = v.inner_after[(k - 1) * BH + l];
        dout[k] = dc_j[(k - 1) * BH + l];
      });
      Cell::backward(saved, s, out, dout, d, ds);
      if (direct_h) direct_h[l] = ds[0];
      each<S, 1>([&](auto k) FRNN_INLINE { dc_j[(k - 1) * BH + l] = ds[k]; });
      each<N2>([&](auto g) FRNN_INLINE { second_j[g * H_ + l] = d[Cell::h_grad(N1 + g)]; });
      if constexpr (N2 > 0) {
        each<N>([&](auto k) FRNN_INLINE { partial_j[k * H_ + l] = d[k]; });
      } else {
        each<N1>([&](auto g) FRNN_INLINE { now_j[g * H_ + l] = d[Cell::h_grad(g)]; });
        each<N>([&](auto k) FRNN_INLINE { store(grads[k * H_ + l], d[k]); });
      }
    }
  }

  // After the second product: c is the gradient of the cell's operand.
  void complete(int64_t t, int64_t b, int64_t j, A* now, const A* c) {
    const int64_t n = H - j < w2.width ? H - j : w2.width;
    if (!alive(a.lengths, b, t)) return;
    const Unit v = unit(t, b, j);
    A* direct_h = direct.get() + b * P + j;
    const A* partial_j = partial.get() + b * N * H + j;
    A* now_j = now + b * N1 * H + j;
    D* grads = static_cast<D*>(a.grads) + (t * B + b) * N * H + j;
    const int64_t H_ = H;
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      A saved[K], s[S] = {}, d[N], ds[S] = {};
      each<K>([&](auto k) FRNN_INLINE { saved[k] = load(v.saved[k * H_ + l]); });
      s[0] = load(v.h[l]);
      each<N>([&](auto k) FRNN_INLINE { d[k] = partial_j[k * H_ + l]; });
      ds[0] = direct_h[l];
      Cell::backward_operand(saved, s, c[l], d, ds);
      direct_h[l] = ds[0];
      each<N1>([&](auto g) FRNN_INLINE { now_j[g * H_ + l] = d[Cell::h_grad(g)]; });
      each<N>([&](auto k) FRNN_INLINE { store(grads[k * H_ + l], d[k]); });
    }
  }

  void finish(const Worker& worker) {
    const A* gates0 = gates.get() + (T % 2) * B * N1 * H;
    product(worker, B, gates0, w1, [&](int64_t b, int64_t panel, const A* c) {
      const int64_t j = panel * w1.width, n = P - j < w1.width ? P - j : w1.width;
      for (int64_t l = 0; l < n; ++l)
        store(static_cast<D*>(a.dh0)[b * P + j + l], c[l] + direct.get()[b * P + j + l]);
    });
    for (int64_t i = worker.first(Inner * B * H); i < worker.last(Inner * B * H); ++i)
      store(static_cast<D*>(a.dc0)[i], dc.get()[i]);
  }

  const SequenceBackward& a;
  const int64_t T, B, H, P;
  const bool projected;
  Panels<A, 4> w1, w2, wr;  // W_hh of the first gates and of the second product; W_hr
  Buffer<A> c0;
  Buffer<A> gates;    // 2 * [B, N1, H]: h-gradients of the first gates, of two steps in turn
  Buffer<A> direct;   // [B, P]: the part of the gradient of h that does not pass W_hh
  Buffer<A> dc;       // [S-1, B, H]: gradients of the inner states
  Buffer<A> dh;       // [B, P]: gradient of the projected h
  Buffer<A> second;   // [B, N2, H]: h-gradients of the gates of the second product
  Buffer<A> partial;  // [B, N, H]: d between the two halves of a step
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
