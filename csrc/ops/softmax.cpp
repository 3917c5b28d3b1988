// The hierarchical softmax ops (schemas: fusedrnn/softmax_ops.py): check, allocate, call the
// kernel.
#include <tuple>

#include "../cpu/softmax_plan.h"
#include "large.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;

Tensor checked(const Tensor& t, const char* name, std::vector<int64_t> size, ScalarType dtype) {
  bool fits = t.dim() == int64_t(size.size());
  for (size_t i = 0; fits && i < size.size(); ++i) fits = t.size(i) == size[i];
  STD_TORCH_CHECK(fits, "fusedrnn: ", name, " has the wrong shape for this hierarchy and input");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fusedrnn: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_cpu(), "fusedrnn: ", name, " is not on the CPU");
  return torch::stable::contiguous(t);
}

const int64_t* longs(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// The tree's tensors, kept alive, and their view. Hierarchy has checked what they hold.
struct Tree {
  Tensor leaf_rank, node_rows, node_branches, branch_leaf, branch_node;
  SoftmaxTree view;

  Tree(const Tensor& rank, const Tensor& rows, const Tensor& branches, const Tensor& leaf,
       const Tensor& node, int64_t weight_rows)
      : leaf_rank(ints(rank, "leaf_rank", rank.numel())),
        node_rows(ints(rows, "node_rows", rows.numel())),
        node_branches(ints(branches, "node_branches", rows.numel())),
        branch_leaf(ints(leaf, "branch_leaf", rank.numel() + rows.numel() - 2)),
        branch_node(ints(node, "branch_node", rank.numel() + rows.numel() - 2)),
        view{rank.numel(),     rows.numel() - 1,     weight_rows,        longs(leaf_rank),
             longs(node_rows), longs(node_branches), longs(branch_leaf), longs(branch_node)} {
    STD_TORCH_CHECK(view.nodes >= 1 && view.node_rows[view.nodes] == weight_rows,
                    "fusedrnn: weight has ", weight_rows, " rows, but the hierarchy needs ",
                    view.nodes >= 1 ? view.node_rows[view.nodes] : 0);
  }

  static Tensor ints(const Tensor& t, const char* name, int64_t size) {
    return checked(t, name, {size}, ScalarType::Long);
  }

  Tensor targets(const Tensor& target, int64_t N) const {
    Tensor t = ints(target, "target", N);
    for (int64_t i = 0; i < N; ++i)
      STD_TORCH_CHECK(longs(t)[i] >= 0 && longs(t)[i] < view.words, "fusedrnn: target[", i, "] is ",
                      longs(t)[i], "; it must be in 0..", view.words - 1);
    return t;
  }
};

SoftmaxSizes sizes(const Tensor& input, const Tensor& weight) {
  return {input.size(0), input.size(1), weight.size(0), dtype_of(input),
          int(torch::stable::get_num_threads())};
}

void check_matrices(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(input.dim() == 2 && weight.dim() == 2,
                  "fusedrnn: input must be [N, H] and weight [rows, H]");
}

void succeed(const char* wrong) { STD_TORCH_CHECK(!wrong, "fusedrnn: ", wrong ? wrong : ""); }

void fits(const SoftmaxPlanner& planner, const Tensor& saved) {
  STD_TORCH_CHECK(planner.saved() <= saved.numel(),
                  "fusedrnn: path_rows is less than the rows on the longest path of a target");
}

std::tuple<Tensor, Tensor> softmax_forward(Tensor input, Tensor weight, Maybe bias, Tensor target,
                                           Tensor leaf_rank, Tensor node_rows, Tensor node_branches,
                                           Tensor branch_leaf, Tensor branch_node,
                                           int64_t path_rows, bool save) {
  check_matrices(input, weight);
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, weight.size(0));
  const SoftmaxSizes n = sizes(input, weight);
  const ScalarType dtype = input.scalar_type();
  input = checked(input, "input", {n.N, n.H}, dtype);
  weight = checked(weight, "weight", {n.R, n.H}, dtype);
  if (bias.has_value()) bias = checked(*bias, "bias", {n.R}, dtype);
  target = tree.targets(target, n.N);
  const SoftmaxPlanner planner(tree.view, longs(target), n.N);
  Tensor output = allocate(input, {n.N}, state_dtype(input));
  Tensor saved = allocate(input, {save ? n.N : 0, path_rows}, state_dtype(input));
  if (save) fits(planner, saved);
  succeed(
      cpu_softmax_forward({n, input.const_data_ptr(), weight.const_data_ptr(), data(bias),
                           output.mutable_data_ptr(), save ? saved.mutable_data_ptr() : nullptr},
                          planner.plan()));
  return {output, saved};
}

// rows: those of dweight and dbias when they are sparse, else nothing.
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_backward(
    Tensor grad, Tensor input, Tensor weight, Tensor target, Tensor leaf_rank, Tensor node_rows,
    Tensor node_branches, Tensor branch_leaf, Tensor branch_node, Tensor saved, bool need_input,
    bool need_weight, bool need_bias, bool sparse) {
  check_matrices(input, weight);
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, weight.size(0));
  const SoftmaxSizes n = sizes(input, weight);
  const ScalarType dtype = input.scalar_type(), wide = state_dtype(input);
  input = checked(input, "input", {n.N, n.H}, dtype);
  weight = checked(weight, "weight", {n.R, n.H}, dtype);
  grad = checked(grad, "grad", {n.N}, wide);
  STD_TORCH_CHECK(saved.dim() == 2, "fusedrnn: saved must be what forward returned");
  saved = checked(saved, "saved", {n.N, saved.size(1)}, wide);
  target = tree.targets(target, n.N);
  const SoftmaxPlanner planner(tree.view, longs(target), n.N);
  fits(planner, saved);
  const int64_t R = sparse ? planner.rows() : n.R;
  Tensor dinput = allocate(input, {need_input ? n.N : 0, n.H});
  Tensor dweight = allocate_large(weight, need_weight ? R : 0, n.H);
  Tensor dbias = allocate(weight, {need_bias ? R : 0});
  Tensor rows = allocate(target, {sparse ? R : 0});
  if (sparse) planner.rows(static_cast<int64_t*>(rows.mutable_data_ptr()));
  succeed(cpu_softmax_backward(
      {n, grad.const_data_ptr(), input.const_data_ptr(), weight.const_data_ptr(),
       saved.const_data_ptr(), sparse, need_input ? dinput.mutable_data_ptr() : nullptr,
       need_weight ? dweight.mutable_data_ptr() : nullptr,
       need_bias ? dbias.mutable_data_ptr() : nullptr},
      planner.plan()));
  return {dinput, dweight, dbias, rows};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("hierarchical_softmax_forward.native", TORCH_BOX(&fusedrnn::softmax_forward));
  m.impl("hierarchical_softmax_backward.native", TORCH_BOX(&fusedrnn::softmax_backward));
}
