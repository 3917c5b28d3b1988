// LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), as torch.nn.LSTM:
//   i, f, o = sigmoid(W x + U h' + b),  g = tanh(W x + U h' + b)        gate order i, f, g, o
//   c = f * c' + i * g,  h = o * tanh(c)
// Options: candidate, the nonlinearity of g; update, of the new c (none; tanh makes it
// c = tanh(f * c' + i * g)); output, of c in h; clip, which bounds the new c.
#pragma once
#include "../cell.h"
#include "inner_state.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct LSTM {
  static constexpr const char* kName = "lstm";
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kGrads = 4, kSecond = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const T (&x)[4], const T (&u)[4],
                              const T (&s)[2], T (&out)[2], T (&saved)[4]) {
    const T i = sigmoid(x[0] + u[0]), f = sigmoid(x[1] + u[1]);
    const T g = apply(options.candidate, x[2] + u[2]), o = sigmoid(x[3] + u[3]);
    out[1] = updated(options, f * s[1] + i * g);
    out[0] = o * apply(options.output, out[1]);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const T (&saved)[4], const T (&s)[2],
                               const T (&out)[2], const T (&dout)[2], T (&d)[4], T (&ds)[2]) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const T y = apply(options.output, out[1]);
    const T dc = (dout[1] + dout[0] * o * slope(options.output, y)) * update_slope(options, out[1]);
    d[0] = dc * g * i * (T(1) - i);
    d[1] = dc * s[1] * f * (T(1) - f);
    d[2] = dc * i * slope(options.candidate, g);
    d[3] = dout[0] * y * o * (T(1) - o);
    ds[0] = T(0);
    ds[1] = dc * f;
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
