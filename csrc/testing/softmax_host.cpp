// fusedrnn_softmax_host: the CUDA softmax kernels, compiled for the host, on plain pointers from
// Python.
#define FUSEDRNN_CUDA_HOST
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>

#include "../cuda/softmax.cpp"
#include "../cuda/softmax_bf16.cu"
#include "../cuda/softmax_f16.cu"
#include "../cuda/softmax_f32.cu"
#include "../cuda/softmax_f64.cu"
#include "../cuda/softmax_plan.cu"
#include "../cuda/softmax_whole.cu"

namespace {

using namespace fusedrnn;
using Pointers = std::map<std::string, uintptr_t>;  // by the fields' names; absent: null
using Sizes = std::map<std::string, int64_t>;

struct Call {
  const Pointers& pointers;
  const Sizes& sizes;

  void* operator()(const char* name) const {
    const auto found = pointers.find(name);
    return found == pointers.end() ? nullptr : reinterpret_cast<void*>(found->second);
  }
  int64_t of(const char* name) const { return sizes.at(name); }
  const int64_t* longs(const char* name) const { return static_cast<int64_t*>((*this)(name)); }

  SoftmaxSizes n(const std::string& dtype) const {
    static const std::map<std::string, DType> names = {{"float64", DType::f64},
                                                       {"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16}};
    return {of("N"), of("H"), of("R"), names.at(dtype), 1};
  }
  SoftmaxTree tree() const {
    return {of("V"),
            of("M"),
            of("R"),
            longs("leaf_rank"),
            longs("node_rows"),
            longs("node_branches"),
            longs("branch_leaf"),
            longs("branch_node")};
  }
  SoftmaxGpuPlan plan() const {
    return SoftmaxGpuPlan::in(static_cast<int32_t*>((*this)("plan")), of("N"), of("M"), of("depth"),
                              of("path_rows"));
  }
};

// run(workspace) in the given order of threads; None, or what is wrong.
template <class F>
std::optional<std::string> in_order(uint64_t order, size_t bytes, F run) {
  const std::string guard(256, '\x5a');
  std::string workspace = guard + std::string(bytes, '\xff') + guard;
  cuda::host::order = order;
  cuda::host::bad_target = false;
  if (const char* wrong = run(workspace.data() + guard.size())) return wrong;
  if (cuda::host::bad_target) return "a target is no word";
  if (workspace.compare(0, guard.size(), guard) != 0 ||
      workspace.compare(workspace.size() - guard.size(), guard.size(), guard) != 0)
    return "a kernel wrote beyond its workspace";
  return std::nullopt;
}

std::optional<std::string> forward(const std::string& dtype, const Sizes& sizes,
                                   const Pointers& pointers, double smoothing, double z_loss,
                                   uint64_t order) {
  const Call c{pointers, sizes};
  const SoftmaxForward a{c.n(dtype), smoothing,   z_loss,         c("input"), c("weight"),
                         c("bias"),  c("output"), c("objective"), c("saved")};
  return in_order(order, cuda_softmax_forward_workspace(a.n.N), [&](void* workspace) {
    const SoftmaxTargets targets{c.longs("target"), c.of("ignored")};
    return cuda_softmax_forward(a, c.tree(), targets, c.plan(), workspace, nullptr);
  });
}

std::optional<std::string> backward(const std::string& dtype, const Sizes& sizes,
                                    const Pointers& pointers, uint64_t order) {
  const Call c{pointers, sizes};
  const SoftmaxBackward a{c.n(dtype), c("grad"),   c("input"),   c("weight"), c("saved"),
                          false,      c("dinput"), c("dweight"), c("dbias")};
  const SoftmaxRows rows{c.of("rows"), c.longs("rows")};
  return in_order(order, cuda_softmax_backward_workspace(rows.count), [&](void* workspace) {
    return cuda_softmax_backward(a, c.tree(), c.plan(), rows, workspace, nullptr);
  });
}

std::optional<std::string> log_softmax(const std::string& dtype, const Sizes& sizes,
                                       const Pointers& pointers, uint64_t order) {
  const Call c{pointers, sizes};
  const LogSoftmax a{c.of("N"), c.n(dtype).dtype, 1,         c.tree(),
                     nullptr,   c("logits"),      c("grad"), c("out")};
  return in_order(order, cuda_log_softmax_workspace(a),
                  [&](void* workspace) { return cuda_log_softmax(a, workspace, nullptr); });
}

std::optional<std::string> search(const std::string& dtype, const Sizes& sizes,
                                  const Pointers& pointers, double scale, uint64_t order) {
  const Call c{pointers, sizes};
  const auto* uniform = static_cast<const double*>(c("uniform"));
  const SoftmaxSearch a{c.n(dtype),
                        c.tree(),
                        nullptr,
                        c.of("widest"),
                        c("input"),
                        c("weight"),
                        c("bias"),
                        c("root"),
                        c.of("k"),
                        uniform,
                        c.of("budget"),
                        scale,
                        c("log_prob"),
                        static_cast<int64_t*>(c("words")),
                        static_cast<int64_t*>(c("rows")),
                        c.of("scored")};
  return in_order(order, cuda_softmax_search_workspace(a),
                  [&](void* workspace) { return cuda_softmax_search(a, workspace, nullptr); });
}

}  // namespace

PYBIND11_MODULE(fusedrnn_softmax_host, m) {
  m.doc() = "The CUDA softmax kernels on the host: see csrc/testing/cuda_host.h";
  m.def("plan_size", &SoftmaxGpuPlan::size, "How many int32 the plan takes.");
  m.def("forward", forward, "Runs the kernels on pointers named as in csrc/softmax.h.");
  m.def("backward", backward, "Likewise.");
  m.def("log_softmax", log_softmax, "Likewise; with grad it is the gradient of the logits.");
  m.def("search", search, "Likewise; with uniform it draws words.");
}
