// The hierarchical softmax ops on a GPU (schemas: fusedrnn/softmax_ops.py): check what the host can
// see, allocate, launch. The tree's tensors are on the device; what they hold, Hierarchy has
// checked, and targets are checked by the kernel.
#include <algorithm>
#include <tuple>

#include "../softmax.h"
#include "common.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;
using Size = std::vector<int64_t>;

// Checks one tensor of a call against the first and returns it contiguous.
class Checked {
 public:
  explicit Checked(const Tensor& input) : input_(input) {}

  Tensor operator()(const Tensor& t, const char* name, const Size& size, ScalarType dtype) const {
    bool fits = t.dim() == int64_t(size.size());
    for (size_t i = 0; fits && i < size.size(); ++i) fits = t.size(i) == size[i];
    STD_TORCH_CHECK(fits, "fusedrnn: ", name, " has the wrong shape for this hierarchy and input");
    STD_TORCH_CHECK(t.scalar_type() == dtype, "fusedrnn: ", name, " has the wrong dtype");
    STD_TORCH_CHECK(t.is_cuda() && t.get_device() == input_.get_device(), "fusedrnn: ", name,
                    " and input are on different devices");
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
  Tensor operator()(const Tensor& t, const char* name, const Size& size) const {
    return (*this)(t, name, size, input_.scalar_type());
  }

 private:
  const Tensor& input_;
};

const int64_t* longs(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// The tree's tensors, kept alive, and their view.
struct Tree {
  Tensor leaf_rank, node_rows, node_branches, branch_leaf, branch_node;
  SoftmaxTree view;

  Tree(const Checked& checked, const Tensor& rank, const Tensor& rows, const Tensor& branches,
       const Tensor& leaf, const Tensor& node, int64_t weight_rows)
      : leaf_rank(checked(rank, "leaf_rank", {rank.numel()}, ScalarType::Long)),
        node_rows(checked(rows, "node_rows", {rows.numel()}, ScalarType::Long)),
        node_branches(checked(branches, "node_branches", {rows.numel()}, ScalarType::Long)),
        branch_leaf(checked(leaf, "branch_leaf", {edges()}, ScalarType::Long)),
        branch_node(checked(node, "branch_node", {edges()}, ScalarType::Long)),
        view{rank.numel(),     rows.numel() - 1,     weight_rows,        longs(leaf_rank),
             longs(node_rows), longs(node_branches), longs(branch_leaf), longs(branch_node)} {}

  int64_t edges() const { return leaf_rank.numel() + node_rows.numel() - 2; }
};

// What every call needs: sizes, and the stream of input's device, which is current meanwhile.
struct Call {
  SoftmaxSizes n;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  Call(const Tensor& input, const Tensor& weight)
      : n{input.size(0), input.size(1), weight.size(0), dtype_of(input), 1},
        guard(input.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(input.get_device_index(), &stream));
  }
};

void check_matrices(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(input.dim() == 2 && weight.dim() == 2,
                  "fusedrnn: input must be [N, H] and weight [rows, H]");
}

void succeed(const char* wrong) { STD_TORCH_CHECK(!wrong, "fusedrnn: ", wrong ? wrong : ""); }

SoftmaxGpuPlan view_plan(const Tensor& plan, int64_t N, int64_t nodes, int64_t depth,
                         int64_t path_rows) {
  return SoftmaxGpuPlan::in(static_cast<int32_t*>(plan.mutable_data_ptr()), N, nodes, depth,
                            path_rows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_forward(
    Tensor input, Tensor weight, Maybe bias, Tensor target, Tensor leaf_rank, Tensor node_rows,
    Tensor node_branches, Tensor branch_leaf, Tensor branch_node, int64_t path_rows, int64_t depth,
    int64_t ignore_index, double label_smoothing, double z_loss, bool save) {
  check_matrices(input, weight);
  STD_TORCH_CHECK(depth >= 1 && path_rows >= depth, "fusedrnn: depth is ", depth, " and path_rows ",
                  path_rows, "; there must be as many rows as nodes on a path");
  const Call call(input, weight);
  const Checked checked(input);
  const int64_t N = call.n.N, H = call.n.H, R = call.n.R;
  input = checked(input, "input", {N, H});
  weight = checked(weight, "weight", {R, H});
  if (bias.has_value()) bias = checked(*bias, "bias", {R});
  target = checked(target, "target", {N}, ScalarType::Long);
  const Tree tree(checked, leaf_rank, node_rows, node_branches, branch_leaf, branch_node, R);

  const bool plain = label_smoothing == 0 && z_loss == 0;
  const ScalarType wide = state_dtype(input);
  Tensor output = allocate(input, {N}, wide), objective = allocate(input, {plain ? 0 : N}, wide);
  Tensor saved = allocate(input, {N, path_rows}, wide);
  Tensor plan = allocate(input, {SoftmaxGpuPlan::size(N, tree.view.nodes, depth)}, ScalarType::Int);
  Tensor workspace =
      allocate(input, {int64_t(cuda_softmax_forward_workspace(N))}, ScalarType::Byte);
  succeed(cuda_softmax_forward(
      {call.n, label_smoothing, z_loss, input.const_data_ptr(), weight.const_data_ptr(), data(bias),
       output.mutable_data_ptr(), plain ? nullptr : objective.mutable_data_ptr(),
       saved.mutable_data_ptr()},
      tree.view, {longs(target), ignore_index},
      view_plan(plan, N, tree.view.nodes, depth, path_rows), workspace.mutable_data_ptr(),
      call.stream));
  if (save) return {output, objective, saved, plan};
  return {output, objective, allocate(input, {0, path_rows}, wide),
          allocate(input, {0}, ScalarType::Int)};
}

// met: the rows of sparse gradients, in order; none: all.
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_backward(
    Tensor grad, Tensor input, Tensor weight, Tensor target, Tensor leaf_rank, Tensor node_rows,
    Tensor node_branches, Tensor branch_leaf, Tensor branch_node, Tensor saved, Tensor plan,
    int64_t, bool need_input, bool need_weight, bool need_bias, bool sparse, Maybe met) {
  check_matrices(input, weight);
  STD_TORCH_CHECK(sparse == met.has_value(),
                  "fusedrnn: on a GPU sparse gradients need their rows, and dense ones have none");
  const Call call(input, weight);
  const Checked checked(input);
  const int64_t N = call.n.N, H = call.n.H;
  const ScalarType wide = state_dtype(input);
  input = checked(input, "input", {N, H});
  weight = checked(weight, "weight", {call.n.R, H});
  grad = checked(grad, "grad", {N}, wide);
  STD_TORCH_CHECK(saved.dim() == 2, "fusedrnn: saved must be what forward returned");
  saved = checked(saved, "saved", {N, saved.size(1)}, wide);
  if (sparse) met = checked(*met, "met", {met->numel()}, ScalarType::Long);
  const Tree tree(checked, leaf_rank, node_rows, node_branches, branch_leaf, branch_node, call.n.R);
  const int64_t M = tree.view.nodes, depth = N == 0 ? 1 : (plan.numel() - 3 * M - 2 * N) / (3 * N);
  plan = checked(plan, "plan", {SoftmaxGpuPlan::size(N, M, depth)}, ScalarType::Int);

  const int64_t R = sparse ? met->numel() : call.n.R;
  Tensor dinput = allocate(input, {need_input ? N : 0, H});
  Tensor dweight = allocate(weight, {need_weight ? R : 0, H});
  Tensor dbias = allocate(weight, {need_bias ? R : 0});
  Tensor workspace =
      allocate(input, {int64_t(cuda_softmax_backward_workspace(R))}, ScalarType::Byte);
  succeed(cuda_softmax_backward(
      {call.n, grad.const_data_ptr(), input.const_data_ptr(), weight.const_data_ptr(),
       saved.const_data_ptr(), sparse, need_input ? dinput.mutable_data_ptr() : nullptr,
       need_weight ? dweight.mutable_data_ptr() : nullptr,
       need_bias ? dbias.mutable_data_ptr() : nullptr},
      tree.view, view_plan(plan, N, M, depth, saved.size(1)),
      {R, static_cast<const int64_t*>(data(met))}, workspace.mutable_data_ptr(), call.stream));
  return {dinput, dweight, dbias, allocate(target, {0})};
}

// The log-probabilities of all words from all logits, or, given grad, the gradient of the logits.
Tensor log_softmax(Maybe grad, Tensor logits, const Tensor& leaf_rank, const Tensor& node_rows,
                   const Tensor& node_branches, const Tensor& branch_leaf,
                   const Tensor& branch_node) {
  STD_TORCH_CHECK(logits.dim() == 2, "fusedrnn: logits must be [N, rows]");
  const ScalarType wide = state_dtype(logits);
  const int64_t N = logits.size(0), R = logits.size(1), V = leaf_rank.numel();
  const Call call(logits, logits);
  const Checked checked(logits);
  logits = checked(logits, "logits", {N, R}, wide);
  if (grad.has_value()) grad = checked(*grad, "grad", {N, V}, wide);
  const Tree tree(checked, leaf_rank, node_rows, node_branches, branch_leaf, branch_node, R);
  Tensor out = allocate(logits, {N, grad.has_value() ? R : V});
  const LogSoftmax args{
      N,          call.n.dtype,          1, tree.view, nullptr, logits.const_data_ptr(),
      data(grad), out.mutable_data_ptr()};
  Tensor workspace =
      allocate(logits, {int64_t(cuda_log_softmax_workspace(args))}, ScalarType::Byte);
  succeed(cuda_log_softmax(args, workspace.mutable_data_ptr(), call.stream));
  return out;
}

Tensor log_softmax_forward(Tensor logits, Tensor leaf_rank, Tensor node_rows, Tensor node_branches,
                           Tensor branch_leaf, Tensor branch_node) {
  return log_softmax(std::nullopt, logits, leaf_rank, node_rows, node_branches, branch_leaf,
                     branch_node);
}

Tensor log_softmax_backward(Tensor grad, Tensor logits, Tensor leaf_rank, Tensor node_rows,
                            Tensor node_branches, Tensor branch_leaf, Tensor branch_node) {
  return log_softmax(grad, logits, leaf_rank, node_rows, node_branches, branch_leaf, branch_node);
}

// root: the logits of the root. uniform: draw a word by each of these; none: the k best. Of tokens
// for which these take more than `budget` rows below the root all words are scored.
std::tuple<Tensor, Tensor, Tensor> softmax_search(
    Tensor root, Tensor input, Tensor weight, Maybe bias, Maybe uniform, const Tensor& leaf_rank,
    const Tensor& node_rows, const Tensor& node_branches, const Tensor& branch_leaf,
    const Tensor& branch_node, int64_t path_rows, int64_t k, int64_t budget, double scale) {
  check_matrices(input, weight);
  const Call call(input, weight);
  const Checked checked(input);
  const int64_t N = call.n.N, H = call.n.H, R = call.n.R;
  const ScalarType wide = state_dtype(input);
  input = checked(input, "input", {N, H});
  weight = checked(weight, "weight", {R, H});
  if (bias.has_value()) bias = checked(*bias, "bias", {R});
  const Tree tree(checked, leaf_rank, node_rows, node_branches, branch_leaf, branch_node, R);
  STD_TORCH_CHECK(k >= 1 && k <= tree.view.words, "fusedrnn: k is ", k, "; it must be in 1..",
                  tree.view.words);
  STD_TORCH_CHECK(root.dim() == 2 && root.size(1) <= path_rows,
                  "fusedrnn: path_rows is less than the rows on the longest path");
  root = checked(root, "root", {N, root.size(1)}, wide);
  if (uniform.has_value()) {
    STD_TORCH_CHECK(k == 1, "fusedrnn: one word is drawn, not ", k);
    uniform = checked(*uniform, "uniform", {N}, ScalarType::Double);
  }
  Tensor log_prob = allocate(input, {N, k}, wide);
  Tensor words = allocate(leaf_rank, {N, k}), rows = allocate(leaf_rank, {N});
  constexpr int64_t kScored = int64_t(1) << 24;  // logits of tokens whose words are all scored
  const SoftmaxSearch args{call.n,
                           tree.view,
                           nullptr,
                           path_rows,
                           input.const_data_ptr(),
                           weight.const_data_ptr(),
                           data(bias),
                           root.const_data_ptr(),
                           k,
                           static_cast<const double*>(data(uniform)),
                           budget,
                           scale,
                           log_prob.mutable_data_ptr(),
                           static_cast<int64_t*>(words.mutable_data_ptr()),
                           static_cast<int64_t*>(rows.mutable_data_ptr()),
                           std::max<int64_t>(8, kScored / std::max(R, tree.view.words))};
  Tensor workspace =
      allocate(input, {int64_t(cuda_softmax_search_workspace(args))}, ScalarType::Byte);
  succeed(cuda_softmax_search(args, workspace.mutable_data_ptr(), call.stream));
  return {log_prob, words, rows};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("hierarchical_softmax_forward.native", TORCH_BOX(&fusedrnn::softmax_forward));
  m.impl("hierarchical_softmax_backward.native", TORCH_BOX(&fusedrnn::softmax_backward));
  m.impl("hierarchical_softmax_search.native", TORCH_BOX(&fusedrnn::softmax_search));
  m.impl("hierarchical_log_softmax.native", TORCH_BOX(&fusedrnn::log_softmax_forward));
  m.impl("hierarchical_log_softmax_backward.native", TORCH_BOX(&fusedrnn::log_softmax_backward));
}
