// All logits to the log-probabilities of all words, and back.
//
//   log p(word) = sum over its path of l,  l = z_j - lse (node of k rows), +-log sigmoid (of one)
//   with g(branch) = sum of grad over the words below it, G(node) = sum of its branches':
//   dz_j = g_j - p_j G,   of a sigmoid:  ds = g_0 sigmoid(-s) - g_1 sigmoid(s)
//
// A thread takes whole tokens: down the tree in preorder, up in the opposite order.
#pragma once
#include "softmax_common.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// The maximum and the sum of exp(z - max), in as many partial ones as vectors need.
template <class A>
inline void max_and_sum(const A* z, int64_t n, A& top, A& sum) {
  constexpr int64_t L = kLanes<A>;
  const A lowest = -std::numeric_limits<A>::infinity();
  A m[L], s[L] = {};
  for (int64_t l = 0; l < L; ++l) m[l] = lowest;
  int64_t i = 0;
  for (; i + L <= n; i += L)
    for (int64_t l = 0; l < L; ++l) m[l] = z[i + l] > m[l] ? z[i + l] : m[l];
  for (int64_t l = 0; i + l < n; ++l) m[l] = z[i + l] > m[l] ? z[i + l] : m[l];
  top = lowest;
  for (int64_t l = 0; l < L; ++l) top = m[l] > top ? m[l] : top;
  for (i = 0; i + L <= n; i += L)
    for (int64_t l = 0; l < L; ++l) s[l] += exp_below(z[i + l] - top);
  for (int64_t l = 0; i + l < n; ++l) s[l] += exp_below(z[i + l] - top);
  sum = 0;
  for (int64_t l = 0; l < L; ++l) sum += s[l];
}

// log sigmoid(s) and log sigmoid(-s) of n numbers s. `plus` may be where they come from.
template <class A>
inline void log_sigmoids(const A* from, int64_t n, A* plus, A* minus) {
  for (int64_t i = 0; i < n; ++i) {
    const A s = from[i], t = log_sigmoid(s < 0 ? -s : s);
    minus[i] = (s < 0 ? A(0) : -s) + t;
    plus[i] = (s < 0 ? s : A(0)) + t;
  }
}

template <class A>
class LogSoftmaxPass {
 public:
  explicit LogSoftmaxPass(const LogSoftmax& args) : a(args), t(a.tree) {}

  bool allocated() { return true; }
  bool failed() const { return failed_; }

  // Called by every thread of a team.
  void run() {
    Scratch<A> of_node(t.nodes);
    if (!of_node) failed_ = true;
#pragma omp barrier
    if (failed_) return;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a.N; ++i) {
      const int64_t rows = a.in_place ? t.node_rows[1] : t.rows;
      const A* z = static_cast<const A*>(a.logits) + i * rows;
      if (a.grad)
        up(z, static_cast<const A*>(a.grad) + i * t.words, of_node.get(),
           static_cast<A*>(a.out) + i * t.rows);
      else
        down(z, of_node.get(), static_cast<A*>(a.out) + i * t.words);
    }
  }

 private:
  int64_t word(int64_t rank) const { return a.word ? a.word[rank] : rank; }

  // of_node: log p of each.
  void down(const A* z, A* of_node, A* out) const {
    of_node[0] = 0;
    for (int64_t m = 0; m < t.nodes;) {
      const int64_t k = t.node_rows[m + 1] - t.node_rows[m], first = t.node_branches[m];
      const A* from = m > 0 && a.in_place ? out + t.branch_leaf[first] : z + t.node_rows[m];
      if (k == 1) {
        m = down_sigmoids(m, from, of_node, out);
        continue;
      }
      A top, sum;
      max_and_sum(from, k, top, sum);
      const A log_sum = std::log(sum), base = of_node[m];
      const auto value = [&](int64_t j) { return base + ((from[j] - top) - log_sum); };
      if (!only_leaves(m)) {
        for (int64_t j = 0; j < k; ++j) put(first + j, value(j), of_node, out);
      } else if (a.word) {
        const auto* words = a.word + t.branch_leaf[first];
        for (int64_t j = 0; j < k; ++j) out[words[j]] = value(j);
      } else {
        A* to = out + t.branch_leaf[first];
        for (int64_t j = 0; j < k; ++j) to[j] = value(j);
      }
      ++m;
    }
  }

  // The nodes of one row from m on, whose rows z are neighbours, as many as are taken at a time.
  // Returns the node after them.
  int64_t down_sigmoids(int64_t m, const A* z, A* of_node, A* out) const {
    constexpr int64_t most = 4 * kLanes<A>;
    A plus[most], minus[most];
    int64_t n = 1;
    while (n < most && m + n < t.nodes && t.node_rows[m + n + 1] - t.node_rows[m + n] == 1) ++n;
    log_sigmoids(z, n, plus, minus);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t first = t.node_branches[m + i];
      put(first, of_node[m + i] + plus[i], of_node, out);
      put(first + 1, of_node[m + i] + minus[i], of_node, out);
    }
    return m + n;
  }

  // Preorder: the node after m is below m unless all branches of m are leaves.
  bool only_leaves(int64_t m) const {
    const int64_t first = t.node_branches[m], last = t.node_branches[m + 1];
    if (m + 1 == t.nodes) return true;
    const int64_t next = t.branch_leaf[t.node_branches[m + 1]];
    return next < t.branch_leaf[first] || next > t.branch_leaf[last - 1];
  }

  void put(int64_t branch, A value, A* of_node, A* out) const {
    const int64_t node = t.branch_node[branch];
    if (node >= 0)
      of_node[node] = value;
    else
      out[word(t.branch_leaf[branch])] = value;
  }

  // of_node: G of each.
  void up(const A* z, const A* grad, A* of_node, A* out) const {
    for (int64_t m = t.nodes - 1; m >= 0; --m) {
      const int64_t row = t.node_rows[m], k = t.node_rows[m + 1] - row;
      const int64_t first = t.node_branches[m], branches = k == 1 ? 2 : k;
      const auto below = [&](int64_t j) {
        const int64_t node = t.branch_node[first + j];
        return node >= 0 ? of_node[node] : grad[word(t.branch_leaf[first + j])];
      };
      A total = 0;
      if (k == 1) {
        const A power = std::exp(-std::abs(z[row])), small = power / (1 + power),
                large = 1 / (1 + power);
        const A p0 = z[row] < 0 ? small : large, p1 = z[row] < 0 ? large : small;
        out[row] = below(0) * p1 - below(1) * p0;
        total = below(0) + below(1);
      } else {
        A top, sum;
        max_and_sum(z + row, k, top, sum);
        for (int64_t j = 0; j < branches; ++j) total += out[row + j] = below(j);
        const A scale = total / sum;
        for (int64_t j = 0; j < k; ++j) out[row + j] -= exp_below(z[row + j] - top) * scale;
      }
      of_node[m] = total;
    }
  }

  const LogSoftmax& a;
  const SoftmaxTree& t;
  bool failed_ = false;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
