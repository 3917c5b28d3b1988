// The hierarchical softmax: what ops hand to the kernels.
//
//   log p(word) = sum over the nodes on the word's path of log p(branch | node)
//   node of one row:    s = w.x + b,  log p(0) = log sigmoid(s),  log p(1) = log sigmoid(-s)
//   node of k >= 2:     z = W x + b,  log p(j) = z_j - log sum_i exp(z_i)
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
  const int64_t* order;  // [N]      sorted place -> token; stable
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

// saved[] holds, for every visit, d log p / d logit of its own node: [rows x tokens], cut into
// panels of neighbouring tokens; how wide is the kernel's affair.
struct SoftmaxForward {
  SoftmaxSizes n;
  const void* input;   // [N, H]  data
  const void* weight;  // [R, H]  data
  const void* bias;    // [R]     data, or null
  void* output;        // [N]     wide: log p(target)
  void* saved;         // wide, or null: nothing is kept for backward
};

struct SoftmaxBackward {
  SoftmaxSizes n;
  const void* grad;  // [N]     wide: gradient of output
  const void* input;
  const void* weight;
  const void* saved;
  bool sparse;    // whether dweight and dbias have only the rows of the plan's visits, in order
  void* dinput;   // [N, H]  data, or null: not needed
  void* dweight;  // [R, H]  data, or null
  void* dbias;    // [R]     data, or null
};

// They return null when all is well, else what is wrong.
const char* cpu_softmax_forward(const SoftmaxForward&, const SoftmaxPlan&);
const char* cpu_softmax_backward(const SoftmaxBackward&, const SoftmaxPlan&);

}  // namespace fusedrnn
