// Elman RNN (Elman 1990): h = g(W x + b + U h' + b'), g one of tanh and relu (torch.nn.RNN),
// sigmoid and identity.
#pragma once
#include "../cell.h"
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class G>
struct RNN {
  static constexpr const char* kName = G::kRNN;
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kGrads = 1, kSecond = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }

  template <class T>
  FRNN_HD static void forward(const T (&x)[1], const T (&u)[1], const T (&)[1], T (&out)[1],
                              T (&saved)[1]) {
    saved[0] = out[0] = G::value(x[0] + u[0]);
  }

  template <class T>
  FRNN_HD static void backward(const T (&saved)[1], const T (&)[1], const T (&)[1],
                               const T (&dout)[1], T (&d)[1], T (&ds)[1]) {
    d[0] = dout[0] * G::slope(saved[0]);
    ds[0] = T(0);
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
