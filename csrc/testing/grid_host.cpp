// fusedrnn_grid_host: the grid kernels, compiled for the host, on plain pointers from Python.
#define FUSEDRNN_CUDA_HOST
// GCC takes the first turn of grid_product's loop for one that multiplies what nobody asked for.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <cstring>
#include <optional>

#include "../cell_name.h"
#include "../cuda/grid_bf16.cu"
#include "../cuda/grid_f16.cu"
#include "../cuda/grid_f32.cu"
#include "sequence_fields.h"
#include "workspace.h"

namespace {

using namespace fusedrnn;
using Answer = std::optional<std::string>;  // what is wrong

// Tiles of a CTA, warps, batch rows and groups of a direction, for forward and backward: see
// GridWork.
struct Choice {
  int tiles, warps, rows, groups;
} choices[2];
bool tf32 = false;  // SequenceSizes

// run(kernels of the cell and dtype, how groups share the problem).
template <class F>
Answer with_kernels(const std::string& cell, const Problem& p, bool backward, uint64_t order,
                    F run) {
  cuda::host::cluster_order = order;
  Answer answer = "no cell named " + cell;
  const auto on = [&](auto kernels, GridCell shape) {
    const Choice& c = choices[backward];
    GridWork work;
    if (!grid_work(work, shape, p.H, c.tiles, c.warps, c.rows, backward,
                   item_size(p.sizes(false).dtype))) {
      answer = "the kernel cannot serve the problem so";
      return;
    }
    work.groups = c.groups;
    bool refused = false;
    const char* wrong = run(kernels, work, refused);
    answer = wrong == nullptr ? std::nullopt : Answer(wrong);
  };
  const std::string kernel = read_cell(cell).kernel;
#define X(...)                                                             \
  if (kernel == __VA_ARGS__::kName && p.dtype == "bfloat16") {             \
    on(cuda::Gridded<__VA_ARGS__, DType::bf16>(), kGridCell<__VA_ARGS__>); \
  } else if (kernel == __VA_ARGS__::kName && p.dtype == "float16") {       \
    on(cuda::Gridded<__VA_ARGS__, DType::f16>(), kGridCell<__VA_ARGS__>);  \
  } else if (kernel == __VA_ARGS__::kName && p.dtype == "float32") {       \
    on(cuda::Gridded<__VA_ARGS__, DType::f32>(), kGridCell<__VA_ARGS__>);  \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  return answer;
}

Answer run_forward(const std::string& cell, const Problem& problem,
                   const std::vector<Direction>& directions, uint64_t order) {
  auto layer = forward_layer(problem, directions);
  for (auto& p : layer) p.n.options = read_cell(cell).options, p.n.tf32 = tf32;
  return with_kernels(cell, problem, false, order, [&](auto kernels, auto& work, bool& refused) {
    const size_t bytes = layer[0].saved == nullptr ? kernels.workspace_bytes(layer[0].n) : 0;
    Workspace workspace(layer.size() * bytes);
    std::memset(workspace.data(), 0, layer.size() * bytes);  // what is awaited must be filled
    const char* wrong =
        kernels.forward(layer.data(), int(layer.size()), work, workspace.data(), nullptr, refused);
    if (wrong == nullptr && !workspace.intact()) wrong = "a kernel wrote beyond its workspace";
    return wrong;
  });
}

Answer run_backward(const std::string& cell, const Problem& problem,
                    const std::vector<Direction>& directions, uint64_t order) {
  auto layer = backward_layer(problem, directions);
  for (auto& p : layer) p.n.options = read_cell(cell).options, p.n.tf32 = tf32;
  return with_kernels(cell, problem, true, order, [&](auto kernels, auto& work, bool& refused) {
    return kernels.backward(layer.data(), int(layer.size()), work, nullptr, refused);
  });
}

void tensor_cores(bool rounded, bool cut) { tf32 = rounded, cuda::host::sums_are_cut = cut; }

void choose(int tiles, int warps, int rows, int groups, bool backward) {
  choices[backward] = {tiles, warps, rows, groups};
}

}  // namespace

PYBIND11_MODULE(fusedrnn_grid_host, m) {
  namespace py = pybind11;
  m.doc() = "The grid kernels on the host: see csrc/testing/grid_host.h";
  bind_problem(m);
  const char* text =
      "Runs the kernels on one or two directions, each (reverse, pointers named as in "
      "csrc/sequence.h); returns None or what is wrong.";
  m.def("forward", run_forward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("backward", run_backward, py::arg("cell"), py::arg("problem"), py::arg("directions"),
        py::arg("order") = 0, text);
  m.def("choose", choose, py::kw_only(), py::arg("tiles"), py::arg("warps"), py::arg("rows"),
        py::arg("groups"), py::arg("backward"),
        "How groups share the problems of the calls that follow.");
  m.def("tensor_cores", tensor_cores, py::kw_only(), py::arg("tf32") = false,
        py::arg("cut") = false,
        "For the calls that follow: whether float32 products are those of rounded numbers, and "
        "whether tensor cores cut their sums off.");
  m.def(
      "leave_out", [](std::string what) { cuda::host::cluster_fault = std::move(what); },
      "Leaves out a part of the protocol: wait, sync_empty, sync_full; or nothing.");
}
