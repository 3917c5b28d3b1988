// The most probable words, and random ones, from the logits of few nodes: a CTA a token.
//
// As csrc/cpu/softmax_search.h, in the same order: nodes are taken best first until the k-th best
// word is more probable than the next node; a word is drawn by one number u, node after node.
// A node's rows of the weight are read by all threads, eight to a row; a node's log-sum-exp and its
// branches are shared out too. What is open has a fixed capacity: see softmax_search below.
#pragma once
#include "softmax_node.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kSearchCtas =
    2;  // that an SM must be able to hold; for three, 80 registers, it spills

// Where a node has more branches than there is room for open nodes, only those are opened that have
// at least the share of all that as many as there is room for could have. Of the others the most
// probable one is remembered; unless it turns out hopeless, the token is marked, as one is whose
// budget does not suffice: its `rows` is -1. Grid: tokens, or as many as have scratch memory.
template <class Data>
__global__ void __launch_bounds__(kSearchThreads, kSearchCtas)
    softmax_search(SoftmaxSearch a, const int32_t* word, int64_t ctas, Wide<Data>* scratch) {
  using W = Wide<Data>;
  using std::log;
  struct Shared {
    NodeShared<W> node;
    BestShared<W> best;
  };
  auto& s = shared_memory<Shared>();
  const SoftmaxTree& tree = a.tree;
  scratch += static_cast<int64_t>(blockIdx.x) * a.widest;
  for (int64_t token = blockIdx.x; token < a.n.N; token += ctas) {
    Best<W> best(s.best, a.k);
    Found<W> node = {0, 0};
    int64_t rows = 0;
    W lost = -static_cast<W>(INFINITY);  // of what this thread saw
    bool left_out = false, crowded = false;
    for (;;) {
      const Evaluated<W> found = evaluate<Data>(s.node, a, token, node.id, scratch);
      rows += found.rows;
      const int64_t first = tree.node_branches[node.id];
      const int64_t branches = tree.node_branches[node.id + 1] - first;
      if (branches > best.room()) best.prune();
      const bool tight = branches > best.room();
      const W least = -log(static_cast<W>(best.room()));
      crowded = crowded || tight;
      best.take(branches, [&](int64_t j, Found<W>& x) {
        const W log_p = found.log_p(j);
        x = {node.log_p + log_p, static_cast<int32_t>(tree.branch_node[first + j])};
        if (best.hopeless(x)) return kNothing;
        if (x.id < 0) {
          x.id = word[tree.branch_leaf[first + j]];
          return kWord;
        }
        if (!tight || log_p >= least) return kNode;
        left_out = true;
        if (x.key() > lost) lost = x.key();
        return kNothing;
      });
      if (!best.any_open()) break;
      const int at = best.first_open();
      node = best.open(at);
      if (best.hopeless(node)) break;
      best.close(at);
      const int64_t next = tree.node_rows[node.id + 1] - tree.node_rows[node.id];
      if (rows + next - tree.node_rows[1] > a.budget) {
        rows = -1;
        break;
      }
    }
    if (crowded && rows >= 0 && __syncthreads_or(left_out)) {
      lost = reduced(s.node.reduce, lost, [](W x, W y) { return x > y ? x : y; });
      if (!best.hopeless({lost, 0})) rows = -1;
    }
    if (threadIdx.x == 0) a.rows[token] = rows;
    if (rows >= 0 && threadIdx.x < a.k) {
      const int64_t to = token * a.k + threadIdx.x;
      static_cast<W*>(a.log_prob)[to] = best[threadIdx.x].log_p;
      a.words[to] = best[threadIdx.x].id;
    }
  }
}

template <class W>
struct DrawShared {
  NodeShared<W> node;
  double upto[kSearchThreads];
  int32_t which[kSearchThreads];
};

// A branch of a node: which, its share, and that of all before it.
struct Drawn {
  int64_t branch = 0;
  double before = 0, share = 0;
};

