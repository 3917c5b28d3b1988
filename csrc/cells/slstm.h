// sLSTM (Beck et al. 2024, xLSTM): an exponential input gate, a normaliser n and a stabiliser m.
//   log i = W x + U h' + b,  f, o = sigmoid(W x + U h' + b),  z = tanh(W x + U h' + b)
//   m = max(log f + m', log i)                                       gate order i, f, z, o
//   c = F * c' + I * z,  n = F * n' + I,  h = o * c / n,  I = i / e^m,  F = f * e^m' / e^m
// c and n are those of the unstabilised cell divided by e^m, so m keeps the exponentials small and
// has no influence on h. Option: dropout, of z in c. n = 0 says that nothing was seen yet (zero
// states, a row that begins anew): there m = log i, as in the authors' code. So n >= 1 and |c| <= n
// from the first step on, which 16-bit states need.
//
// saved: i, f, z, o and the slope of log sigmoid, negative where m = log f + m'. backward
// differentiates what forward computes, m included: gradients of n and m themselves are
// right, and for a loss of h alone all that goes through m adds up to zero (to rounding).
#pragma once
#include "../cell.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct SLSTM {
  static constexpr const char* kName = "slstm";
  static constexpr int kGates = 4, kStates = 4, kSaved = 5, kGrads = 4, kSecond = 0, kNorms = 0;
  FRNN_HD static constexpr int h_grad(int g) { return g; }
  static constexpr int kWeights = 0;
  FRNN_HD static constexpr int weights(const CellOptions&) { return 0; }

  template <class T>
  FRNN_HD static void forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[4],
                              const T (&u)[4], const T (&s)[4], T (&out)[4], T (&saved)[5]) {
    const T log_i = x[0] + u[0], a = x[1] + u[1];
    const T z = tanh_of(x[2] + u[2]), o = sigmoid(x[3] + u[3]);
    const T lead = log_sigmoid(a) + s[3] - log_i;
    const T raised = relu_slope(s[2]) * relu(lead);  // m - log i
    const T i = exp_of(T(0) - raised), f = exp_of(T(0) - relu(raised - lead));
    out[1] = f * s[1] + i * (options.dropout > 0 ? p.drop * z : z);
    out[2] = f * s[2] + i;
    out[3] = log_i + raised;
    out[0] = o * out[1] / out[2];
    saved[0] = i, saved[1] = f, saved[2] = z, saved[3] = o;
    saved[4] = sigmoid(T(0) - a) * (T(1) - T(2) * relu_slope(raised));
  }

  template <class T>
  FRNN_HD static void backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[5],
                               const T (&s)[4], const T (&out)[4], const T (&dout)[4], T (&d)[4],
                               T (&ds)[4]) {
    const T i = saved[0], f = saved[1], z = saved[2], o = saved[3];
    T dz = i * (T(1) - z * z), m = z;  // dz/da, and z as it reached c
    if (options.dropout > 0) dz = p.drop * dz, m = p.drop * z;
    const T padding = T(1) - relu_slope(out[2]);  // n is 0 only where a tile has no unit
    const T inverse = T(1) / (out[2] + padding), y = out[1] * inverse;
    const T dy = dout[0] * o * inverse;
    const T dc = dout[1] + dy, dn = dout[2] - dy * y;
    const T df = (dc * s[1] + dn * s[2]) * f, di = (dc * m + dn) * i;  // of the exponents
    // Rounded to 16 bits i may be 1 where m is log f + m': the sign says it, that of 0 too.
    const T by_f = relu_slope(T(0) - T(1) / saved[4]), of_f = T(1) - T(2) * by_f;
    const T dm = dout[3] - df - di;
    ds[3] = df + by_f * dm;
    d[0] = di + (T(1) - by_f) * dm;
    d[1] = ds[3] * saved[4] * of_f;
    d[2] = dc * dz;
    d[3] = dout[0] * y * o * (T(1) - o);
    ds[0] = T(0);
    ds[1] = dc * f;
    ds[2] = dn * f;
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
