// fusedrnn_cuda_host: the CUDA sequence kernels, compiled for the host, on plain pointers from
// Python.
#define FUSEDRNN_CUDA_HOST
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>

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
  bool reverse;

  SequenceSizes sizes() const {
    static const std::map<std::string, DType> names = {{"float64", DType::f64},
                                                       {"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16}};
    return {T, B, H, P, names.at(dtype), reverse, 1};
  }
};

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
  const SequenceKernels* found = find_cuda_sequence(cell.c_str());
  if (found == nullptr) throw std::invalid_argument("no cell named " + cell);
  return *found;
}

// run(kernels, workspace) in the given order of threads.
template <class F>
std::optional<std::string> in_workspace(const std::string& cell, const SequenceSizes& n,
                                        bool backward, uint64_t order, F run) {
  const SequenceKernels& kernels = kernels_of(cell);
  Workspace workspace(kernels.workspace_bytes(n, backward));
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
};

std::optional<std::string> run_forward(const std::string& cell, const Problem& problem,
                                       const Pointers& pointers, uint64_t order) {
  const Fields f{pointers};
  const SequenceForward p{
      problem.sizes(), f("gx"),    f("weight_hh"), f("bias_hh"),
      f("weight_hr"),  f("h0"),    f("c0"),        static_cast<const int64_t*>(f("lengths")),
      f("y"),          f("hn"),    f("cn"),        f("saved"),
      f("cells"),      f("hidden")};
  return in_workspace(cell, p.n, false, order, [&](const SequenceKernels& k, void* workspace) {
    return k.forward(p, workspace, nullptr);
  });
}

std::optional<std::string> run_backward(const std::string& cell, const Problem& problem,
                                        const Pointers& pointers, uint64_t order) {
  const Fields f{pointers};
  const SequenceBackward p{problem.sizes(), f("dy"),
                           f("dhn"),        f("dcn"),
                           f("y"),          f("h0"),
                           f("c0"),         f("weight_hh"),
                           f("weight_hr"),  static_cast<const int64_t*>(f("lengths")),
                           f("saved"),      f("cells"),
                           f("grads"),      f("dh0"),
                           f("dc0"),        f("dh")};
  return in_workspace(cell, p.n, true, order, [&](const SequenceKernels& k, void* workspace) {
    return k.backward(p, workspace, nullptr);
  });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_cuda_host, m) {
  namespace py = pybind11;
  m.doc() = "The CUDA sequence kernels on the host: see csrc/testing/cuda_host.h";
  py::class_<Problem>(m, "Problem")
      .def(py::init([](int64_t T, int64_t B, int64_t H, int64_t P, std::string dtype,
                       bool reverse) { return Problem{T, B, H, P, std::move(dtype), reverse}; }),
           py::kw_only(), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("P"), py::arg("dtype"),
           py::arg("reverse"));
  const char* text =
      "Runs the kernels on pointers named as in csrc/sequence.h; returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("pointers"),
        py::arg("order") = 0, text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("pointers"),
        py::arg("order") = 0, text);
  m.def("launches", [] { return cuda::host::launches; }, "Launches since the module was loaded.");
}
