// fusedrnn_cluster_host: the cluster kernels, compiled for the host, on plain pointers from Python.
#define FUSEDRNN_CUDA_HOST
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/cluster_bf16.cu"
#include "../cuda/cluster_f16.cu"

namespace {

using namespace fusedrnn;
using Pointers = std::map<std::string, uintptr_t>;  // by the fields' names; absent: null
using Answer = std::optional<std::string>;          // what is wrong

struct Problem {
  int64_t T, B, H;
  std::string dtype;
  int64_t y_row;
  // Of the cluster kernel: see ClusterWork.
  int shape, size, rows;
  uint64_t order;
  std::string fault;
};

struct Fields {
  const Pointers& pointers;

  void* operator()(const char* name) const {
    const auto found = pointers.find(name);
    return found == pointers.end() ? nullptr : reinterpret_cast<void*>(found->second);
  }
  template <class T>
  const T* as(const char* name) const {
    return static_cast<const T*>((*this)(name));
  }
};

SequenceSizes sizes(const Problem& p, const Fields& f) {
  SequenceSizes n = {};
  n.T = p.T, n.B = p.B, n.H = n.P = p.H;
  n.dtype = p.dtype == "bfloat16" ? DType::bf16 : DType::f16;
  n.reverse = f("reverse") != nullptr;
  n.y_row = p.y_row;
  return n;
}

// Calls run(kernels, directions, work, refused) with each direction read by `read`.
template <class Read, class Run>
Answer run(const std::string& cell, const Problem& p, const std::vector<Pointers>& directions,
           bool backward, Read read, Run run_on) {
  using Args = decltype(read(Fields{directions[0]}));
  std::vector<Args> args;
  for (const Pointers& pointers : directions) args.push_back(read(Fields{pointers}));
  cuda::host::cluster_order = p.order;
  cuda::host::cluster_fault = p.fault;
  Answer answer = "no cell named " + cell;
  const auto on = [&](auto kernels, int gates) {
    ClusterWork work;
    if (!cluster_work(work, gates, p.H, p.shape, p.size, p.rows, backward)) {
      answer = "the shape cannot serve the problem so";
      return;
    }
    bool refused = false;
    const char* wrong = run_on(kernels, args.data(), int(args.size()), work, refused);
    answer =
        wrong == nullptr ? std::nullopt : Answer((refused ? "refused: " : "") + std::string(wrong));
  };
#define X(...)                                                            \
  if (cell == __VA_ARGS__::kName && p.dtype == "bfloat16") {              \
    on(cuda::Clustered<__VA_ARGS__, DType::bf16>(), __VA_ARGS__::kGates); \
  } else if (cell == __VA_ARGS__::kName) {                                \
    on(cuda::Clustered<__VA_ARGS__, DType::f16>(), __VA_ARGS__::kGates);  \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  return answer;
}

Answer run_forward(const std::string& cell, const Problem& problem,
                   const std::vector<Pointers>& directions) {
  const auto read = [&](const Fields& f) {
    SequenceForward p = {};
    p.n = sizes(problem, f);
    p.gx = f("gx"), p.weight_hh = f("weight_hh"), p.bias_hh = f("bias_hh");
    p.h0 = f("h0"), p.c0 = f("c0"), p.lengths = f.as<int64_t>("lengths");
    p.reset = f.as<bool>("reset"), p.reset_h = f("reset_h"), p.reset_c = f("reset_c");
    p.y = f("y"), p.hn = f("hn"), p.cn = f("cn"), p.saved = f("saved"), p.cells = f("cells");
    return p;
  };
  return run(cell, problem, directions, false, read,
             [](auto kernels, auto* args, int count, const ClusterWork& work, bool& refused) {
               return kernels.forward(args, count, work, nullptr, refused);
             });
}

Answer run_backward(const std::string& cell, const Problem& problem,
                    const std::vector<Pointers>& directions) {
  const auto read = [&](const Fields& f) {
    SequenceBackward p = {};
    p.n = sizes(problem, f);
    p.dy = f("dy"), p.dhn = f("dhn"), p.dcn = f("dcn"), p.y = f("y"), p.h0 = f("h0");
    p.c0 = f("c0"), p.weight_hh = f("weight_hh"), p.lengths = f.as<int64_t>("lengths");
    p.reset = f.as<bool>("reset"), p.reset_h = f("reset_h"), p.reset_c = f("reset_c");
    p.saved = f("saved"), p.cells = f("cells"), p.grads = f("grads");
    p.dh0 = f("dh0"), p.dc0 = f("dc0");
    p.dreset_h = f("dreset_h"), p.dreset_c = f("dreset_c");
    return p;
  };
  return run(cell, problem, directions, true, read,
             [](auto kernels, auto* args, int count, const ClusterWork& work, bool& refused) {
               return kernels.backward(args, count, work, nullptr, refused);
             });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_cluster_host, m) {
  namespace py = pybind11;
  m.doc() = "The cluster kernels on the host: see csrc/testing/cluster_host.h";
  py::class_<Problem>(m, "Problem")
      .def(py::init([](int64_t T, int64_t B, int64_t H, std::string dtype, int64_t y_row, int shape,
                       int size, int rows, uint64_t order, std::string fault) {
             return Problem{T,    B,    H,     std::move(dtype), y_row, shape,
                            size, rows, order, std::move(fault)};
           }),
           py::kw_only(), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("dtype"),
           py::arg("y_row"), py::arg("shape"), py::arg("size"), py::arg("rows"),
           py::arg("order") = 0, py::arg("fault") = "");
  const char* text =
      "Runs a layer's directions on pointers named as in csrc/sequence.h (`reverse`: any that is "
      "not null); returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("directions"), text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("directions"), text);
}
