// Elman RNN (Elman 1990): h = g(W x + b + U h' + b'). Options: candidate, which is g: tanh and relu
// as torch.nn.RNN, sigmoid, identity; residual: h = h' + g(...).
#pragma once
#include "../cell.h"
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct RNN {
  static constexpr const char* kName = "rnn";
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kGrads = 1, kSecond = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const T (&x)[1], const T (&u)[1],
                              const T (&s)[1], T (&out)[1], T (&saved)[1]) {
    saved[0] = out[0] = apply(options.candidate, x[0] + u[0]);
    if (options.residual) out[0] += s[0];
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const T (&saved)[1], const T (&)[1],
                               const T (&)[1], const T (&dout)[1], T (&d)[1], T (&ds)[1]) {
    d[0] = dout[0] * slope(options.candidate, saved[0]);
    ds[0] = options.residual ? dout[0] : T(0);
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
