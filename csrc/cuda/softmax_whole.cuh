// All logits to the log-probabilities of all words, and back.
//
//   log p(word) = sum over its path of l,  l = z_j - lse (node of k rows), +-log sigmoid (of one)
//   with g(branch) = sum of grad over the words below it, G(node) = sum of its branches':
//   dz_j = g_j - p_j G,   of a sigmoid:  ds = g_0 sigmoid(-s) - g_1 sigmoid(s)
//
// A CTA takes whole tokens, and of each kNodes nodes at a time: in preorder, parents before what is
// below them, for the first, backwards for the second. Within such a stretch a node's log p is the
// sum along links to nodes before it, whose strides double; a subtree is neighbours, so that G is
// the difference of two running sums over the stretch, in double.
#pragma once
#include <cmath>

#include "softmax_reduce.cuh"
#include "softmax_rows.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kNodes = kReduceThreads;
constexpr int kSmall = 32;  // rows that one thread takes alone

// The tree seen from below.
struct Upward {
  int32_t* parent;     // [M] of each node, -1 of the root ...
  int32_t* way;        // [M] ... and the branch there
  int32_t* leaf_node;  // [V] the same of each leaf
  int32_t* leaf_way;   // [V]
  int32_t* word;       // [V] of each leaf
};

template <class W>
struct Stretch {
  W reduce[kNodes];
  W top[kNodes], sum[kNodes];  // of each node's logits: the largest, the sum of exp(z - top)
  double total[kNodes];
  W value[kNodes];
  int32_t rows[kNodes], link[kNodes];
};

// rows, top and sum of the nodes first .. first + kNodes - 1; all threads of the CTA.
template <class W>
__device__ inline void node_sums(Stretch<W>& s, const SoftmaxTree& tree, const W* z,
                                 int64_t first) {
  const int64_t node = first + threadIdx.x;
  __syncthreads();
  const int64_t row = node < tree.nodes ? tree.node_rows[node] : 0;
  const auto k = static_cast<int32_t>(node < tree.nodes ? tree.node_rows[node + 1] - row : 0);
  s.rows[threadIdx.x] = k;
  s.top[threadIdx.x] = 0;
  s.sum[threadIdx.x] = 1;
  if (k > 1 && k <= kSmall) {
    OnlineSum<W> sums;
    for (int j = 0; j < k; ++j) sums.add(z[row + j]);
    s.top[threadIdx.x] = sums.top;
    s.sum[threadIdx.x] = sums.sum;
  }
  __syncthreads();
  for (int i = 0; i < kNodes; ++i) {
    const int32_t rows = s.rows[i];
    if (rows <= kSmall) continue;
    OnlineSum<W> sums;
    const W* own = z + tree.node_rows[first + i];
    for (int j = threadIdx.x; j < rows; j += kNodes) sums.add(own[j]);
    sums.combine(s.reduce);
    if (threadIdx.x == 0) s.top[i] = sums.top, s.sum[i] = sums.sum;
  }
  __syncthreads();
}

// Of `marked` tokens, where there are such, else of all. Scratch of one CTA, for every node: in
// forward top and log p less log sum; in backward G.
template <class W>
__global__ void __launch_bounds__(kNodes, 6)
    softmax_whole_forward(LogSoftmax a, Upward up, SoftmaxMarked marked, int64_t ctas, W* scratch) {
  using std::log;
  auto& s = shared_memory<Stretch<W>>();
  const SoftmaxTree& tree = a.tree;
  W* top = scratch + static_cast<int64_t>(blockIdx.x) * 2 * tree.nodes;
  W* base = top + tree.nodes;
  const int64_t N = marked.list == nullptr ? a.N : marked.count();
  for (int64_t token = blockIdx.x; token < N; token += ctas) {
    const W* z = static_cast<const W*>(a.logits) + token * tree.rows;
    W* out = static_cast<W*>(a.out) + token * tree.words;
    // log p(branch) but for the sum: z - top, or of a node of one row all of it.
    const auto step = [&](int64_t node, int32_t way, W node_top) {
      const int64_t row = tree.node_rows[node];
      if (tree.node_rows[node + 1] - row > 1) return z[row + way] - node_top;
      return log_sigmoid(way ? -z[row] : z[row]);
    };
    for (int64_t first = 0; first < tree.nodes; first += kNodes) {
      node_sums(s, tree, z, first);
      const int64_t node = first + threadIdx.x;
      const int32_t parent = node < tree.nodes ? up.parent[node] : -1;
      const int32_t link = parent >= first ? static_cast<int32_t>(parent - first) : -1;
      W value = 0;
      if (parent >= 0) {
        value = step(parent, up.way[node], link >= 0 ? s.top[link] : top[parent]);
        value += link >= 0 ? -log(s.sum[link]) : base[parent];
      }
      s.value[threadIdx.x] = value;
      s.link[threadIdx.x] = link;
      for (int stride = 1; stride < kNodes; stride *= 2) {
        __syncthreads();
        const int32_t to = s.link[threadIdx.x];
        const W more = to >= 0 ? s.value[to] : W(0);
        const int32_t next = to >= 0 ? s.link[to] : -1;
        __syncthreads();
        s.value[threadIdx.x] += more;
        s.link[threadIdx.x] = next;
      }
      if (node < tree.nodes) {
        top[node] = s.top[threadIdx.x];
        base[node] = s.value[threadIdx.x] - log(s.sum[threadIdx.x]);
      }
    }
    __syncthreads();
    for (int64_t w = threadIdx.x; w < tree.words; w += kNodes) {
      const int64_t rank = tree.leaf_rank[w], node = up.leaf_node[rank];
      out[w] = step(node, up.leaf_way[rank], top[node]) + base[node];
    }
  }
}

