// The softmax forward: all logits on the tokens' paths, then one CTA a token goes down its path.
//   z = W x + b,   lse = M + log sum_j exp(z_j - M),   log p = (z_target - M) - log sum
// With label smoothing e and z-loss c, for k rows (softmax.h has the objective):
//   d objective / dz_j = (1 - e) 1[j = target] + e / k - p_j (1 + 2 c lse)
#pragma once
#include "softmax_product.cuh"
#include "softmax_reduce.cuh"

namespace fusedrnn {
namespace cuda {

// CTAs that share the rows which one block of tokens meets: most blocks meet some hundred, those of
// rare words thousands.
constexpr int kRowShares = 32;

// saved[t, column] = W x + b. Grid: blocks of tokens x shares of the rows they meet.
template <class Data>
__global__ void __launch_bounds__(kThreads, kProductCtas<Data>)
    softmax_logits(SoftmaxForward a, SoftmaxTree tree, SoftmaxGpuPlan plan, int shares) {
  using W = Wide<Data>;
  using Product = SoftmaxProduct<Data, true>;
  struct Shared {
    typename Product::Shared product;
    MetRow met[kColumns];
    int64_t token[kBlock];
  };
  auto& s = shared_memory<Shared>();
  const int64_t H = a.n.H, share = blockIdx.x % shares;
  const BlockRows rows(tree, plan, blockIdx.x / shares);
  const auto* x = static_cast<const Data*>(a.input);
  const auto* weight = static_cast<const Data*>(a.weight);
  const auto* bias = static_cast<const Data*>(a.bias);
  const bool aligned = whole_packs<Data>(x, H) && whole_packs<Data>(weight, H);
  for (int64_t k = share * kColumns; k < rows.rows(); k += shares * kColumns) {
    const auto prepare = [&](int64_t step) {
      if (step > 0) return;
      rows.find(s.met, k);
      const int64_t t = rows.first + threadIdx.x;
      if (threadIdx.x < kBlock) s.token[threadIdx.x] = t < plan.N ? plan.order[t] : -1;
    };
    const auto fetch = [&](int64_t step, auto& tokens, auto& weights) {
      const int64_t h = step * Product::kDepth;
      const auto of_token = [&](int m) {
        return s.token[m] < 0 ? nullptr : x + s.token[m] * H + h;
      };
      const auto of_row = [&](int n) {
        return s.met[n].row < 0 ? nullptr : weight + s.met[n].row * H + h;
      };
      tokens.fetch(of_token, H - h, aligned);
      weights.fetch(of_row, H - h, aligned);
    };
    using Tokens = GatherCourier<Data, kBlock, Product::kDepth>;
    Product::template run<Tokens>(s.product, tiles_of(H, Product::kDepth), prepare, fetch);
    Product::each(s.product, [&](int m, int n, W sum) {
      const MetRow& met = s.met[n];
      const int64_t t = rows.first + m;
      if (!met.meets(t)) return;
      const W b = bias == nullptr ? W(0) : widen(bias[met.row]);
      static_cast<W*>(a.saved)[t * plan.path_rows + met.column] = sum + b;
    });
  }
}

constexpr int kPathThreads = kReduceThreads;

template <class W>
struct PathShared {
  W reduce[kPathThreads];
  W log_p[kPathThreads], extra[kPathThreads];
  int32_t rows[kPathThreads];
};

// The coefficients of the objective.
template <class W>
struct Training {
  W smoothing, z_loss;
};

// z of a node of one row becomes its derivative; +s for branch 0 and -s for branch 1:
// log sigmoid(v) = min(v, 0) - log1p(exp(-|v|)).
template <class W>
__device__ inline void sigmoid_node(W& z, int branch, Training<W> t, W& log_p, W& extra) {
  using std::exp;
  using std::log1p;
  const W sign = branch ? W(-1) : W(1), v = sign * z, power = exp(v < 0 ? v : -v);
  log_p = (v < 0 ? v : W(0)) - log1p(power);
  extra = -t.smoothing / 2 * v;  // the mean of log sigmoid(v) and of (-v) is the first less v / 2
  z = sign * ((v < 0 ? W(1) : power) / (W(1) + power) - t.smoothing / 2);
}

// The k logits of a node become its derivatives; all threads of the CTA.
template <class W>
__device__ inline void softmax_node(W* z, int k, int branch, Training<W> t,
                                    W (&buffer)[kPathThreads], W& log_p, W& extra) {
  using std::exp;
  using std::log;
  OnlineSum<W> sums;
  for (int j = threadIdx.x; j < k; j += kPathThreads) sums.add(z[j]);
  sums.combine(buffer);
  const W M = sums.top, log_S = log(sums.sum), lse = M + log_S;
  log_p = (z[branch] - M) - log_S;  // z - (M + log S) would round log S away at large logits
  const W scale = (1 + 2 * t.z_loss * lse) / sums.sum, share = t.smoothing / k;
  W mean = 0;
  __syncthreads();  // z[branch] has been read
  for (int j = threadIdx.x; j < k; j += kPathThreads) {
    const W v = z[j] - M;
    mean += v;
    z[j] = (j == branch ? 1 - t.smoothing : W(0)) + share - exp(v) * scale;
  }
  extra = -t.z_loss * lse * lse;
  if (t.smoothing == 0) return;
  mean = reduced(buffer, mean, [](W a, W b) { return a + b; }) / k;
  extra += t.smoothing * ((mean - log_S) - log_p);
}

// log p and the objective of one sorted token, its logits into derivatives. Grid: tokens.
template <class Data>
__global__ void __launch_bounds__(kPathThreads, 6)
    softmax_paths(SoftmaxForward a, SoftmaxTree tree, SoftmaxGpuPlan plan) {
  using W = Wide<Data>;
  auto& s = shared_memory<PathShared<W>>();
  const int64_t t = blockIdx.x, pairs = t * plan.depth;
  const Training<W> training = {static_cast<W>(a.smoothing), static_cast<W>(a.z_loss)};
  W* saved = static_cast<W*>(a.saved) + t * plan.path_rows;
  W log_p = 0, extra = 0;  // of thread 0: the token's
  for (int64_t first = 0; first < plan.depth; first += kPathThreads) {
    const int64_t left = plan.depth - first;
    const int levels = static_cast<int>(left < kPathThreads ? left : kPathThreads);
    const int i = threadIdx.x;
    const int32_t mine = i < levels ? plan.path[pairs + first + i] : -1;
    __syncthreads();
    s.rows[i] =
        mine < 0 ? 0 : static_cast<int32_t>(tree.node_rows[mine + 1] - tree.node_rows[mine]);
    s.log_p[i] = s.extra[i] = 0;
    if (s.rows[i] == 1) {
      const int32_t branch = plan.branch[pairs + first + i];
      sigmoid_node(saved[plan.column[mine]], branch, training, s.log_p[i], s.extra[i]);
    }
    __syncthreads();
    for (int level = 0; level < levels && s.rows[level] > 0; ++level) {
      if (s.rows[level] == 1) continue;
      const int64_t at = pairs + first + level;
      W node_log_p, node_extra;
      softmax_node(saved + plan.column[plan.path[at]], s.rows[level], plan.branch[at], training,
                   s.reduce, node_log_p, node_extra);
      if (i == 0) s.log_p[level] = node_log_p, s.extra[level] = node_extra;
    }
    if (i > 0) continue;
    for (int level = 0; level < levels; ++level) {
      log_p += s.log_p[level];
      extra += s.log_p[level] + s.extra[level];
    }
  }
  if (threadIdx.x > 0) return;
  static_cast<W*>(a.output)[plan.order[t]] = log_p;
  if (a.objective != nullptr) static_cast<W*>(a.objective)[plan.order[t]] = extra;
}

}  // namespace cuda
}  // namespace fusedrnn
