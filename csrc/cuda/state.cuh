// What forward and backward share: a layer's directions in one launch, the order of its steps, rows
// that have ended, rows that are reset, and the workspace.
#pragma once
#include "../cell.h"
#include "../plan.h"
#include "../random.h"
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

// Options that change the launches of a step: of cells that have them, so that the kernels of
// others stay as they are. peeps: the gates see c, which stands beside h in what meets W_hh.
template <class Cell>
FRNN_HD bool peeps(const CellOptions& options) {
  return Cell::kStates == 2 && options.full;
}
template <class Cell>
FRNN_HD bool normed(const CellOptions& options) {
  return Cell::kNorms > 0 && options.layer_norm;
}
// Whether backward's product with W_hh is a launch of its own.
template <class Cell>
FRNN_HD bool arrives_apart(const CellOptions& options) {
  return peeps<Cell>(options) || normed<Cell>(options);
}

// What a kernel gets, as its __grid_constant__ parameter: blockIdx.y says which direction is its
// own.
template <class Args, class State>
struct Layer {
  Args p[2];
  State state[2];
};

// Steps are numbered in the order in which a direction takes them; this is where one lies in time.
__device__ inline int64_t time_of(const SequenceSizes& n, int64_t step) {
  return n.reverse ? n.T - 1 - step : step;
}

// Whether row b takes part in step t.
__device__ inline bool alive(const int64_t* lengths, int64_t b, int64_t t) {
  return lengths == nullptr || t < lengths[b];
}

// Whether row b begins a step with the reset state. `step` may be T: there is none after the last.
template <class Args>
__device__ inline bool is_reset(const Args& p, int64_t step, int64_t b) {
  if (p.reset == nullptr || step >= p.n.T) return false;
  const int64_t t = p.n.reverse ? p.n.T - step : step;  // the mask's row, between two steps
  return t < p.n.T && alive(p.lengths, b, t) && p.reset[t * p.n.B + b];
}

template <class Data>
__device__ inline Wide<Data> or_zero(const void* from, int64_t i) {
  return from == nullptr ? Wide<Data>(0) : widen(static_cast<const Data*>(from)[i]);
}

// 1 where unit `unit` of a row is kept, with probability 1 - chance; else 0.
template <class W>
__device__ inline W drawn(uint64_t key, Stream stream, int64_t unit, double chance) {
  return random_bits(key, stream, uint32_t(unit)) < bits_below(chance) ? W(1) : W(0);
}

// What (b, unit) has of its own at step t.
template <class Cell, class Data, class Args>
__device__ inline PerUnit<Wide<Data>> own_values(const Args& p, int64_t t, int64_t b,
                                                 int64_t unit) {
  using W = Wide<Data>;
  const CellOptions& options = p.n.options;
  PerUnit<W> own = {};
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k < Cell::weights(options)) own.weight[k] = or_zero<Data>(p.weight_unit, k * p.n.H + unit);
  }
  if (!options.random()) return own;
  own.keep_h = W(1 - options.zoneout_h), own.keep_c = W(1 - options.zoneout_c), own.drop = W(1);
  if (p.seed == nullptr) return own;
  const uint64_t key = row_key(p.seed[0], t, b);
  const double h = options.zoneout_h, c = options.zoneout_c, drop = options.dropout;
  if (h > 0) own.keep_h = drawn<W>(key, Stream::keep_h, unit, h);
  if (c > 0) own.keep_c = drawn<W>(key, Stream::keep_c, unit, c);
  if (drop > 0) own.drop = factor_of<W>(key, Stream::drop, unit, drop);
  return own;
}

// By which h of (b, unit) is multiplied where it meets W_hh, and its gradient where it comes back.
template <class W, class Args>
__device__ inline W meeting(const Args& p, int64_t b, int64_t unit) {
  const double chance = p.n.options.variational;
  if (chance <= 0 || p.seed == nullptr) return W(1);
  return factor_of<W>(sequence_key(p.seed[1], b), Stream::sequence, unit, chance);
}

// Hands out the workspace in pieces; with a null base it only counts.
struct Pieces {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
};

// The kernels that bring states in and out give each of their threads one element of h and one of
// the inner states.
constexpr int kCopyThreads = 256;
__device__ inline int64_t copy_index() {
  return static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
}

template <class Args, class State>
const char* launch_copy(void (*kernel)(Layer<Args, State>), const Layer<Args, State>& layer,
                        int directions, cudaStream_t stream) {
  const SequenceSizes& n = layer.p[0].n;
  const int64_t h = n.B * n.P, inner = layer.state[0].inner_size;
  return launch(kernel, ceil_div(h > inner ? h : inner, kCopyThreads), directions, kCopyThreads,
                stream, layer);
}

}  // namespace cuda
}  // namespace fusedrnn
