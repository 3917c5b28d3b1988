// The hierarchical softmax ops (schemas: fusedrnn/softmax_ops.py): check, allocate, call the
// kernel.
#include <tuple>

#include "../cpu/softmax_plan.h"
#include "kept.h"

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

  Tensor targets(const Tensor& target, int64_t N, int64_t ignored) const {
    Tensor t = ints(target, "target", N);
    for (int64_t i = 0; i < N; ++i) {
      const int64_t word = longs(t)[i];
      STD_TORCH_CHECK(word == ignored || (word >= 0 && word < view.words), "fusedrnn: target[", i,
                      "] is ", word, "; it must be in 0..", view.words - 1, " or ", ignored,
                      ", the ignore_index");
    }
    return t;
  }

  // Whether each word is the leaf of its number.
  bool in_order() const {
    for (int64_t w = 0; w < view.words; ++w)
      if (view.leaf_rank[w] != w) return false;
    return true;
  }

  // The word of each leaf.
  std::vector<int32_t> word() const {
    std::vector<int32_t> words(view.words);
    for (int64_t w = 0; w < view.words; ++w) words[view.leaf_rank[w]] = int32_t(w);
    return words;
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

// objective: what is trained on where that is not output, else nothing. plan: nothing, as it is
// made anew in backward; with it comes depth, nodes on the longest path, which only GPUs ask for.
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_forward(
    Tensor input, Tensor weight, Maybe bias, Tensor target, Tensor leaf_rank, Tensor node_rows,
    Tensor node_branches, Tensor branch_leaf, Tensor branch_node, int64_t path_rows,
    int64_t /*depth*/, int64_t ignore_index, double label_smoothing, double z_loss, bool save) {
  check_matrices(input, weight);
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, weight.size(0));
  const SoftmaxSizes n = sizes(input, weight);
  const ScalarType dtype = input.scalar_type();
  input = checked(input, "input", {n.N, n.H}, dtype);
  weight = checked(weight, "weight", {n.R, n.H}, dtype);
  if (bias.has_value()) bias = checked(*bias, "bias", {n.R}, dtype);
  target = tree.targets(target, n.N, ignore_index);
  const SoftmaxPlanner planner(tree.view, longs(target), n.N, ignore_index);
  const bool plain = label_smoothing == 0 && z_loss == 0;
  Tensor output = allocate(input, {n.N}, state_dtype(input));
  Tensor objective = allocate(input, {plain ? 0 : n.N}, state_dtype(input));
  Tensor saved = allocate(input, {save ? n.N : 0, path_rows}, state_dtype(input));
  if (save) fits(planner, saved);
  succeed(cpu_softmax_forward(
      {n, label_smoothing, z_loss, input.const_data_ptr(), weight.const_data_ptr(), data(bias),
       output.mutable_data_ptr(), plain ? nullptr : objective.mutable_data_ptr(),
       save ? saved.mutable_data_ptr() : nullptr},
      planner.plan()));
  return {output, objective, saved, allocate(input, {0}, ScalarType::Int)};
}

// The log-probabilities of all words from all logits, or, given grad, the gradient of the logits;
// into `into`, if it is there.
Tensor log_softmax(Maybe grad, Maybe into, Tensor logits, Tensor leaf_rank, Tensor node_rows,
                   Tensor node_branches, Tensor branch_leaf, Tensor branch_node) {
  STD_TORCH_CHECK(logits.dim() == 2, "fusedrnn: logits must be [N, rows]");
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, logits.size(1));
  const int64_t N = logits.size(0), V = tree.view.words;
  const ScalarType dtype = state_dtype(logits);
  logits = checked(logits, "logits", {N, tree.view.rows}, dtype);
  if (grad.has_value()) grad = checked(*grad, "grad", {N, V}, dtype);
  if (into.has_value()) {
    checked(*into, "out", {N, V}, dtype);
    STD_TORCH_CHECK(into->is_contiguous(), "fusedrnn: out must be contiguous");
  }
  Tensor out =
      into.has_value() ? *into : allocate_kept(logits, {N, grad.has_value() ? tree.view.rows : V});
  const bool in_order = tree.in_order();
  const std::vector<int32_t> word = in_order ? std::vector<int32_t>() : tree.word();
  succeed(cpu_log_softmax({N, dtype_of(logits), int(torch::stable::get_num_threads()), tree.view,
                           in_order ? nullptr : word.data(), logits.const_data_ptr(), data(grad),
                           out.mutable_data_ptr()}));
  return out;
}

Tensor log_softmax_forward(Tensor logits, Tensor leaf_rank, Tensor node_rows, Tensor node_branches,
                           Tensor branch_leaf, Tensor branch_node) {
  return log_softmax(std::nullopt, std::nullopt, logits, leaf_rank, node_rows, node_branches,
                     branch_leaf, branch_node);
}

void log_softmax_out(Tensor logits, Tensor leaf_rank, Tensor node_rows, Tensor node_branches,
                     Tensor branch_leaf, Tensor branch_node, Tensor out) {
  log_softmax(std::nullopt, out, logits, leaf_rank, node_rows, node_branches, branch_leaf,
              branch_node);
}

