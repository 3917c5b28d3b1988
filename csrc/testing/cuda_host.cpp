// fusedrnn_cuda_host: the CUDA sequence kernels, compiled for the host, on plain pointers from
// Python.
#define FUSEDRNN_CUDA_HOST
#include <optional>
#include <stdexcept>
#include <string>

#include "../cell_name.h"
#include "../cuda/sequence.cpp"
#include "../cuda/sequence_bf16.cu"
#include "../cuda/sequence_f16.cu"
#include "../cuda/sequence_f32.cu"
#include "../cuda/sequence_f64.cu"
#include "sequence_fields.h"
#include "workspace.h"

namespace {

using namespace fusedrnn;

const SequenceKernels& kernels_of(const std::string& cell) {
  const SequenceKernels* found = find_cuda_sequence(read_cell(cell).kernel.c_str());
  if (found == nullptr) throw std::invalid_argument("no cell named " + cell);
  return *found;
}

// run(kernels, workspace) in the given order of threads.
template <class Args, class F>
std::optional<std::string> in_workspace(const std::string& cell, std::vector<Args>& layer,
                                        bool backward, uint64_t order, F run) {
  const SequenceKernels& kernels = kernels_of(cell);
  for (Args& direction : layer) direction.n.options = read_cell(cell).options;
  Workspace workspace(layer.size() * kernels.workspace_bytes(layer.at(0).n, backward, true));
  cuda::host::order = order;
  if (const char* wrong = run(kernels, workspace.data())) return wrong;
  if (!workspace.intact()) return "a kernel wrote beyond its workspace";
  return std::nullopt;
}

std::optional<std::string> run_forward(const std::string& cell, const Problem& problem,
                                       const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceForward> layer = forward_layer(problem, directions);
  return in_workspace(cell, layer, false, order, [&](const SequenceKernels& k, void* workspace) {
    return k.forward(layer.data(), int(layer.size()), workspace, nullptr);
  });
}

std::optional<std::string> run_backward(const std::string& cell, const Problem& problem,
                                        const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceBackward> layer = backward_layer(problem, directions);
  return in_workspace(cell, layer, true, order, [&](const SequenceKernels& k, void* workspace) {
    return k.backward(layer.data(), int(layer.size()), workspace, nullptr);
  });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_cuda_host, m) {
  namespace py = pybind11;
  m.doc() = "The CUDA sequence kernels on the host: see csrc/testing/cuda_host.h";
  bind_problem(m);
  const char* text =
      "Runs the kernels on one or two directions, each (reverse, pointers named as in "
      "csrc/sequence.h); returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("launches", [] { return cuda::host::launches; }, "Launches since the module was loaded.");
}
