// fusedrnn_cuda_host: the CUDA sequence kernels, compiled for the host, on plain pointers from
// Python.
#define FUSEDRNN_CUDA_HOST
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cell_name.h"
#include "../cuda/sequence.cpp"
#include "../cuda/sequence_bf16.cu"
#include "../cuda/sequence_f16.cu"
#include "../cuda/sequence_f32.cu"
#include "../cuda/sequence_f64.cu"

namespace {

using namespace fusedrnn;
using Pointers = std::map<std::string, uintptr_t>;  // by the fields' names; absent: null

struct Problem {
  int64_t T, B, H, P;
  std::string dtype;
  int64_t y_row;

  SequenceSizes sizes(bool reverse) const {
    static const std::map<std::string, DType> names = {{"float64", DType::f64},
                                                       {"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16}};
    return {T, B, H, P, names.at(dtype), reverse, y_row, 1};
  }
};

// Of one direction: whether it is the reverse one, and its tensors.
using Direction = std::pair<bool, Pointers>;

// A workspace of NaN between two guards; says whether a kernel wrote beyond it.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kGuard + 256, '\xff') {
    start_ = memory_.data() + kGuard;
    start_ += 256 - reinterpret_cast<uintptr_t>(start_) % 256;
  }
  void* data() { return start_; }
  bool intact() const {
    const auto blank = [](char c) { return c == '\xff'; };
    return std::all_of(memory_.data(), static_cast<const char*>(start_), blank) &&
           std::all_of(static_cast<const char*>(start_) + bytes_, memory_.data() + memory_.size(),
                       blank);
  }

 private:
  static constexpr size_t kGuard = 1024;
  size_t bytes_;
  std::string memory_;
  char* start_;
};

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
  Workspace workspace(layer.size() * kernels.workspace_bytes(layer.at(0).n, backward));
  cuda::host::order = order;
  if (const char* wrong = run(kernels, workspace.data())) return wrong;
  if (!workspace.intact()) return "a kernel wrote beyond its workspace";
  return std::nullopt;
}

struct Fields {
  const Pointers& pointers;

  void* operator()(const char* name) const {
    const auto found = pointers.find(name);
    return found == pointers.end() ? nullptr : reinterpret_cast<void*>(found->second);
  }
  const int64_t* lengths() const { return static_cast<const int64_t*>((*this)("lengths")); }
  const bool* reset() const { return static_cast<const bool*>((*this)("reset")); }
};

std::optional<std::string> run_forward(const std::string& cell, const Problem& problem,
                                       const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceForward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    layer.push_back({problem.sizes(reverse), f("gx"), f("weight_hh"), f("bias_hh"), f("weight_hr"),
                     f("h0"), f("c0"), f.lengths(), f.reset(), f("reset_h"), f("reset_c"), f("y"),
                     f("hn"), f("cn"), f("saved"), f("cells"), f("hidden")});
  }
  return in_workspace(cell, layer, false, order, [&](const SequenceKernels& k, void* workspace) {
    return k.forward(layer.data(), int(layer.size()), workspace, nullptr);
  });
}

std::optional<std::string> run_backward(const std::string& cell, const Problem& problem,
                                        const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceBackward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    layer.push_back({problem.sizes(reverse),
                     f("dy"),
                     f("dhn"),
                     f("dcn"),
                     f("y"),
                     f("h0"),
                     f("c0"),
                     f("weight_hh"),
                     f("weight_hr"),
                     f.lengths(),
                     f.reset(),
                     f("reset_h"),
                     f("reset_c"),
                     f("saved"),
                     f("cells"),
                     f("grads"),
                     f("dh0"),
                     f("dc0"),
                     f("dreset_h"),
                     f("dreset_c"),
                     f("dh")});
  }
  return in_workspace(cell, layer, true, order, [&](const SequenceKernels& k, void* workspace) {
    return k.backward(layer.data(), int(layer.size()), workspace, nullptr);
  });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_cuda_host, m) {
  namespace py = pybind11;
  m.doc() = "The CUDA sequence kernels on the host: see csrc/testing/cuda_host.h";
  py::class_<Problem>(m, "Problem")
      .def(py::init([](int64_t T, int64_t B, int64_t H, int64_t P, std::string dtype,
                       int64_t y_row) { return Problem{T, B, H, P, std::move(dtype), y_row}; }),
           py::kw_only(), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("P"), py::arg("dtype"),
           py::arg("y_row"));
  const char* text =
      "Runs the kernels on one or two directions, each (reverse, pointers named as in "
      "csrc/sequence.h); returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("launches", [] { return cuda::host::launches; }, "Launches since the module was loaded.");
}
