// The kernels that score all words, in float and double, and their launches; and those of a search,
// after which all words are scored of the tokens that it has marked.
#include <algorithm>

#include "softmax_launchers.h"
#include "softmax_marked.cuh"
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

static const char* look_up(const SoftmaxTree& tree, const Upward& up, cudaStream_t stream) {
  const int64_t branches = tree.words + tree.nodes - 1;
  return start(softmax_upward, ceil_div(branches, 256), 256, stream, tree, up);
}

template <class W>
static const char* log_softmax(const LogSoftmax& a, void* workspace, cudaStream_t stream) {
  Pieces pieces{static_cast<char*>(workspace)};
  const auto whole = Whole<W>::in(pieces, a);
  const int64_t ctas = ctas_of(a);
  if (const char* wrong = look_up(a.tree, whole.up, stream)) return wrong;
  if (a.grad != nullptr)
    return start(softmax_whole_backward<W>, ctas, kNodes, stream, a, whole.up, ctas, whole.scratch);
  return start(softmax_whole_forward<W>, ctas, kNodes, stream, a, whole.up, SoftmaxMarked{}, ctas,
               whole.scratch);
}

// Scratch memory of a search: the logits of one node for each of its CTAs; and of tokens whose
// words are all scored, some at a time, what that takes.
template <class W>
struct Searching {
  int64_t ctas, scored;
  W *scratch, *logits, *log_prob;
  int32_t* marked;
  LogSoftmax every;
  Whole<W> whole;

  static Searching in(Pieces& pieces, const SoftmaxSearch& a) {
    constexpr int64_t kMost = 592, kLeast = 148;  // CTAs: four an SM of the largest GPUs
    constexpr int64_t kScratch = int64_t(1) << 26;
    const int64_t N = a.n.N;
    Searching s = {};
    s.ctas = std::min(N, std::max(kLeast, std::min(kMost, kScratch / a.widest)));
    s.scratch = pieces.take<W>(s.ctas * a.widest);
    const bool all_found = a.uniform != nullptr || a.tree.nodes == 1;
    s.scored = all_found ? 0 : std::min(N, a.scored);
    s.logits = pieces.take<W>(s.scored * a.tree.rows);
    s.log_prob = pieces.take<W>(s.scored * a.tree.words);
    s.marked = pieces.take<int32_t>(all_found ? 0 : 1 + N);
    const DType dtype = a.n.dtype == DType::f64 ? DType::f64 : DType::f32;
    s.every = {s.scored, dtype, 1, a.tree, nullptr, s.logits, nullptr, s.log_prob};
    s.whole = Whole<W>::in(pieces, s.every);
    return s;
  }
};

template <class W>
static const char* search(const SoftmaxSearch& a, const SoftmaxSearchLaunch& launch,
                          void* workspace, cudaStream_t stream) {
  Pieces pieces{static_cast<char*>(workspace)};
  const auto s = Searching<W>::in(pieces, a);
  const Upward& up = s.whole.up;
  const char* wrong = look_up(a.tree, up, stream);
  if (wrong == nullptr) wrong = launch.search(a, up.word, s.ctas, s.scratch, stream);
  if (wrong != nullptr || s.scored == 0) return wrong;
  wrong = start(softmax_mark, 1, kMarkThreads, stream, a.n.N, a.rows, s.marked);
  for (int64_t first = 0; first < a.n.N && wrong == nullptr; first += s.scored) {
    const SoftmaxMarked marked = {s.marked, first, s.scored};
    const int64_t ctas = ctas_of(s.every);
    wrong = launch.marked_logits(a, marked, s.logits, stream);
    if (wrong == nullptr)
      wrong = start(softmax_whole_forward<W>, ctas, kNodes, stream, s.every, up, marked, ctas,
                    s.whole.scratch);
    if (wrong == nullptr)
      wrong =
          start(softmax_marked_best<W>, s.scored, kSearchThreads, stream, a, marked, s.log_prob);
  }
  return wrong;
}

const char* search_softmax(const SoftmaxSearch& a, const SoftmaxSearchLaunch& launch,
                           void* workspace, void* to) {
  const auto stream = static_cast<cudaStream_t>(to);
  if (a.n.dtype == DType::f64) return search<double>(a, launch, workspace, stream);
  return search<float>(a, launch, workspace, stream);
}

size_t search_softmax_bytes(const SoftmaxSearch& a) {
  Pieces pieces{nullptr};
  if (a.n.dtype == DType::f64) {
    Searching<double>::in(pieces, a);
  } else {
    Searching<float>::in(pieces, a);
  }
  return pieces.used;
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