// The branch in whose share u falls; where rounding fell short of 1, the last one with a share.
template <class W>
__device__ inline Drawn draw_branch(DrawShared<W>& s, const Evaluated<W>& found, int64_t branches,
                                    double u) {
  using std::exp;
  Drawn drawn;
  if (branches <= kAlone) {
    for (int64_t j = 0; j < branches; ++j) {
      const double share = exp(static_cast<double>(found.log_p(j)));
      if (share == 0) continue;
      drawn = {j, drawn.before + drawn.share, share};
      if (u < drawn.before + share) break;
    }
    return drawn;
  }
  double all = 0;  // of the stretches before this one
  const int me = threadIdx.x;
  for (int64_t first = 0; first < branches; first += kSearchThreads) {
    const int64_t j = first + me;
    const double share = j < branches ? exp(static_cast<double>(found.log_p(j))) : 0;
    __syncthreads();  // the stretch before has been read
    s.upto[me] = share;
    for (int step = 1; step < kSearchThreads; step *= 2) {
      __syncthreads();
      const double more = me >= step ? s.upto[me - step] : 0;
      __syncthreads();
      s.upto[me] += more;
    }
    // The first that u falls into comes first, else the last with a share.
    int32_t mine = 2 * kSearchThreads;
    if (share != 0) mine = u < all + s.upto[me] ? me : 2 * kSearchThreads - 1 - me;
    const int32_t it = reduced(s.which, mine, [](int32_t x, int32_t y) { return x < y ? x : y; });
    if (it < 2 * kSearchThreads) {
      const int at = it < kSearchThreads ? it : 2 * kSearchThreads - 1 - it;
      drawn.branch = first + at;
      drawn.before = at > 0 ? all + s.upto[at - 1] : all;
      drawn.share = exp(static_cast<double>(found.log_p(drawn.branch)));
    }
    if (it < kSearchThreads) break;
    all += s.upto[kSearchThreads - 1];
  }
  return drawn;
}

// Grid: as above.
template <class Data>
__global__ void __launch_bounds__(kSearchThreads, kSearchCtas)
    softmax_draw(SoftmaxSearch a, const int32_t* word, int64_t ctas, Wide<Data>* scratch) {
  using W = Wide<Data>;
  auto& s = shared_memory<DrawShared<W>>();
  const SoftmaxTree& tree = a.tree;
  scratch += static_cast<int64_t>(blockIdx.x) * a.widest;
  for (int64_t token = blockIdx.x; token < a.n.N; token += ctas) {
    double u = a.uniform[token];
    W log_p = 0;
    int64_t rows = 0, branch = 0;
    for (int64_t node = 0; node >= 0; node = tree.branch_node[branch]) {
      const Evaluated<W> found = evaluate<Data>(s.node, a, token, node, scratch);
      rows += found.rows;
      const int64_t first = tree.node_branches[node];
      const Drawn drawn = draw_branch(s, found, tree.node_branches[node + 1] - first, u);
      u = drawn.share > 0 ? (u - drawn.before) / drawn.share : 0;
      log_p += found.log_p(drawn.branch);
      branch = first + drawn.branch;
    }
    if (threadIdx.x > 0) continue;
    a.rows[token] = rows;
    a.words[token] = word[tree.branch_leaf[branch]];
    static_cast<W*>(a.log_prob)[token] = log_p;
  }
}

// All logits of marked tokens. Grid: blocks of such tokens x tiles of rows, by turns.
template <class Data>
__global__ void __launch_bounds__(kThreads, kProductCtas<Data>)
    softmax_marked_logits(SoftmaxSearch a, SoftmaxMarked marked, int64_t ctas, Wide<Data>* logits) {
  using W = Wide<Data>;
  using Product = SoftmaxProduct<Data, true>;
  struct Shared {
    typename Product::Shared product;
    int64_t token[kBlock];
  };
  auto& s = shared_memory<Shared>();
  const int64_t H = a.n.H, R = a.n.R, count = marked.count(), blocks = tiles_of(count, kBlock);
  const auto* x = static_cast<const Data*>(a.input);
  const auto* weight = static_cast<const Data*>(a.weight);
  const auto* bias = static_cast<const Data*>(a.bias);
  const bool aligned = whole_packs<Data>(x, H) && whole_packs<Data>(weight, H);
  for (int64_t item = blockIdx.x; item < blocks * tiles_of(R, kColumns); item += ctas) {
    const int64_t place = item % blocks * kBlock, row = item / blocks * kColumns;
    const auto prepare = [&](int64_t step) {
      if (step > 0 || threadIdx.x >= kBlock) return;
      const int64_t i = place + threadIdx.x;
      s.token[threadIdx.x] = i < count ? marked.token(i) : -1;
    };
    const auto fetch = [&](int64_t step, auto& tokens, auto& weights) {
      const int64_t h = step * Product::kDepth;
      const auto of_token = [&](int m) {
        return s.token[m] < 0 ? nullptr : x + s.token[m] * H + h;
      };
      const auto of_row = [&](int n) { return row + n < R ? weight + (row + n) * H + h : nullptr; };
      tokens.fetch(of_token, H - h, aligned);
      weights.fetch(of_row, H - h, aligned);
    };
    using Tokens = GatherCourier<Data, kBlock, Product::kDepth>;
    Product::template run<Tokens>(s.product, tiles_of(H, Product::kDepth), prepare, fetch);
    Product::each(s.product, [&](int m, int n, W sum) {
      if (s.token[m] < 0 || row + n >= R) return;
      logits[(place + m) * R + row + n] = sum + (bias == nullptr ? W(0) : widen(bias[row + n]));
    });
  }
}

}  // namespace cuda
}  // namespace fusedrnn