template <class W>
__global__ void __launch_bounds__(kNodes, 6)
    softmax_whole_backward(LogSoftmax a, Upward up, int64_t ctas, W* scratch) {
  using std::exp;
  auto& s = shared_memory<Stretch<W>>();
  const SoftmaxTree& tree = a.tree;
  W* G = scratch + static_cast<int64_t>(blockIdx.x) * 2 * tree.nodes;
  for (int64_t token = blockIdx.x; token < a.N; token += ctas) {
    const W* z = static_cast<const W*>(a.logits) + token * tree.rows;
    const W* grad = static_cast<const W*>(a.grad) + token * tree.words;
    W* out = static_cast<W*>(a.out) + token * tree.rows;
    const auto below = [&](int64_t branch) {
      const int64_t node = tree.branch_node[branch];
      return node >= 0 ? G[node] : grad[up.word[tree.branch_leaf[branch]]];
    };
    for (int64_t first = (tree.nodes - 1) / kNodes * kNodes; first >= 0; first -= kNodes) {
      node_sums(s, tree, z, first);
      const int64_t node = first + threadIdx.x;
      const int32_t k = s.rows[threadIdx.x];
      s.link[threadIdx.x] = node < tree.nodes ? up.parent[node] : -1;
      // The branches of a node that do not lead into this stretch.
      const auto outside = [&](int64_t branch) {
        const int64_t child = tree.branch_node[branch];
        return child >= 0 && child < first + kNodes ? W(0) : below(branch);
      };
      double own = 0;
      if (k > 0 && k <= kSmall) {
        const int64_t from = tree.node_branches[node], to = tree.node_branches[node + 1];
        for (int64_t e = from; e < to; ++e) own += outside(e);
      }
      __syncthreads();
      s.total[threadIdx.x] = own;
      for (int i = 0; i < kNodes; ++i) {
        if (s.rows[i] <= kSmall) continue;
        const int64_t from = tree.node_branches[first + i];
        W mine = 0;
        for (int j = threadIdx.x; j < s.rows[i]; j += kNodes) mine += outside(from + j);
        const W sum = reduced(s.reduce, mine, [](W x, W y) { return x + y; });
        if (threadIdx.x == 0) s.total[i] = sum;
      }
      __syncthreads();
      for (int step = 1; step < kNodes; step *= 2) {  // running sums
        const int from = static_cast<int>(threadIdx.x) - step;
        const double before = from >= 0 ? s.total[from] : 0;
        __syncthreads();
        s.total[threadIdx.x] += before;
        __syncthreads();
      }
      int last = threadIdx.x;  // of the subtree, within the stretch
      while (last + 1 < kNodes && s.rows[last + 1] > 0 && s.link[last + 1] >= node) ++last;
      const double before = threadIdx.x > 0 ? s.total[threadIdx.x - 1] : 0;
      const auto total = static_cast<W>(s.total[last] - before);
      if (node < tree.nodes) G[node] = total;
      const W scale = total / s.sum[threadIdx.x];
      s.value[threadIdx.x] = scale;
      __syncthreads();
      for (int i = 0; i < kNodes; ++i) {
        const int32_t rows = s.rows[i];
        if (rows <= kSmall) continue;
        const int64_t row = tree.node_rows[first + i], from = tree.node_branches[first + i];
        for (int j = threadIdx.x; j < rows; j += kNodes)
          out[row + j] = below(from + j) - exp(z[row + j] - s.top[i]) * s.value[i];
      }
      if (k == 0 || k > kSmall) continue;
      const int64_t row = tree.node_rows[node], from = tree.node_branches[node];
      if (k == 1) {
        const W v = z[row], power = exp(v < 0 ? v : -v);
        const W large = 1 / (1 + power), small = power * large;
        out[row] =
            below(from) * (v < 0 ? large : small) - below(from + 1) * (v < 0 ? small : large);
      } else {
        for (int j = 0; j < k; ++j)
          out[row + j] = below(from + j) - exp(z[row + j] - s.top[threadIdx.x]) * scale;
      }
    }
    __syncthreads();
  }
}

}  // namespace cuda
}  // namespace fusedrnn
