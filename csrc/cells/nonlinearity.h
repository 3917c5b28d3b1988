// The nonlinearities that a cell can be had with. Each has its slope in terms of its own value, so
// that the value is all that backward needs.
#pragma once
#include "../activations.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

struct Tanh {
  static constexpr const char* kRNN = "rnn_tanh";
  template <class T>
  FRNN_HD static T value(T x) {
    return tanh_of(x);
  }
  template <class T>
  FRNN_HD static T slope(T y) {
    return T(1) - y * y;
  }
};
struct Relu {
  static constexpr const char* kRNN = "rnn_relu";
  template <class T>
  FRNN_HD static T value(T x) {
    return relu(x);
  }
  template <class T>
  FRNN_HD static T slope(T y) {
    return relu_slope(y);
  }
};
struct Sigmoid {
  static constexpr const char* kRNN = "rnn_sigmoid";
  template <class T>
  FRNN_HD static T value(T x) {
    return sigmoid(x);
  }
  template <class T>
  FRNN_HD static T slope(T y) {
    return y * (T(1) - y);
  }
};
struct Identity {
  static constexpr const char* kRNN = "rnn_identity";
  template <class T>
  FRNN_HD static T value(T x) {
    return x;
  }
  template <class T>
  FRNN_HD static T slope(T) {
    return T(1);
  }
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
