// The most probable words, and random ones, from the logits of few nodes.
//
// Search is best first: the words below a node are no more probable than the node, so nodes are
// taken in order of probability until the k-th best word found is more probable than the next. As
// log p of a branch is never above 0 in floating point either, what is found is exact.
// A word is drawn by one number u in [0, 1): the branch in whose share of [0, 1) it falls, then its
// place within that share.
#pragma once
#include "softmax_whole.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// A node or a word with its log p; NaN counts as infinite, as in torch.topk.
template <class A>
struct Found {
  A log_p;
  int64_t id;

  A key() const { return log_p != log_p ? std::numeric_limits<A>::infinity() : log_p; }
  // Of equals the first.
  bool before(const Found& o) const { return key() > o.key() || (key() == o.key() && id < o.id); }
};

// A binary heap in memory of the caller's; what comes last by `before` is on top, or first.
template <class A, bool kLastOnTop>
class Heap {
 public:
  explicit Heap(Found<A>* memory) : at_(memory) {}
  int64_t size() const { return size_; }
  const Found<A>& top() const { return at_[0]; }

  void push(Found<A> x) {
    int64_t i = size_++;
    for (; i > 0 && above(x, at_[(i - 1) / 2]); i = (i - 1) / 2) at_[i] = at_[(i - 1) / 2];
    at_[i] = x;
  }
  Found<A> pop() {
    const Found<A> first = at_[0], x = at_[--size_];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < size_; i = child) {
      if (child + 1 < size_ && above(at_[child + 1], at_[child])) ++child;
      if (!above(at_[child], x)) break;
      at_[i] = at_[child];
    }
    at_[i] = x;
    return first;
  }

 private:
  static bool above(const Found<A>& a, const Found<A>& b) {
    return kLastOnTop ? b.before(a) : a.before(b);
  }
  Found<A>* at_;
  int64_t size_ = 0;
};

constexpr int64_t kSharedWork = 1 << 17;  // products: some 50 us, as starting a team costs a few

template <class D>
class SoftmaxSearchPass {
  using A = State<D>;
  typedef typename Vector<A>::type Vec;

 public:
  explicit SoftmaxSearchPass(const SoftmaxSearch& args) : a(args), t(a.tree) {}

  bool allocated() { return true; }
  bool failed() const { return failed_; }

  // Called by every thread of a team.
  void run() {
    Scratch<A> l(a.widest + 1);
    Scratch<Found<A>> nodes(a.uniform ? 0 : t.nodes), best(a.k);
    if (!(l && nodes && best)) failed_ = true;
#pragma omp barrier
    if (failed_) return;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a.n.N; ++i) {
      if (a.uniform)
        draw(i, l.get());
      else
        search(i, l.get(), Heap<A, false>(nodes.get()), Heap<A, true>(best.get()));
    }
  }

 private:
  // log p of a node's branches.
  void evaluate(int64_t token, int64_t node, A* l) {
    const int64_t row = t.node_rows[node], k = t.node_rows[node + 1] - row;
    const A* root = static_cast<const A*>(a.root) + token * t.node_rows[1];
    a.rows[token] += k;
    if (node == 0) {
      for (int64_t j = 0; j < k; ++j) l[j] = A(a.scale) * root[j];
    } else {
      // With fewer tokens than threads they share the rows of wide nodes.
      const bool shared = a.n.N < a.n.threads && k * a.n.H >= kSharedWork;
#pragma omp parallel for num_threads(a.n.threads) schedule(static) if (shared)
      for (int64_t j = 0; j < k; ++j) l[j] = A(a.scale) * logit(token, row + j);
    }
    if (k == 1) {
      log_sigmoids(l, 1, l, l + 1);
      return;
    }
    A top, sum;
    max_and_sum(l, k, top, sum);
    const A log_sum = std::log(sum);
    for (int64_t j = 0; j < k; ++j) l[j] = (l[j] - top) - log_sum;
  }

  A logit(int64_t token, int64_t row) const {
    constexpr int64_t lanes = Vector<A>::lanes, chains = 4;  // enough to hide the latency
    const D* x = static_cast<const D*>(a.input) + token * a.n.H;
    const D* w = static_cast<const D*>(a.weight) + row * a.n.H;
    Vec acc[chains] = {};
    int64_t h = 0;
    for (; h + chains * lanes <= a.n.H; h += chains * lanes)
      for (int c = 0; c < chains; ++c)
        acc[c] += vector(x + h + c * lanes) * vector(w + h + c * lanes);
    const Vec sums = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    A sum = a.bias ? load(static_cast<const D*>(a.bias)[row]) : A(0);
    for (int64_t l = 0; l < lanes; ++l) sum += sums[l];
    for (; h < a.n.H; ++h) sum += load(x[h]) * load(w[h]);
    return sum;
  }

  static inline FRNN_INLINE Vec vector(const D* from) {
    A values[Vector<A>::lanes];
    for (int l = 0; l < Vector<A>::lanes; ++l) values[l] = load(from[l]);
    Vec v;
    std::memcpy(&v, values, sizeof(v));
    return v;
  }

  void search(int64_t token, A* l, Heap<A, false> nodes, Heap<A, true> best) {
    a.rows[token] = 0;
    nodes.push({0, 0});
    const auto hopeless = [&](const Found<A>& x) {
      return best.size() == a.k && x.key() < best.top().key();
    };
    while (nodes.size() && !hopeless(nodes.top())) {
      const Found<A> node = nodes.pop();
      const int64_t wanted = a.rows[token] + t.node_rows[node.id + 1] - t.node_rows[node.id];
      if (node.id > 0 && wanted - t.node_rows[1] > a.budget) {
        a.rows[token] = -1;
        return;
      }
      evaluate(token, node.id, l);
      const int64_t first = t.node_branches[node.id], last = t.node_branches[node.id + 1];
      for (int64_t j = first; j < last; ++j) {
        Found<A> x{node.log_p + l[j - first], t.branch_node[j]};
        if (hopeless(x)) continue;
        if (x.id >= 0) {
          nodes.push(x);
          continue;
        }
        x.id = a.word[t.branch_leaf[j]];
        if (best.size() == a.k && x.before(best.top())) best.pop();
        if (best.size() < a.k) best.push(x);
      }
    }
    for (int64_t i = a.k; i-- > 0;) {
      const Found<A> x = best.pop();
      static_cast<A*>(a.log_prob)[token * a.k + i] = x.log_p;
      a.words[token * a.k + i] = x.id;
    }
  }

  void draw(int64_t token, A* l) {
    double u = a.uniform[token];
    A log_p = 0;
    a.rows[token] = 0;
    for (int64_t node = 0, branch; node >= 0; node = t.branch_node[branch]) {
      evaluate(token, node, l);
      const int64_t first = t.node_branches[node], k = t.node_branches[node + 1] - first;
      double before = 0, p = 0;
      int64_t j = 0;
      for (int64_t next = 0; next < k; ++next) {  // the last one with a share, where rounding fell
        const double share = std::exp(double(l[next]));  // short of 1
        if (share == 0) continue;
        before += p;
        p = share;
        j = next;
        if (u < before + p) break;
      }
      u = p > 0 ? (u - before) / p : 0;
      log_p += l[j];
      branch = first + j;
      if (t.branch_node[branch] < 0) a.words[token] = a.word[t.branch_leaf[branch]];
    }
    static_cast<A*>(a.log_prob)[token] = log_p;
  }

  const SoftmaxSearch& a;
  const SoftmaxTree& t;
  bool failed_ = false;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
