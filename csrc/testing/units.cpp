// The test build's way to single C++ units: cells in float64, the host's activations in float32.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../cell_name.h"
#include "../cells.h"

namespace py = pybind11;
using namespace fusedrnn;
using Values = std::vector<double>;

namespace {

template <int N>
void fill(double (&to)[N], const Values& from) {
  if (from.size() != N) throw py::value_error("wrong number of values");
  for (int i = 0; i < N; ++i) to[i] = from[i];
}

template <int N>
Values values(const double (&from)[N]) {
  return Values(from, from + N);
}

// One step with h-preactivations that are linear in h: u = w * h, and w * operand for the gates of
// a second product. That is all a unit sees of W_hh, so gradients can be checked unit by unit.
template <class Cell>
struct Unit {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, N = Cell::kGrads;
  static constexpr int N1 = G - Cell::kSecond;

  // weights, drop, keep_h, keep_c
  static PerUnit<double> own(const Values& v) {
    return {{v.at(0), v.at(1), v.at(2)}, v.at(3), v.at(4), v.at(5)};
  }

  static py::tuple forward(const CellOptions& options, const Values& x_, const Values& s_,
                           const Values& w, const Values& own_) {
    double x[G], u[G] = {}, s[S], out[S], saved[K] = {};
    fill(x, x_), fill(s, s_);
    for (int g = 0; g < N1; ++g) u[g] = w.at(g) * s[0];
    if constexpr (Cell::kSecond > 0) {
      const double p = Cell::operand(options, x, u, s, saved);
      for (int g = N1; g < G; ++g) u[g] = w.at(g) * p;
    }
    cell_forward<Cell>(options, own(own_), x, u, s, out, saved);
    return py::make_tuple(values(out), values(saved));
  }

  // Gradients of x, of the states, and of w.
  static py::tuple backward(const CellOptions& options, const Values& saved_, const Values& s_,
                            const Values& out_, const Values& dout_, const Values& w,
                            const Values& own_) {
    double saved[K], s[S], out[S], dout[S], d[N] = {}, ds[S];
    fill(saved, saved_), fill(s, s_), fill(out, out_), fill(dout, dout_);
    out[0] = 0;  // not part of the contract
    cell_backward<Cell>(options, own(own_), saved, s, out, dout, d, ds);
    Values dw(G);
    if constexpr (Cell::kSecond > 0) {
      double dp = 0;
      for (int g = N1; g < G; ++g) {
        dp += d[Cell::h_grad(g)] * w.at(g);
        dw[g] = d[Cell::h_grad(g)] * saved[Cell::kOperand];
      }
      Cell::backward_operand(options, saved, s, dp, d, ds);
    }
    for (int g = 0; g < N1; ++g) {
      ds[0] += d[Cell::h_grad(g)] * w.at(g);
      dw[g] = d[Cell::h_grad(g)] * s[0];
    }
    return py::make_tuple(Values(d, d + G), values(ds), dw);
  }
};

py::array_t<float> map(float (*f)(float), const py::array_t<float>& x) {
  py::array_t<float> y(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = f(x.data()[i]);
  return y;
}

// f(Unit of the cell's kernel, its options)
template <class F>
py::tuple with_unit(const std::string& cell, F f) {
  const CellName name = read_cell(cell);
#define X(...) \
  if (name.kernel == __VA_ARGS__::kName) return f(Unit<__VA_ARGS__>(), name.options);
  FRNN_FOR_EACH_CELL(X)
#undef X
  throw py::value_error("no cell named " + cell);
}

py::tuple forward(const std::string& cell, const Values& x, const Values& s, const Values& w,
                  const Values& own) {
  return with_unit(cell,
                   [&](auto unit, auto options) { return unit.forward(options, x, s, w, own); });
}

py::tuple backward(const std::string& cell, const Values& saved, const Values& s, const Values& out,
                   const Values& dout, const Values& w, const Values& own) {
  return with_unit(cell, [&](auto unit, auto options) {
    return unit.backward(options, saved, s, out, dout, w, own);
  });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_units, m) {
  m.def("forward", forward);
  m.def("backward", backward);
  m.def("sigmoid", [](const py::array_t<float>& x) { return map(sigmoid<float>, x); });
  m.def("log_sigmoid", [](const py::array_t<float>& x) { return map(log_sigmoid<float>, x); });
  m.def("tanh", [](const py::array_t<float>& x) { return map(tanh_of<float>, x); });
}
