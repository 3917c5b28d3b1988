// The kernels that score all words, in float and double, and their launches.
#include <algorithm>

#include "softmax_whole.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

// Grid: branches, and words.
__global__ void __launch_bounds__(256) softmax_upward(SoftmaxTree tree, Upward up) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i == 0) up.parent[0] = -1;
  if (i < tree.words) up.word[tree.leaf_rank[i]] = static_cast<int32_t>(i);
  if (i >= tree.words + tree.nodes - 1) return;
  const int64_t node = first_above(tree.node_branches, tree.nodes + 1, i) - 1;
  const auto way = static_cast<int32_t>(i - tree.node_branches[node]);
  const int64_t child = tree.branch_node[i];
  int32_t* parent = child >= 0 ? up.parent + child : up.leaf_node + tree.branch_leaf[i];
  (child >= 0 ? up.way + child : up.leaf_way + tree.branch_leaf[i])[0] = way;
  *parent = static_cast<int32_t>(node);
}

// CTAs of a launch: eight an SM of the largest GPUs, fewer where the scratch memory of each, 2 M
// numbers, would add up to more than 2^26 of them.
static int64_t ctas_of(const LogSoftmax& a) {
  constexpr int64_t kMost = 1184, kLeast = 148, kScratch = int64_t(1) << 26;
  const int64_t fit = kScratch / (2 * a.tree.nodes);
  return std::min(a.N, std::max(kLeast, std::min(kMost, fit)));
}

template <class W>
struct Whole {
  Upward up;
  W* scratch;

  static Whole in(Pieces& pieces, const LogSoftmax& a) {
    const int64_t M = a.tree.nodes, V = a.tree.words;
    Whole whole = {};
    whole.up.parent = pieces.take<int32_t>(M);
    whole.up.way = pieces.take<int32_t>(M);
    whole.up.leaf_node = pieces.take<int32_t>(V);
    whole.up.leaf_way = pieces.take<int32_t>(V);
    whole.up.word = pieces.take<int32_t>(V);
    whole.scratch = pieces.take<W>(2 * M * ctas_of(a));
    return whole;
  }
};

template <class W>
static const char* log_softmax(const LogSoftmax& a, void* workspace, cudaStream_t stream) {
  Pieces pieces{static_cast<char*>(workspace)};
  const auto whole = Whole<W>::in(pieces, a);
  const int64_t branches = a.tree.words + a.tree.nodes - 1, ctas = ctas_of(a);
  const char* wrong = start(softmax_upward, ceil_div(branches, 256), 256, stream, a.tree, whole.up);
  if (wrong != nullptr) return wrong;
  const auto kernel = a.grad == nullptr ? softmax_whole_forward<W> : softmax_whole_backward<W>;
  return start(kernel, ctas, kNodes, stream, a, whole.up, ctas, whole.scratch);
}

}  // namespace cuda

size_t cuda_log_softmax_workspace(const LogSoftmax& a) {
  cuda::Pieces pieces{nullptr};
  if (a.dtype == DType::f64) {
    cuda::Whole<double>::in(pieces, a);
  } else {
    cuda::Whole<float>::in(pieces, a);
  }
  return pieces.used;
}

const char* cuda_log_softmax(const LogSoftmax& a, void* workspace, void* to) {
  if (a.N == 0) return nullptr;
  if (a.tree.words >= INT32_MAX || a.tree.rows > INT32_MAX)
    return "more than 2^31 - 1 words or weight rows";
  const auto stream = static_cast<cudaStream_t>(to);
  if (a.dtype == DType::f64) return cuda::log_softmax<double>(a, workspace, stream);
  return cuda::log_softmax<float>(a, workspace, stream);
}

}  // namespace fusedrnn