// root: the logits of the root's rows. Those of the others lie in out already, where the
// log-probabilities of their words are to be.
void log_softmax_in_place(Tensor root, Tensor leaf_rank, Tensor node_rows, Tensor node_branches,
                          Tensor branch_leaf, Tensor branch_node, Tensor out) {
  STD_TORCH_CHECK(root.dim() == 2, "fusedrnn: root must be [N, rows]");
  // As many rows as branches: no node is a sigmoid.
  const int64_t branches = branch_leaf.numel();
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, branches);
  const SoftmaxTree& t = tree.view;
  const int64_t N = root.size(0);
  bool serves = tree.in_order();
  for (int64_t b = t.node_rows[1]; b < branches && serves; ++b) serves = t.branch_node[b] < 0;
  STD_TORCH_CHECK(serves, "fusedrnn: only words in the order of leaves, below the root all ",
                  "branches, can be scored in place");
  root = checked(root, "root", {N, t.node_rows[1]}, root.scalar_type());
  checked(out, "out", {N, t.words}, root.scalar_type());
  STD_TORCH_CHECK(out.is_contiguous(), "fusedrnn: out must be contiguous");
  succeed(cpu_log_softmax({N, dtype_of(root), int(torch::stable::get_num_threads()), t, nullptr,
                           root.const_data_ptr(), nullptr, out.mutable_data_ptr(), true}));
}

Tensor log_softmax_backward(Tensor grad, Tensor logits, Tensor leaf_rank, Tensor node_rows,
                            Tensor node_branches, Tensor branch_leaf, Tensor branch_node) {
  return log_softmax(grad, std::nullopt, logits, leaf_rank, node_rows, node_branches, branch_leaf,
                     branch_node);
}

// root: the logits of the root. uniform: draw a word by each of these; none: the k best, if these
// take no more than `budget` rows below the root; else that token's `rows` is -1.
std::tuple<Tensor, Tensor, Tensor> softmax_search(Tensor root, Tensor input, Tensor weight,
                                                  Maybe bias, Maybe uniform, Tensor leaf_rank,
                                                  Tensor node_rows, Tensor node_branches,
                                                  Tensor branch_leaf, Tensor branch_node,
                                                  int64_t path_rows, int64_t k, int64_t budget,
                                                  double scale) {
  check_matrices(input, weight);
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, weight.size(0));
  const SoftmaxSizes n = sizes(input, weight);
  const ScalarType dtype = input.scalar_type(), wide = state_dtype(input);
  STD_TORCH_CHECK(k >= 1 && k <= tree.view.words, "fusedrnn: k is ", k, "; it must be in 1..",
                  tree.view.words);
  input = checked(input, "input", {n.N, n.H}, dtype);
  weight = checked(weight, "weight", {n.R, n.H}, dtype);
  if (bias.has_value()) bias = checked(*bias, "bias", {n.R}, dtype);
  root = checked(root, "root", {n.N, tree.view.node_rows[1]}, wide);
  if (uniform.has_value()) {
    STD_TORCH_CHECK(k == 1, "fusedrnn: one word is drawn, not ", k);
    uniform = checked(*uniform, "uniform", {n.N}, ScalarType::Double);
  }
  int64_t widest = 0;
  for (int64_t m = 0; m < tree.view.nodes; ++m)
    widest = std::max(widest, tree.view.node_rows[m + 1] - tree.view.node_rows[m]);
  STD_TORCH_CHECK(widest <= path_rows,
                  "fusedrnn: path_rows is less than the rows on the longest path");
  const std::vector<int32_t> word = tree.word();
  Tensor log_prob = allocate(input, {n.N, k}, wide);
  Tensor words = allocate(leaf_rank, {n.N, k}), rows = allocate(leaf_rank, {n.N});
  succeed(cpu_softmax_search(
      {n, tree.view, word.data(), widest, input.const_data_ptr(), weight.const_data_ptr(),
       data(bias), root.const_data_ptr(), k, static_cast<const double*>(data(uniform)), budget,
       scale, log_prob.mutable_data_ptr(), static_cast<int64_t*>(words.mutable_data_ptr()),
       static_cast<int64_t*>(rows.mutable_data_ptr()), 0}));
  return {log_prob, words, rows};
}

// rows: those of dweight and dbias when they are sparse, else nothing; only GPUs are told which.
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_backward(
    Tensor grad, Tensor input, Tensor weight, Tensor target, Tensor leaf_rank, Tensor node_rows,
    Tensor node_branches, Tensor branch_leaf, Tensor branch_node, Tensor saved, Tensor /*plan*/,
    int64_t ignore_index, bool need_input, bool need_weight, bool need_bias, bool sparse,
    Maybe /*met*/) {
  check_matrices(input, weight);
  const Tree tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node, weight.size(0));
  const SoftmaxSizes n = sizes(input, weight);
  const ScalarType dtype = input.scalar_type(), wide = state_dtype(input);
  input = checked(input, "input", {n.N, n.H}, dtype);
  weight = checked(weight, "weight", {n.R, n.H}, dtype);
  grad = checked(grad, "grad", {n.N}, wide);
  STD_TORCH_CHECK(saved.dim() == 2, "fusedrnn: saved must be what forward returned");
  saved = checked(saved, "saved", {n.N, saved.size(1)}, wide);
  target = tree.targets(target, n.N, ignore_index);
  const SoftmaxPlanner planner(tree.view, longs(target), n.N, ignore_index);
  fits(planner, saved);
  const int64_t R = sparse ? planner.rows() : n.R;
  Tensor dinput = allocate(input, {need_input ? n.N : 0, n.H});
  Tensor dweight = allocate_kept(weight, {need_weight ? R : 0, n.H});
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
  m.impl("hierarchical_softmax_search.native", TORCH_BOX(&fusedrnn::softmax_search));
  m.impl("hierarchical_log_softmax.native", TORCH_BOX(&fusedrnn::log_softmax_forward));
  m.impl("hierarchical_log_softmax.native_in_place", TORCH_BOX(&fusedrnn::log_softmax_in_place));
  m.impl("hierarchical_log_softmax.native_out", TORCH_BOX(&fusedrnn::log_softmax_out));
  m.impl("hierarchical_log_softmax_backward.native", TORCH_BOX(&fusedrnn::log_softmax_backward));
}
