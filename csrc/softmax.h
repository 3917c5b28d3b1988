// The hierarchical softmax: what ops hand to the kernels.
//
//   log p(word) = sum over the nodes on the word's path of log p(branch | node)
//   node of one row:    s = w.x + b,  log p(0) = log sigmoid(s),  log p(1) = log sigmoid(-s)
//   node of k >= 2:     z = W x + b,  log p(j) = z_j - log sum_i exp(z_i)
//
// What training maximises may differ from log p: with label smoothing e and z-loss c, at each node
//   (1 - e) log p(branch) + e mean_j log p(j) - c lse^2       c: nodes of k >= 2 alone
//
// Sizes: N tokens, H features, V words, M nodes in preorder, R weight rows, E = V + M - 1 branches.
// All tensors are contiguous. "data" is the tensors' dtype; "wide" is float for 16-bit data, else
// data.
#pragma once
#include "sequence.h"

namespace fusedrnn {

// The tree (fusedrnn/hierarchy.py): nodes own contiguous rows and contiguous ranks of leaves.
struct SoftmaxTree {
  int64_t words, nodes, rows;
  const int64_t* leaf_rank;      // [V]    each word's leaf, in depth-first order
  const int64_t* node_rows;      // [M+1]  where each node's rows begin
  const int64_t* node_branches;  // [M+1]  where each node's branches begin
  const int64_t* branch_leaf;    // [E]    first leaf below each branch
  const int64_t* branch_node;    // [E]    the node it leads to, or -1: a leaf
};

// One node that tokens pass through. Tokens are sorted by leaf, so they are neighbours.
struct SoftmaxVisit {
  int64_t row, rows;   // its weight rows; one row: a sigmoid between two branches
  int64_t begin, end;  // its tokens, as places in the sorted order
  int64_t slot;        // where its (node, token) pairs begin in branch[]
  int64_t saved;       // where its logits begin in saved[]
  int64_t next;        // the next visit that is not below this one
};

// Which tokens meet which nodes: visits in preorder, hence in order of rows.
struct SoftmaxPlan {
  const int64_t* order;  // [N]      sorted place -> token; stable; ignored tokens last
  int64_t tokens;        //          how many are not ignored
  const SoftmaxVisit* visits;
  int64_t count;
  const int32_t* branch;  // [slots]  the branch that each (node, token) pair takes
  int64_t slots;
};

struct SoftmaxSizes {
  int64_t N, H, R;
  DType dtype;
  int threads;
};

// saved[] holds d objective / d logit. On the CPU, for every visit, of its own node: [rows x
// tokens], cut into panels of neighbouring tokens; how wide is the kernel's affair. On a GPU a row
// of path_rows for each sorted token (SoftmaxGpuPlan).
struct SoftmaxForward {
  SoftmaxSizes n;
  double smoothing, z_loss;
  const void* input;   // [N, H]  data
  const void* weight;  // [R, H]  data
  const void* bias;    // [R]     data, or null
  void* output;        // [N]     wide: log p(target); of ignored tokens 0
  void* objective;     // [N]     wide, or null: it is log p
  void* saved;         // wide, or null: nothing is kept for backward
};

struct SoftmaxBackward {
  SoftmaxSizes n;
  const void* grad;  // [N]     wide: gradient of the objective
  const void* input;
  const void* weight;
  const void* saved;
  bool sparse;    // whether dweight and dbias have only the rows of the plan's visits, in order
  void* dinput;   // [N, H]  data, or null: not needed
  void* dweight;  // [R, H]  data, or null
  void* dbias;    // [R]     data, or null
};

// What the GPU kernels are told of the targets, and what they find out about them: which tokens
// meet which nodes, without the host ever knowing. Forward leaves it for backward.
struct SoftmaxTargets {
  const int64_t* target;  // [N]
  int64_t ignored;        //      ignore_index
};

struct SoftmaxGpuPlan {
  int64_t N, nodes, depth;  //     depth: nodes on the longest path, or more
  int64_t path_rows;        //     rows on it, or more
  int32_t* order;           // [N] sorted place -> token; stable; ignored tokens last
  int32_t* rank;            // [N] the leaf of each, or V: ignored. From here on tokens are sorted.
  int32_t* path;            // [N, depth]  the nodes on each token's path, then -1 ...
  int32_t* branch;          // [N, depth]  ... and the branches taken there
  int32_t* prefix;          // [N, depth]  see softmax_block_rows
  int32_t* begin;           // [M] each node's tokens: first, ...
  int32_t* end;             // [M] ... and one past the last
  int32_t* column;          // [M] where its logits begin in a token's row of saved[N, path_rows]

