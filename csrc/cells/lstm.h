// LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), as torch.nn.LSTM:
//   i, f, o = sigmoid(W x + U h' + b),  g = tanh(W x + U h' + b)        gate order i, f, g, o
//   c = f * c' + i * g,  h = o * tanh(c)
// Options: candidate, the nonlinearity of g; update, of the new c (none; tanh makes it
// c = tanh(f * c' + i * g)); output, of c in h; clip, which bounds the new c; peephole, by which i
// and f see c' and o sees c, each unit its own; zoneout_c; dropout, of g in c.
#pragma once
#include "../cell.h"
#include "inner_state.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct LSTM {
  static constexpr const char* kName = "lstm";
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kGrads = 4, kSecond = 0, kNorms = 2;
  static constexpr int kOutputGate = 3;  // of the gates, and of saved
  FRNN_HD static constexpr int h_grad(int g) { return g; }
  static constexpr int kWeights = 3;
  FRNN_HD static constexpr int weights(const CellOptions& o) { return o.peephole ? kWeights : 0; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[4],
                              const T (&u)[4], const T (&s)[2], T (&out)[2], T (&saved)[4]) {
    const T i = sigmoid(peeping(options, x[0] + u[0], p.weight[0], s[1]));
    const T f = sigmoid(peeping(options, x[1] + u[1], p.weight[1], s[1]));
    const T g = apply(options.candidate, x[2] + u[2]);
    const T c = updated(options, f * s[1] + i * dropped(options, p, g));
    const T o = sigmoid(peeping(options, x[3] + u[3], p.weight[2], c));
    out[0] = o * apply(options.output, c);
    out[1] = kept(options, p, c, s[1]);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[4],
                               const T (&s)[2], const T (&out)[2], const T (&dout)[2], T (&d)[4],
                               T (&ds)[2]) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], n = dropped(options, p, g);
    T c = out[1], dc = dout[1];
    ds[0] = ds[1] = T(0);
    if (options.zoneout_c > 0) {
      c = updated(options, f * s[1] + i * n);
      dc = p.keep_c * dout[1];
      ds[1] = (T(1) - p.keep_c) * dout[1];
    }
    const T y = apply(options.output, c);
    d[3] = dout[0] * y * o * (T(1) - o);
    dc += dout[0] * o * slope(options.output, y);
    if (options.peephole) dc += d[3] * p.weight[2];
    dc = dc * update_slope(options, c);
    d[0] = dc * n * i * (T(1) - i);
    d[1] = dc * s[1] * f * (T(1) - f);
    d[2] = dc * dropped(options, p, i) * slope(options.candidate, g);
    ds[1] += dc * f;
    if (options.peephole) ds[1] += d[0] * p.weight[0] + d[1] * p.weight[1];
  }

  template <class T>
  FRNN_HD static void weight_grads(const T (&s)[2], const T (&out)[2], const T (&d)[4],
                                   T (&dw)[3]) {
    dw[0] = d[0] * s[1], dw[1] = d[1] * s[1], dw[2] = d[3] * out[1];
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
