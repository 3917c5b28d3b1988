// GRU with the reset gate after the product, as torch.nn.GRU and cuDNN (Cho et al. 2014):
//   r, z = sigmoid(W x + b + U h' + b')         gate order r, z, n
//   n = tanh(W_n x + b_n + r * q),  q = U_n h' + b'_n
//   h = (1 - z) * n + z * h'
// Options: candidate, the nonlinearity of n; dropout, of n in h.
#pragma once
#include "../cell.h"
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct GRU {
  static constexpr const char* kName = "gru";
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kGrads = 4, kSecond = 0, kNorms = 1;
  // The candidate's two preactivations differ by the factor r: d[2] is that of x, d[3] that of q.
  FRNN_HD static constexpr int h_grad(int g) { return g < 2 ? g : 3; }
  static constexpr int kWeights = 0;
  FRNN_HD static constexpr int weights(const CellOptions&) { return 0; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[3],
                              const T (&u)[3], const T (&s)[1], T (&out)[1], T (&saved)[4]) {
    const T r = sigmoid(x[0] + u[0]), z = sigmoid(x[1] + u[1]);
    const T n = apply(options.candidate, x[2] + r * u[2]);
    out[0] = (T(1) - z) * (options.dropout > 0 ? p.drop * n : n) + z * s[0];
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = u[2];
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[4],
                               const T (&s)[1], const T (&)[1], const T (&dout)[1], T (&d)[4],
                               T (&ds)[1]) {
    const T r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    T dn = dout[0] * (T(1) - z) * slope(options.candidate, n), m = n;
    if (options.dropout > 0) dn = p.drop * dn, m = p.drop * n;
    d[0] = dn * q * r * (T(1) - r);
    d[1] = dout[0] * (s[0] - m) * z * (T(1) - z);
    d[2] = dn;
    d[3] = dn * r;
    ds[0] = dout[0] * z;
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