  static int64_t size(int64_t N, int64_t nodes, int64_t depth) {
    return N * (2 + 3 * depth) + 3 * nodes;
  }
  static SoftmaxGpuPlan in(int32_t* at, int64_t N, int64_t nodes, int64_t depth,
                           int64_t path_rows) {
    const auto take = [&](int64_t n) { return (at += n) - n; };
    const int64_t D = N * depth, M = nodes;
    return {N,       nodes,   depth,   path_rows, take(N), take(N),
            take(D), take(D), take(D), take(M),   take(M), take(M)};
  }
};

// The weight rows whose gradients a GPU makes: all R, or, where these are sparse, some in order.
struct SoftmaxRows {
  int64_t count;
  const int64_t* index;  // [count], or null: all
};

// From all logits to the log-probabilities of all words, or, where there is a grad, to the gradient
// of the logits. All are wide.
struct LogSoftmax {
  int64_t N;
  DType dtype;  // of all: f64 or f32
  int threads;
  SoftmaxTree tree;
  const int32_t* word;  // [V]     of each leaf, or null: its own rank
  const void* logits;   // [N, R]; in_place: those of the root's rows
  const void* grad;     // [N, V], or null
  void* out;            // [N, V], or the gradient of the logits [N, R]
  // Logits below the root lie in out, where the log-probabilities of their words will be: words are
  // in the order of leaves, and all branches below the root are words.
  bool in_place = false;
};

// The k most probable words (best first), or a word drawn at random, without all logits.
struct SoftmaxSearch {
  SoftmaxSizes n;
  SoftmaxTree tree;
  const int32_t* word;  // [V]     of each leaf; null: on a GPU
  int64_t widest;       //         rows of the widest node, or more
  const void* input;    // [N, H]  data
  const void* weight;   // [R, H]  data
  const void* bias;     // [R]     data, or null
  const void* root;     // [N, rows of the root]  wide: its logits
  int64_t k;
  const double* uniform;  // [N] in [0, 1): draw a word; null: search
  int64_t budget;         // of a search: rows below the root that a token may cost
  double scale;           // of all logits: 1 / temperature
  void* log_prob;         // [N, k]  wide
  int64_t* words;         // [N, k]
  int64_t* rows;          // [N]     logits that were computed, or -1: the budget did not suffice
  int64_t scored;         // on a GPU: tokens whose words are all scored at a time, see below
};
constexpr int64_t kMostBest = 128;  // k of a GPU

// They return null when all is well, else what is wrong.
const char* cpu_softmax_forward(const SoftmaxForward&, const SoftmaxPlan&);
const char* cpu_softmax_backward(const SoftmaxBackward&, const SoftmaxPlan&);
const char* cpu_log_softmax(const LogSoftmax&);
const char* cpu_softmax_search(const SoftmaxSearch&);

// Likewise; the tree's tensors are on the device, and all is done when the stream is. saved of
// forward must be there.
size_t cuda_softmax_forward_workspace(int64_t N);
size_t cuda_softmax_backward_workspace(int64_t rows);
const char* cuda_softmax_forward(const SoftmaxForward&, const SoftmaxTree&, const SoftmaxTargets&,
                                 const SoftmaxGpuPlan&, void* workspace, void* stream);
const char* cuda_softmax_backward(const SoftmaxBackward&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                                  const SoftmaxRows&, void* workspace, void* stream);
size_t cuda_log_softmax_workspace(const LogSoftmax&);  // `word` may be null
const char* cuda_log_softmax(const LogSoftmax&, void* workspace, void* stream);
// All words are scored of tokens whose budget does not suffice, some at a time: `rows` is never -1.
size_t cuda_softmax_search_workspace(const SoftmaxSearch&);
const char* cuda_softmax_search(const SoftmaxSearch&, void* workspace, void* stream);

}  // namespace fusedrnn
