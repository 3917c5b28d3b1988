// Before the softmax kernels, on the device: which tokens meet which nodes.
//
// Tokens are sorted by leaf with a stable counting sort, digit by digit, so that the tokens of
// every node are neighbours; then each walks down its path. Nothing here depends on an order of
// threads, no size visits the host, and there are no atomics.
#include "softmax_launchers.h"
#include "softmax_rows.cuh"
#include "state.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kSortThreads = 256;  // tokens of one CTA, each counted against those before it
constexpr int kDigitBits = 9, kDigits = 1 << kDigitBits;  // two passes up to 262,143 words
constexpr int kScanThreads = 512;

// What a call sorts, and where: keys and tokens, of the pass before and of this one.
struct SortPass {
  int32_t N, ctas, shift;
  const int32_t* key;
  const int32_t* token;  // null: they are in order
  int32_t* counts;       // [kDigits, ctas], then their sums over all that come before
  int32_t* key_out;
  int32_t* token_out;
};

#ifdef FUSEDRNN_CUDA_HOST
namespace host {
inline bool bad_target = false;
}
#endif

// A target that is no word ends the launch, as torch's device-side assertions do.
__device__ inline void assert_word(bool fits) {
#ifdef FUSEDRNN_CUDA_HOST
  if (!fits) host::bad_target = true;
#elif defined(__CUDA_ARCH__)
  if (!fits) __assert_fail("target is in 0..V-1 or ignore_index", __FILE__, __LINE__, "fusedrnn");
#endif
}

// The leaf of each target, V of ignored ones; and no node has tokens yet.
__global__ void __launch_bounds__(kSortThreads)
    softmax_keys(SoftmaxTree tree, SoftmaxTargets targets, SoftmaxGpuPlan plan, int32_t* key) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (i < plan.nodes) plan.begin[i] = plan.end[i] = plan.column[i] = 0;
  if (i >= plan.N) return;
  const int64_t word = targets.target[i];
  const bool ignored = word == targets.ignored, fits = word >= 0 && word < tree.words;
  assert_word(ignored || fits);
  key[i] = static_cast<int32_t>(ignored || !fits ? tree.words : tree.leaf_rank[word]);
}

// This CTA's digits, and for its own token: how many before it in the CTA have the same one, and
// whether none after it has.
struct SortTile {
  int32_t digit[kSortThreads], counts[kDigits];
};
struct Placed {
  int64_t i;
  int32_t digit, before;
  bool last;
};
__device__ inline Placed place_token(SortTile& s, const SortPass& p) {
  const int me = threadIdx.x;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSortThreads + me;
  s.digit[me] = i < p.N ? p.key[i] >> p.shift & (kDigits - 1) : -1;
  __syncthreads();
  Placed mine = {i, s.digit[me], 0, true};
  for (int j = 0; j < kSortThreads; ++j) {
    const bool same = s.digit[j] == mine.digit;
    if (same && j < me) ++mine.before;
    if (same && j > me) mine.last = false;
  }
  return mine;
}

__global__ void __launch_bounds__(kSortThreads) softmax_sort_count(SortPass p) {
  auto& s = shared_memory<SortTile>();
  for (int d = threadIdx.x; d < kDigits; d += kSortThreads) s.counts[d] = 0;
  const Placed mine = place_token(s, p);
  if (mine.digit >= 0 && mine.last) s.counts[mine.digit] = mine.before + 1;
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += kSortThreads)
    p.counts[static_cast<int64_t>(d) * p.ctas + blockIdx.x] = s.counts[d];
}

