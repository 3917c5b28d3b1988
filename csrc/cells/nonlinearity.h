// The nonlinearities that a call can choose between (csrc/cell_options.h). Each has its slope in
// terms of its own value, so that the value is all that backward needs.
#pragma once
#include "../activations.h"
#include "../cell_options.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// tanh, the plain cells', comes last: asked for first, GCC 12 made forward of LSTM and GRU take 1.4
// times as long (docs/notebook-cpu.md).
template <class T>
FRNN_HD T apply(Nonlinearity g, const T& x) {
  if (g == Nonlinearity::identity) return x;
  if (g == Nonlinearity::relu) return relu(x);
  if (g == Nonlinearity::sigmoid) return sigmoid(x);
  return tanh_of(x);
}

// dg/dx where g(x) = y.
template <class T>
FRNN_HD T slope(Nonlinearity g, const T& y) {
  if (g == Nonlinearity::identity) return T(1);
  if (g == Nonlinearity::relu) return relu_slope(y);
  if (g == Nonlinearity::sigmoid) return y * (T(1) - y);
  return T(1) - y * y;
}

// A gradient of h, within dh_clip.
template <class T>
FRNN_HD T limited(const CellOptions& options, const T& dh) {
  return options.dh_clip > 0 ? bounded(dh, options.dh_clip) : dh;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
