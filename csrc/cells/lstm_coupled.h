// LSTM with coupled gates (the CIFG of Greff et al. 2017): what is forgotten makes room for the
// new.
//   f, o = sigmoid(W x + U h' + b),  g = tanh(W x + U h' + b)        gate order f, g, o
//   c = f * c' + (1 - f) * g,  h = o * tanh(c)
// Options: as in lstm.h.
#pragma once
#include "../cell.h"
#include "inner_state.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct LSTMCoupled {
  static constexpr const char* kName = "lstm_coupled";
  static constexpr int kGates = 3, kStates = 2, kSaved = 3, kGrads = 3, kSecond = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const T (&x)[3], const T (&u)[3],
                              const T (&s)[2], T (&out)[2], T (&saved)[3]) {
    const T f = sigmoid(x[0] + u[0]), o = sigmoid(x[2] + u[2]);
    const T g = apply(options.candidate, x[1] + u[1]);
    out[1] = updated(options, f * s[1] + (T(1) - f) * g);
    out[0] = o * apply(options.output, out[1]);
    saved[0] = f, saved[1] = g, saved[2] = o;
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const T (&saved)[3], const T (&s)[2],
                               const T (&out)[2], const T (&dout)[2], T (&d)[3], T (&ds)[2]) {
    const T f = saved[0], g = saved[1], o = saved[2];
    const T y = apply(options.output, out[1]);
    const T dc = (dout[1] + dout[0] * o * slope(options.output, y)) * update_slope(options, out[1]);
    d[0] = dc * (s[1] - g) * f * (T(1) - f);
    d[1] = dc * (T(1) - f) * slope(options.candidate, g);
    d[2] = dout[0] * y * o * (T(1) - o);
    ds[0] = T(0);
    ds[1] = dc * f;
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
