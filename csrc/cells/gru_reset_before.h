// GRU with the reset gate before the product, as first published (Cho et al. 2014, v1) and as in
// the source lectures: the candidate needs a second product, of p = r * h', in every step.
//   r, z = sigmoid(W x + b + U h' + b')         gate order r, z, n
//   n = tanh(W_n x + b_n + U_n p + b'_n),  p = r * h'
//   h = (1 - z) * n + z * h'
// Options: candidate, the nonlinearity of n; dropout, of n in h.
#pragma once
#include "../cell.h"
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct GRUResetBefore {
  static constexpr const char* kName = "gru_reset_before";
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kGrads = 3, kSecond = 1, kNorms = 0,
                       kOperand = 3;
  FRNN_HD static constexpr int h_grad(int g) { return g; }
  static constexpr int kWeights = 0;
  FRNN_HD static constexpr int weights(const CellOptions&) { return 0; }

  template <class T>
  FRNN_HD static T operand(const CellOptions&, const T (&x)[3], const T (&u)[3], const T (&s)[1],
                           T (&saved)[4]) {
    saved[0] = sigmoid(x[0] + u[0]);
    saved[1] = sigmoid(x[1] + u[1]);
    return saved[kOperand] = saved[0] * s[0];
  }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[3],
                              const T (&u)[3], const T (&s)[1], T (&out)[1], T (&saved)[4]) {
    const T z = saved[1], n = saved[2] = apply(options.candidate, x[2] + u[2]);
    out[0] = (T(1) - z) * (options.dropout > 0 ? p.drop * n : n) + z * s[0];
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[4],
                               const T (&s)[1], const T (&)[1], const T (&dout)[1], T (&d)[3],
                               T (&ds)[1]) {
    const T z = saved[1], n = saved[2];
    T dn = dout[0] * (T(1) - z) * slope(options.candidate, n), m = n;
    if (options.dropout > 0) dn = p.drop * dn, m = p.drop * n;
    d[1] = dout[0] * (s[0] - m) * z * (T(1) - z);
    d[2] = dn;
    ds[0] = dout[0] * z;
  }

  template <class T>
  FRNN_HD static void backward_operand(const CellOptions&, const T (&saved)[4], const T (&s)[1],
                                       T dp, T (&d)[3], T (&ds)[1]) {
    const T r = saved[0];
    d[0] = dp * s[0] * r * (T(1) - r);
    ds[0] += dp * r;
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