// values[i] becomes the sum of those before it. One CTA.
__global__ void __launch_bounds__(kScanThreads) softmax_scan(int64_t n, int32_t* values) {
  struct Shared {
    int32_t sum[kScanThreads];
  };
  auto& s = shared_memory<Shared>();
  const int64_t share = (n + kScanThreads - 1) / kScanThreads, first = threadIdx.x * share;
  const int64_t last = first + share < n ? first + share : n;
  int32_t mine = 0;
  for (int64_t i = first; i < last; ++i) mine += values[i];
  s.sum[threadIdx.x] = mine;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {
    const int from = static_cast<int>(threadIdx.x) - step;
    const int32_t before = from >= 0 ? s.sum[from] : 0;
    __syncthreads();
    s.sum[threadIdx.x] += before;
    __syncthreads();
  }
  int32_t sum = s.sum[threadIdx.x] - mine;
  for (int64_t i = first; i < last; ++i) {
    const int32_t value = values[i];
    values[i] = sum;
    sum += value;
  }
}

__global__ void __launch_bounds__(kSortThreads) softmax_sort_scatter(SortPass p) {
  const Placed mine = place_token(shared_memory<SortTile>(), p);
  if (mine.digit < 0) return;
  const int32_t to = p.counts[static_cast<int64_t>(mine.digit) * p.ctas + blockIdx.x] + mine.before;
  p.key_out[to] = p.key[mine.i];
  p.token_out[to] = p.token == nullptr ? static_cast<int32_t>(mine.i) : p.token[mine.i];
}

// Each token down its path. What a node's slice of tokens is, its first and its last token say.
__global__ void __launch_bounds__(128) softmax_walk(SoftmaxTree tree, SoftmaxGpuPlan p) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (t >= p.N) return;
  const int64_t rank = p.rank[t], before = t > 0 ? p.rank[t - 1] : -1;
  const int64_t after = t + 1 < p.N ? p.rank[t + 1] : tree.words;
  int64_t node = rank < tree.words ? 0 : -1, low = 0, high = tree.words, column = 0;
  for (int64_t level = 0; level < p.depth; ++level) {
    p.path[t * p.depth + level] = static_cast<int32_t>(node);
    if (node < 0) continue;
    if (before < low) {
      p.begin[node] = static_cast<int32_t>(t);
      p.column[node] = static_cast<int32_t>(column);
    }
    if (after >= high) p.end[node] = static_cast<int32_t>(t + 1);
    column += tree.node_rows[node + 1] - tree.node_rows[node];
    const int64_t first = tree.node_branches[node], count = tree.node_branches[node + 1] - first;
    const int64_t next = first_above(tree.branch_leaf + first, count, rank);
    p.branch[t * p.depth + level] = static_cast<int32_t>(next - 1);
    low = tree.branch_leaf[first + next - 1];
    if (next < count) high = tree.branch_leaf[first + next];
    node = tree.branch_node[first + next - 1];
  }
}

// For each block of kBlock tokens the rows that they meet, each once: running sums, token by token
// and level by level, of the rows of nodes that no earlier token of the block passes through.
__global__ void __launch_bounds__(kBlock) softmax_block_rows(SoftmaxTree tree, SoftmaxGpuPlan p) {
  struct Shared {
    int32_t rows[kBlock];
  };
  auto& s = shared_memory<Shared>();
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int32_t* path = p.path + t * p.depth;
  const auto rows_of = [&](int64_t level) {
    const int32_t node = path[level];
    if (node < 0 || (threadIdx.x > 0 && path[level - p.depth] == node)) return 0;
    return static_cast<int32_t>(tree.node_rows[node + 1] - tree.node_rows[node]);
  };
  int32_t mine = 0;
  if (t < p.N)
    for (int64_t level = 0; level < p.depth; ++level) mine += rows_of(level);
  s.rows[threadIdx.x] = mine;
  __syncthreads();
  if (t >= p.N) return;
  int32_t sum = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) sum += s.rows[i];
  for (int64_t level = 0; level < p.depth; ++level)
    p.prefix[t * p.depth + level] = sum += rows_of(level);
}

