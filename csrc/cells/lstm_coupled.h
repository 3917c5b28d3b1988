// LSTM with coupled gates (the CIFG of Greff et al. 2017): what is forgotten makes room for the
// new.
//   f, o = sigmoid(W x + U h' + b),  g = tanh(W x + U h' + b)        gate order f, g, o
//   c = f * c' + (1 - f) * g,  h = o * tanh(c)
// Options: as in lstm.h; with peephole f sees c' and o sees c.
#pragma once
#include "../cell.h"
#include "inner_state.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct LSTMCoupled {
  static constexpr const char* kName = "lstm_coupled";
  static constexpr int kGates = 3, kStates = 2, kSaved = 3, kGrads = 3, kSecond = 0, kNorms = 2;
  static constexpr int kOutputGate = 2;  // of the gates, and of saved
  FRNN_HD static constexpr int h_grad(int g) { return g; }
  static constexpr int kWeights = 2;
  FRNN_HD static constexpr int weights(const CellOptions& o) { return o.peephole ? kWeights : 0; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[3],
                              const T (&u)[3], const T (&s)[2], T (&out)[2], T (&saved)[3]) {
    const T f = sigmoid(peeping(options, x[0] + u[0], p.weight[0], s[1]));
    const T g = apply(options.candidate, x[1] + u[1]);
    const T c = updated(options, f * s[1] + (T(1) - f) * dropped(options, p, g));
    const T o = sigmoid(peeping(options, x[2] + u[2], p.weight[1], c));
    out[0] = o * apply(options.output, c);
    out[1] = kept(options, p, c, s[1]);
    saved[0] = f, saved[1] = g, saved[2] = o;
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[3],
                               const T (&s)[2], const T (&out)[2], const T (&dout)[2], T (&d)[3],
                               T (&ds)[2]) {
    const T f = saved[0], g = saved[1], o = saved[2], n = dropped(options, p, g);
    T c = out[1], dc = dout[1];
    ds[0] = ds[1] = T(0);
    if (options.zoneout_c > 0) {
      c = updated(options, f * s[1] + (T(1) - f) * n);
      dc = p.keep_c * dout[1];
      ds[1] = (T(1) - p.keep_c) * dout[1];
    }
    const T y = apply(options.output, c);
    d[2] = dout[0] * y * o * (T(1) - o);
    dc += dout[0] * o * slope(options.output, y);
    if (options.peephole) dc += d[2] * p.weight[1];
    dc = dc * update_slope(options, c);
    d[0] = dc * (s[1] - n) * f * (T(1) - f);
    d[1] = dc * dropped(options, p, T(1) - f) * slope(options.candidate, g);
    ds[1] += dc * f;
    if (options.peephole) ds[1] += d[0] * p.weight[0];
  }

  template <class T>
  FRNN_HD static void weight_grads(const T (&s)[2], const T (&out)[2], const T (&d)[3],
                                   T (&dw)[2]) {
    dw[0] = d[0] * s[1], dw[1] = d[2] * out[1];
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
