// The softmax backward. With G = d objective / dz as forward left it and d the gradient of each
// token's objective:
//   dx_t = d_t sum_r G[t, r] w_r         CTAs: blocks of tokens x columns; all rows they meet
//   dw_r = sum_t G[t, r] d_t x_t         CTAs: blocks of rows x columns; all tokens that meet them
//   db_r = sum_t G[t, r] d_t
// Each element is written once, by one CTA; sums run in the order of rows met, and of tokens. Rows
// of dw are all, or those given: met[] holds them.
#pragma once
#include "softmax_product.cuh"

namespace fusedrnn {
namespace cuda {

// Grid: blocks of tokens x columns.
template <class Data>
__global__ void __launch_bounds__(kThreads, kProductCtas<Data>)
    softmax_input_grad(SoftmaxBackward a, SoftmaxTree tree, SoftmaxGpuPlan plan) {
  using W = Wide<Data>;
  using Product = SoftmaxProduct<Data, false>;
  using Values = ValueCourier<Data, Product::kDepth, false>;
  struct Shared {
    typename Product::Shared product;
    MetRow met[Product::kDepth];
  };
  auto& s = shared_memory<Shared>();
  const int64_t H = a.n.H, across = tiles_of(H, kColumns);
  const int64_t column = blockIdx.x % across * kColumns;
  const BlockRows rows(tree, plan, blockIdx.x / across);
  const auto* weight = static_cast<const Data*>(a.weight);
  const auto* saved = static_cast<const W*>(a.saved);
  const bool aligned = whole_packs<Data>(weight, H);
  const auto prepare = [&](int64_t step) { rows.find(s.met, step * Product::kDepth); };
  const auto fetch = [&](int64_t, auto& values, auto& weights) {
    values.fetch([&](int m, int k) {
      const int64_t t = rows.first + m;
      return s.met[k].meets(t) ? saved[t * plan.path_rows + s.met[k].column] : W(0);
    });
    const auto of_row = [&](int k) {
      return s.met[k].row < 0 ? nullptr : weight + s.met[k].row * H + column;
    };
    weights.fetch(of_row, H - column, aligned);
  };
  Product::template run<Values>(s.product, tiles_of(rows.rows(), Product::kDepth), prepare, fetch);
  Product::each(s.product, [&](int m, int n, W sum) {
    const int64_t t = rows.first + m, h = column + n;
    if (t >= plan.N || h >= H) return;
    const int64_t token = plan.order[t];
    const bool ignored = plan.rank[t] >= tree.words;
    const W grad = static_cast<const W*>(a.grad)[token];
    round_to(static_cast<Data*>(a.dinput)[token * H + h], ignored ? W(0) : grad * sum);
  });
}

// The rows of one CTA, and the tokens that meet any of them: [begin, end).
struct RowBlock {
  MetRow met[kBlock];
  int32_t begin, end;

  // All threads of the CTA; the caller synchronises after it. begin is a multiple of `step`: how
  // tokens are grouped in sums, and so the sums' bits, does not depend on what other rows there
  // are.
  __device__ void load(const MetRow* from, int64_t first, int64_t R, int step) {
    if (threadIdx.x < kBlock) {
      const int64_t row = first + threadIdx.x;
      met[threadIdx.x] = {-1, 0, 0, 0};
      if (row < R) met[threadIdx.x] = from[row];
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    begin = end = 0;
    for (const MetRow& one : met) {
      if (one.begin == one.end) continue;
      if (begin == end || one.begin < begin) begin = one.begin;
      if (one.end > end) end = one.end;
    }
    begin = begin / step * step;
  }
};

// Grid: blocks of rows x columns.
template <class Data>
__global__ void __launch_bounds__(kThreads, kProductCtas<Data>)
    softmax_weight_grad(SoftmaxBackward a, SoftmaxGpuPlan plan, const MetRow* met, int64_t R) {
  using W = Wide<Data>;
  using Product = SoftmaxProduct<Data, false>;
  using Values = ValueCourier<Data, Product::kDepth, true>;
  struct Shared {
    typename Product::Shared product;
    RowBlock rows;
    int64_t token[Product::kDepth];
    W grad[Product::kDepth];
  };
  auto& s = shared_memory<Shared>();
  const int64_t H = a.n.H, across = tiles_of(H, kColumns);
  const int64_t column = blockIdx.x % across * kColumns, first = blockIdx.x / across * kBlock;
  s.rows.load(met, first, R, Product::kDepth);
  __syncthreads();
  const auto* x = static_cast<const Data*>(a.input);
  const auto* saved = static_cast<const W*>(a.saved);
  const bool aligned = whole_packs<Data>(x, H);
  const auto prepare = [&](int64_t step) {
    const int64_t t = s.rows.begin + step * Product::kDepth + threadIdx.x;
    if (threadIdx.x >= Product::kDepth) return;
    s.token[threadIdx.x] = t < s.rows.end ? plan.order[t] : -1;
    s.grad[threadIdx.x] = t < s.rows.end ? static_cast<const W*>(a.grad)[plan.order[t]] : W(0);
  };
  const auto fetch = [&](int64_t step, auto& values, auto& tokens) {
    values.fetch([&](int m, int k) {
      const MetRow& row = s.rows.met[m];
      const int64_t t = s.rows.begin + step * Product::kDepth + k;
      return row.meets(t) ? saved[t * plan.path_rows + row.column] * s.grad[k] : W(0);
    });
    const auto of_token = [&](int k) {
      return s.token[k] < 0 ? nullptr : x + s.token[k] * H + column;
    };
    tokens.fetch(of_token, H - column, aligned);
  };
  const int64_t steps = tiles_of(s.rows.end - s.rows.begin, Product::kDepth);
  Product::template run<Values>(s.product, steps, prepare, fetch);
  Product::each(s.product, [&](int m, int n, W sum) {
    if (first + m >= R || column + n >= H) return;
    round_to(static_cast<Data*>(a.dweight)[(first + m) * H + column + n], sum);
  });
}

constexpr int kBiasShares = 16;  // threads that share a row's sum: torch sums as exactly

// Grid: blocks of rows.
template <class Data>
__global__ void __launch_bounds__(kBlock* kBiasShares)
    softmax_bias_grad(SoftmaxBackward a, SoftmaxGpuPlan plan, const MetRow* met, int64_t R) {
  using W = Wide<Data>;
  struct Shared {
    W sum[kBiasShares][kBlock];
  };
  auto& s = shared_memory<Shared>();
  const int m = threadIdx.x % kBlock, share = threadIdx.x / kBlock;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kBlock + m;
  W sum = 0;
  if (row < R) {
    const MetRow mine = met[row];
    for (int64_t t = mine.begin + share; t < mine.end; t += kBiasShares) {
      sum += static_cast<const W*>(a.saved)[t * plan.path_rows + mine.column] *
             static_cast<const W*>(a.grad)[plan.order[t]];
    }
  }
  s.sum[share][m] = sum;
  for (int n = kBiasShares / 2; n > 0; n /= 2) {
    __syncthreads();
    if (share < n) s.sum[share][m] += s.sum[share + n][m];
  }
  if (share == 0 && row < R) round_to(static_cast<Data*>(a.dbias)[row], s.sum[0][m]);
}

}  // namespace cuda
}  // namespace fusedrnn
