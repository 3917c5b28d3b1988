// Elman RNN (Elman 1990): h = g(W x + b + U h' + b'). Options: candidate, which is g: tanh and relu
// as torch.nn.RNN, sigmoid, identity; residual: h = h' + g(...), and dropout, of g there;
// independent (IndRNN, Li et al. 2018): w * h' with a weight for each unit instead of U h'.
#pragma once
#include "../cell.h"
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct RNN {
  static constexpr const char* kName = "rnn";
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kGrads = 1, kSecond = 0, kNorms = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }
  static constexpr int kWeights = 1;
  FRNN_HD static constexpr int weights(const CellOptions& o) {
    return o.independent ? kWeights : 0;
  }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[1],
                              const T (&u)[1], const T (&s)[1], T (&out)[1], T (&saved)[1]) {
    const T a = x[0] + u[0];
    const T g = apply(options.candidate, options.independent ? a + p.weight[0] * s[0] : a);
    saved[0] = out[0] = g;
    if (options.residual) out[0] = (options.dropout > 0 ? p.drop * g : g) + s[0];
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[1],
                               const T (&)[1], const T (&)[1], const T (&dout)[1], T (&d)[1],
                               T (&ds)[1]) {
    d[0] = dout[0] * slope(options.candidate, saved[0]);
    if (options.residual && options.dropout > 0) d[0] = p.drop * d[0];
    ds[0] = options.residual ? dout[0] : T(0);
    if (options.independent) ds[0] += d[0] * p.weight[0];
  }

  template <class T>
  FRNN_HD static void weight_grads(const T (&s)[1], const T (&)[1], const T (&d)[1], T (&dw)[1]) {
    dw[0] = d[0] * s[0];
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
