// Before the softmax kernels: sort the tokens by leaf and find the nodes they pass through. Its
// cost goes by the tokens and the nodes they meet, not by the hierarchy.
#pragma once
#include <algorithm>
#include <vector>

#include "../softmax.h"

namespace fusedrnn {

// A stable counting sort by digits of 11 bits: two passes for a million words, whatever N is.
inline std::vector<int64_t> sorted_order(const std::vector<int64_t>& key, int64_t keys) {
  constexpr int kBits = 11;
  constexpr int64_t kDigits = int64_t(1) << kBits;
  const int64_t N = int64_t(key.size());
  std::vector<int64_t> order(N), other(N);
  for (int64_t i = 0; i < N; ++i) order[i] = i;
  for (int shift = 0; (keys - 1) >> shift; shift += kBits) {
    int64_t at[kDigits + 1] = {};
    for (int64_t i : order) ++at[((key[i] >> shift) & (kDigits - 1)) + 1];
    for (int64_t d = 0; d < kDigits; ++d) at[d + 1] += at[d];
    for (int64_t i : order) other[at[(key[i] >> shift) & (kDigits - 1)]++] = i;
    order.swap(other);
  }
  return order;
}

class SoftmaxPlanner {
 public:
  SoftmaxPlanner(const SoftmaxTree& tree, const int64_t* target, int64_t N, int64_t ignored)
      : tree_(tree) {
    std::vector<int64_t> key(N);
    for (int64_t i = 0; i < N; ++i)
      key[i] = target[i] == ignored ? tree.words : tree.leaf_rank[target[i]];
    order_ = sorted_order(key, tree.words + 1);
    rank_.resize(N);
    for (int64_t i = 0; i < N; ++i) rank_[i] = key[order_[i]];
    while (tokens_ < N && rank_[tokens_] < tree.words) ++tokens_;
    walk(tokens_);
  }

  SoftmaxPlan plan() const {
    return {order_.data(),           tokens_,        visits_.data(),
            int64_t(visits_.size()), branch_.data(), int64_t(branch_.size())};
  }
  int64_t saved() const { return saved_; }

  // The weight rows of the nodes that tokens meet, in order: how many, and which.
  int64_t rows() const { return rows_; }
  void rows(int64_t* out) const {
    for (const SoftmaxVisit& visit : visits_)
      for (int64_t r = 0; r < visit.rows; ++r) *out++ = visit.row + r;
  }

 private:
  struct Below {
    int64_t node, begin, end, parent;
  };

  // Depth first, children from left to right: the last one found waits at the bottom of the stack.
  void walk(int64_t N) {
    std::vector<Below> stack;
    if (N > 0) stack.push_back({0, 0, N, -1});
    std::vector<int64_t> parent;
    while (!stack.empty()) {
      const Below at = stack.back();
      stack.pop_back();
      parent.push_back(at.parent);
      const size_t first = stack.size();
      visit(at, &stack);
      std::reverse(stack.begin() + first, stack.end());
    }
    for (int64_t v = int64_t(visits_.size()) - 1; v >= 0; --v) {
      SoftmaxVisit& here = visits_[v];
      here.next = std::max(here.next, v + 1);
      if (parent[v] >= 0) visits_[parent[v]].next = std::max(visits_[parent[v]].next, here.next);
    }
  }

  void visit(const Below& at, std::vector<Below>* stack) {
    const int64_t row = tree_.node_rows[at.node], rows = tree_.node_rows[at.node + 1] - row;
    const int64_t index = int64_t(visits_.size());
    visits_.push_back({row, rows, at.begin, at.end, int64_t(branch_.size()), saved_, 0});
    saved_ += rows * (at.end - at.begin);
    rows_ += rows;
    const int64_t* leaf = tree_.branch_leaf + tree_.node_branches[at.node];
    const int64_t* last = tree_.branch_leaf + tree_.node_branches[at.node + 1];
    for (int64_t i = at.begin; i < at.end;) {
      const int64_t* next = std::upper_bound(leaf, last, rank_[i]);
      int64_t j = i + 1;
      while (j < at.end && (next == last || rank_[j] < *next)) ++j;
      branch_.insert(branch_.end(), j - i, int32_t(next - 1 - leaf));
      const int64_t child = tree_.branch_node[next - 1 - tree_.branch_leaf];
      if (child >= 0) stack->push_back({child, i, j, index});
      i = j;
    }
  }

  const SoftmaxTree& tree_;
  std::vector<int64_t> order_, rank_;
  std::vector<SoftmaxVisit> visits_;
  std::vector<int32_t> branch_;
  int64_t tokens_ = 0, saved_ = 0, rows_ = 0;
};

}  // namespace fusedrnn
