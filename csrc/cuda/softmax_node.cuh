// The logits of one node of the tree, and log p of its branches: all threads of a CTA together.
#pragma once
#include "softmax_best.cuh"
#include "softmax_product.cuh"
#include "softmax_reduce.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kLanes = 8;                            // threads of a row: 128 bytes at a time
constexpr int kRowGroups = kSearchThreads / kLanes;  // rows at a time ...
constexpr int kRowsEach = 4;                         // ... by so many
constexpr int kRowBatch = kRowGroups * kRowsEach;
constexpr int kHeld = 1024;  // logits of a node in shared memory
constexpr int kAlone = 32;   // branches that every thread takes itself

// What nodes are evaluated with.
template <class W>
struct NodeShared {
  W held[kHeld];
  W partial[kRowBatch][kLanes + 1];
  W reduce[kSearchThreads];
};

// The logits of a node, factor z, and what turns them into log p of its branches.
template <class W>
struct Evaluated {
  const W* z;
  int64_t rows;
  W factor, top = 0, log_sum = 0;

  __device__ W log_p(int64_t branch) const {
    const W v = factor * z[rows == 1 ? 0 : branch];
    if (rows == 1) return log_sigmoid(branch ? -v : v);
    return (v - top) - log_sum;
  }
};

// z[j] = scale (w_j . x + b_j) for `rows` rows from `row` on; all threads of the CTA.
template <class Data, class W>
__device__ inline void row_products(NodeShared<W>& s, const SoftmaxSearch& a, int64_t token,
                                    int64_t row, int64_t rows, W* z) {
  constexpr int kPack = Pack<Data>::kSize;
  const int64_t H = a.n.H;
  const auto* x = static_cast<const Data*>(a.input) + token * H;
  const auto* weight = static_cast<const Data*>(a.weight) + row * H;
  const auto* bias = static_cast<const Data*>(a.bias);
  const bool aligned = whole_packs<Data>(a.input, H) && whole_packs<Data>(a.weight, H);
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  for (int64_t first = 0; first < rows; first += kRowBatch) {
    W sum[kRowsEach] = {};
#pragma unroll 2
    for (int64_t h = lane * kPack; h < H; h += kLanes * kPack) {
      Pack<Data> of_x, of_w[kRowsEach];
      load_pack(of_x, x, h, H - h, aligned);
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
        const int64_t j = first + group + i * kRowGroups;
        load_pack(of_w[i], weight + j * H, h, j < rows ? H - h : 0, aligned);
      }
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
#pragma unroll
        for (int v = 0; v < kPack; ++v) sum[i] += widen(of_x.v[v]) * widen(of_w[i].v[v]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) s.partial[group + i * kRowGroups][lane] = sum[i];
    __syncthreads();
    const int64_t j = first + threadIdx.x;
    if (threadIdx.x < kRowBatch && j < rows) {
      W all = bias == nullptr ? W(0) : widen(bias[row + j]);
      for (int i = 0; i < kLanes; ++i) all += s.partial[threadIdx.x][i];
      z[j] = static_cast<W>(a.scale) * all;
    }
    __syncthreads();
  }
}

// All threads of the CTA, which may still read the logits of the node before: a barrier comes
// before they are overwritten. scratch: for the logits of nodes of more than kHeld rows.
template <class Data, class W>
__device__ inline Evaluated<W> evaluate(NodeShared<W>& s, const SoftmaxSearch& a, int64_t token,
                                        int64_t node, W* scratch) {
  using std::log;
  const int64_t row = a.tree.node_rows[node], rows = a.tree.node_rows[node + 1] - row;
  Evaluated<W> found = {static_cast<const W*>(a.root) + token * rows, rows,
                        static_cast<W>(a.scale)};
  if (node > 0) {
    W* z = rows <= kHeld ? s.held : scratch;
    row_products<Data>(s, a, token, row, rows, z);
    found.z = z;
    found.factor = 1;
  }
  if (rows == 1) return found;
  OnlineSum<W> sums;
  if (rows <= kAlone) {
    for (int64_t j = 0; j < rows; ++j) sums.add(found.factor * found.z[j]);
  } else {
    for (int64_t j = threadIdx.x; j < rows; j += kSearchThreads)
      sums.add(found.factor * found.z[j]);
    sums.combine(s.reduce);
  }
  found.top = sums.top;
  found.log_sum = log(sums.sum);
  return found;
}

}  // namespace cuda
}  // namespace fusedrnn
