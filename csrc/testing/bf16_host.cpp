// fusedrnn_bf16_host: the CPU kernels of avx512_bf16 with the stand-in for their instruction,
// compiled for any machine with AVX-512, on plain pointers from Python.
#include <pybind11/numpy.h>

#include <optional>
#include <stdexcept>

#include "../cell_name.h"
#include "../cpu/normed.cpp"
#include "../cpu/sequence.cpp"
#include "sequence_fields.h"

namespace {

using namespace fusedrnn;
namespace py = pybind11;

template <class Args, class Pick>
std::optional<std::string> run_layer(const std::string& cell, std::vector<Args> layer, Pick pick) {
  const CellName name = read_cell(cell);
  const SequenceKernels* kernels = sequence_kernels(name.kernel.c_str());
  if (kernels == nullptr) throw std::invalid_argument("no cell named " + cell);
  for (Args& direction : layer) direction.n.options = name.options;
  const char* wrong = pick(*kernels)(layer.data(), int(layer.size()), nullptr, nullptr);
  return wrong == nullptr ? std::nullopt : std::optional<std::string>(wrong);
}

std::optional<std::string> run_forward(const std::string& cell, Problem problem,
                                       const std::vector<Direction>& directions, int threads) {
  problem.threads = threads;
  return run_layer(cell, forward_layer(problem, directions),
                   [](const SequenceKernels& k) { return k.forward; });
}

std::optional<std::string> run_backward(const std::string& cell, Problem problem,
                                        const std::vector<Direction>& directions, int threads) {
  problem.threads = threads;
  return run_layer(cell, backward_layer(problem, directions),
                   [](const SequenceKernels& k) { return k.backward; });
}

// sum[l] + word * weights[l] for each lane l, words as uint32.
py::array_t<float> dot(const py::array_t<float>& sum, uint32_t word,
                       const py::array_t<uint32_t>& weights) {
  constexpr int lanes = Vector<float>::lanes;
  if (sum.size() != lanes || weights.size() != lanes) throw py::value_error("16 lanes are needed");
  Floats s;
  Words w;
  std::memcpy(&s, sum.data(), sizeof(s));
  std::memcpy(&w, weights.data(), sizeof(w));
  s = multiply_add(s, word, w);
  py::array_t<float> out(lanes);
  std::memcpy(out.mutable_data(), &s, sizeof(s));
  return out;
}

}  // namespace

PYBIND11_MODULE(fusedrnn_bf16_host, m) {
  m.doc() = "The CPU kernels of avx512_bf16 without its instruction: see csrc/cpu/operand.h";
  bind_problem(m);
  const char* text =
      "Runs the kernel on one or two directions, each (reverse, pointers named as in "
      "csrc/sequence.h); returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("threads"), text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("threads"), text);
  m.def("dot", dot, py::arg("sum"), py::arg("word"), py::arg("weights"),
        "One multiply_add of words of two bfloat16 numbers.");
}