// Of weight rows: where their logits are, and which tokens have any. Grid: rows.
__global__ void __launch_bounds__(256)
    softmax_met_rows(SoftmaxRows rows, SoftmaxTree tree, SoftmaxGpuPlan plan, MetRow* met) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= rows.count) return;
  const int64_t row = rows.index == nullptr ? i : rows.index[i];
  const int64_t node = first_above(tree.node_rows, plan.nodes + 1, row) - 1;
  const auto column = static_cast<int32_t>(plan.column[node] + row - tree.node_rows[node]);
  met[i] = {static_cast<int32_t>(row), column, plan.begin[node], plan.end[node]};
}

// Scratch memory of the sort.
struct SortBuffers {
  int32_t *counts, *key[2], *token[2];

  static SortBuffers in(Pieces& pieces, int64_t N) {
    SortBuffers b = {};
    b.counts = pieces.take<int32_t>(kDigits * ceil_div(N, kSortThreads));
    for (int i = 0; i < 2; ++i) b.key[i] = pieces.take<int32_t>(N);
    for (int i = 0; i < 2; ++i) b.token[i] = pieces.take<int32_t>(N);
    return b;
  }
};

#define FRNN_TRY(call)                            \
  do {                                            \
    if (const char* wrong = (call)) return wrong; \
  } while (false)

const char* plan_softmax(const SoftmaxTree& tree, const SoftmaxTargets& targets,
                         const SoftmaxGpuPlan& plan, void* workspace, void* to) {
  const auto stream = static_cast<cudaStream_t>(to);
  Pieces pieces{static_cast<char*>(workspace)};
  const auto buffers = SortBuffers::in(pieces, plan.N);
  const int64_t all = plan.N > plan.nodes ? plan.N : plan.nodes;
  FRNN_TRY(start(softmax_keys, ceil_div(all, kSortThreads), kSortThreads, stream, tree, targets,
                 plan, buffers.key[0]));
  if (plan.N == 0) return nullptr;
  const int64_t ctas = ceil_div(plan.N, kSortThreads);
  SortPass pass = {static_cast<int32_t>(plan.N),
                   static_cast<int32_t>(ctas),
                   0,
                   buffers.key[0],
                   nullptr,
                   buffers.counts,
                   nullptr,
                   nullptr};
  for (int turn = 1;; turn ^= 1) {
    const bool last = tree.words >> pass.shift < kDigits;
    pass.key_out = last ? plan.rank : buffers.key[turn];
    pass.token_out = last ? plan.order : buffers.token[turn];
    FRNN_TRY(start(softmax_sort_count, ctas, kSortThreads, stream, pass));
    FRNN_TRY(start(softmax_scan, 1, kScanThreads, stream, kDigits * ctas, pass.counts));
    FRNN_TRY(start(softmax_sort_scatter, ctas, kSortThreads, stream, pass));
    if (last) break;
    pass.key = pass.key_out;
    pass.token = pass.token_out;
    pass.shift += kDigitBits;
  }
  FRNN_TRY(start(softmax_walk, ceil_div(plan.N, 128), 128, stream, tree, plan));
  return start(softmax_block_rows, ceil_div(plan.N, kBlock), kBlock, stream, tree, plan);
}

#undef FRNN_TRY

size_t plan_softmax_bytes(int64_t N) {
  Pieces pieces{nullptr};
  SortBuffers::in(pieces, N);
  return pieces.used;
}

const char* meet_rows(const SoftmaxRows& rows, const SoftmaxTree& tree, const SoftmaxGpuPlan& plan,
                      void* workspace, void* to) {
  if (rows.count == 0) return nullptr;
  return start(softmax_met_rows, ceil_div(rows.count, 256), 256, static_cast<cudaStream_t>(to),
               rows, tree, plan, static_cast<MetRow*>(workspace));
}

size_t meet_rows_bytes(int64_t rows) { return rows * sizeof(MetRow); }

}  // namespace cuda
}  // namespace fusedrnn
