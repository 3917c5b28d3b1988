// fusedrnn_cluster_host: the cluster kernels, compiled for the host, on plain pointers from Python.
#define FUSEDRNN_CUDA_HOST
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cell_name.h"
#include "../cuda/choice.h"
#include "../cuda/cluster_bf16.cu"
#include "../cuda/cluster_f16.cu"
#include "../cuda/cluster_f32.cu"
#include "../devices.h"

namespace {
const fusedrnn::GpuDevice* gpu = nullptr;  // that is said to be current
}
const fusedrnn::GpuDevice* fusedrnn::cuda::current_gpu() { return gpu; }

namespace {

using namespace fusedrnn;
using Pointers = std::map<std::string, uintptr_t>;  // by the fields' names; absent: null
using Direction = std::pair<bool, Pointers>;        // whether it is the reverse one
using Answer = std::optional<std::string>;          // what is wrong

bool tf32 = false;  // SequenceSizes

struct Problem {
  int64_t T, B, H, P;
  std::string dtype;
  int64_t y_row;

  SequenceSizes sizes(bool reverse) const {
    static const std::map<std::string, DType> names = {{"float64", DType::f64},
                                                       {"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16}};
    return {T, B, H, P, names.at(dtype), reverse, y_row, 1, tf32};
  }
};

// Shape, CTAs of a cluster and batch rows, for forward and backward: see ClusterWork.
struct Choice {
  int shape, size, rows;
} choices[2];

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

// run(kernels of the cell and dtype, how a cluster shares the problem).
template <class F>
Answer with_kernels(const std::string& cell, const Problem& p, bool backward, uint64_t order,
                    F run) {
  cuda::host::cluster_order = order;
  Answer answer = "no cell named " + cell;
  const auto on = [&](auto kernels, int gates) {
    const Choice& c = choices[backward];
    ClusterWork work;
    answer = cluster_work(work, gates, p.H, c.shape, c.size, c.rows, backward,
                          item_size(p.sizes(false).dtype))
                 ? run(kernels, work)
                 : Answer("the shape cannot serve the problem so");
  };
  const std::string kernel = read_cell(cell).kernel;
#define X(...)                                                            \
  if (kernel == __VA_ARGS__::kName && p.dtype == "bfloat16") {            \
    on(cuda::Clustered<__VA_ARGS__, DType::bf16>(), __VA_ARGS__::kGates); \
  } else if (kernel == __VA_ARGS__::kName && p.dtype == "float16") {      \
    on(cuda::Clustered<__VA_ARGS__, DType::f16>(), __VA_ARGS__::kGates);  \
  } else if (kernel == __VA_ARGS__::kName && p.dtype == "float32") {      \
    on(cuda::Clustered<__VA_ARGS__, DType::f32>(), __VA_ARGS__::kGates);  \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  return answer;
}

Answer told(const char* wrong) { return wrong == nullptr ? std::nullopt : Answer(wrong); }

Answer run_forward(const std::string& cell, const Problem& problem,
                   const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceForward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    SequenceForward p = {};
    p.n = problem.sizes(reverse), p.n.options = read_cell(cell).options;
    p.gx = f("gx"), p.weight_hh = f("weight_hh"), p.bias_hh = f("bias_hh");
    p.h0 = f("h0"), p.c0 = f("c0"), p.lengths = f.as<int64_t>("lengths");
    p.reset = f.as<bool>("reset"), p.reset_h = f("reset_h"), p.reset_c = f("reset_c");
    p.y = f("y"), p.hn = f("hn"), p.cn = f("cn"), p.saved = f("saved"), p.cells = f("cells");
    layer.push_back(p);
  }
  return with_kernels(cell, problem, false, order, [&](auto kernels, const ClusterWork& work) {
    bool refused = false;
    return told(kernels.forward(layer.data(), int(layer.size()), work, nullptr, nullptr, refused));
  });
}

Answer run_backward(const std::string& cell, const Problem& problem,
                    const std::vector<Direction>& directions, uint64_t order) {
  std::vector<SequenceBackward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    SequenceBackward p = {};
    p.n = problem.sizes(reverse), p.n.options = read_cell(cell).options;
    p.dy = f("dy"), p.dhn = f("dhn"), p.dcn = f("dcn"), p.y = f("y"), p.h0 = f("h0");
    p.c0 = f("c0"), p.weight_hh = f("weight_hh"), p.lengths = f.as<int64_t>("lengths");
    p.reset = f.as<bool>("reset"), p.reset_h = f("reset_h"), p.reset_c = f("reset_c");
    p.saved = f("saved"), p.cells = f("cells"), p.grads = f("grads");
    p.dh0 = f("dh0"), p.dc0 = f("dc0");
    p.dreset_h = f("dreset_h"), p.dreset_c = f("dreset_c");
    layer.push_back(p);
  }
  return with_kernels(cell, problem, true, order, [&](auto kernels, const ClusterWork& work) {
    bool refused = false;
    return told(kernels.backward(layer.data(), int(layer.size()), work, nullptr, refused));
  });
}

// Which kernel a call on a known GPU gets, "cluster", "grid" or "stepwise", or what is wrong.
// `refusals`: what the driver says when a kernel is to be launched; absent: it launches it.
std::string served(const std::string& cell, const Problem& problem, bool projection, bool backward,
                   int directions, const std::string& device,
                   const std::map<std::string, std::string>& refusals) {
  gpu = nullptr;
  for (const GpuDevice& d : known_devices()) {
    if (d.name == device) gpu = &d;
  }
  SequenceForward p = {};
  p.n = problem.sizes(false);
  p.weight_hr = projection ? &p : nullptr;
  const char* wrong = "no such cell";
  std::string kernel = "stepwise";
  const auto run = [&](auto, const auto& work, bool& refused) {
    const bool cluster = std::is_same_v<std::decay_t<decltype(work)>, ClusterWork>;
    const std::string name = cluster ? "cluster" : "grid";
    const auto found = refusals.find(name);
    refused = found != refusals.end();
    if (!refused) kernel = name;
    return refused ? found->second.c_str() : nullptr;
  };
  const std::string name = read_cell(cell).kernel;
#define X(...)                                                            \
  if (name == __VA_ARGS__::kName) {                                       \
    cuda::by_resident<__VA_ARGS__>(&p, directions, backward, wrong, run); \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  return wrong != nullptr ? wrong : kernel;
}

void tensor_cores(bool rounded, bool cut) { tf32 = rounded, cuda::host::sums_are_cut = cut; }

void choose(int shape, int size, int rows, bool backward) {
  choices[backward] = {shape, size, rows};
}

}  // namespace

PYBIND11_MODULE(fusedrnn_cluster_host, m) {
  namespace py = pybind11;
  m.doc() = "The cluster kernels on the host: see csrc/testing/cluster_host.h";
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
  m.def("choose", choose, py::kw_only(), py::arg("shape"), py::arg("size"), py::arg("rows"),
        py::arg("backward"), "How clusters share the problems of the calls that follow.");
  m.def("tensor_cores", tensor_cores, py::kw_only(), py::arg("tf32") = false,
        py::arg("cut") = false,
        "For the calls that follow: whether float32 products are those of rounded numbers, and "
        "whether tensor cores cut their sums off.");
  m.def("served", served, py::arg("cell"), py::arg("problem"), py::kw_only(),
        py::arg("projection") = false, py::arg("backward") = false, py::arg("directions") = 1,
        py::arg("device") = "h200", py::arg("refusals") = std::map<std::string, std::string>(),
        "Which kernel a call gets, \"cluster\", \"grid\" or \"stepwise\", or what is wrong.");
  m.def(
      "leave_out", [](std::string what) { cuda::host::cluster_fault = std::move(what); },
      "Leaves out a part of the protocol: wait, sync_cta, sync_cluster; or nothing.");
}
