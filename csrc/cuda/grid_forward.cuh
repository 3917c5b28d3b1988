// The grid kernel forward: whole sequences in one launch, W_hh at rest on all SMs.
//   u = W_hh h + b_hh,   (h, c) = cell(gx[t], u, h, c),   y[t] = h
//
// A group of CTAs has all of W_hh, each CTA the gate rows of its own units; it takes its batch rows
// a few at a time. Groups do not know of each other. Within a group y itself is what CTAs read of
// each other: see grid_device.cuh. All of a group's CTAs must run at once, which the launch sees
// to.
//
// (Cells with a second product: grid_twice.cuh.)
//
// A step: each warp takes h of its part of k from L2, as it comes, and multiplies; the warps' sums
// meet in shared memory; then each thread has some (row, unit) pairs, whose gates and states stay
// in its registers. Threads meet twice: before sums are written (all have read those of the step
// before) and before they are read.
#pragma once
#include <type_traits>

#include "grid_product.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_RESIDENT

template <class Cell, class Data>
struct GridForwardTwice;

// Which of the values saved is the second product's operand; -1: there is none.
template <class Cell>
constexpr int operand_in_saved() {
  if constexpr (Cell::kSecond > 0) return Cell::kOperand;
  return -1;
}

template <class Cell, class Data>
struct GridForward {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  using First = FirstGates<Cell>;
  static constexpr int kOperand = operand_in_saved<Cell>();
  static constexpr int kPairs = kGridPairs;
  static constexpr GridShape kShape = grid_shape(kGridCell<Cell>, false, sizeof(Data));
  using Brief = BriefOf<Data>;

  const SequenceForward& p;
  const GridWork& work;
  bool wide;          // see publish()
  int unit0;          // the CTA's first unit
  int row0;           // first batch row of those at hand ...
  int rows;           // ... and how many there are
  int place[kPairs];  // row and unit of a pair: row << 16 | unit
  // Of rows lane.g, lane.g + 8, ...: a bit each, whether the step at hand begins with the reset
  // state, and from kBegun on whether the row took part in the one before.
  static constexpr int kBegun = 16;
  static_assert(kGridRows / kClusterRows <= kBegun, "");
  uint32_t marks;
  uint32_t cut;  // a bit for each pair: whether the next step starts with the reset state
  Resident<Data, kShape.tiles, kShape.spans> weights;
  Data x[kPairs][G];
  Brief state[kPairs][S];

  __device__ GridForward(const SequenceForward& problem, const GridWork& share, int rank)
      : p(problem),
        work(share),
        weights(
            0, 1, share.tiles, share.spans,
            GridExchange::memory() + share.rest +
                my_warp() * share.tiles * max(0, share.spans - kShape.spans) * kClusterTileBytes,
            problem.n.tf32) {
    wide = rows_are_wide<Data>(p.y, p.n.H, p.n.y_row);
    unit0 = rank * share.units;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int at = threadIdx.x + i * share.warps * 32;
      place[i] = at / share.units << 16 | at % share.units;
    }
  }

  // Shared memory, which takes no registers so.
  template <class Part = First>
  __device__ SumsOfWarps sums() const {
    float* at = reinterpret_cast<float*>(GridExchange::memory());
    return {at, work.rows / kClusterRows, Part::tiles(work)};
  }
  __device__ int* lengths() const {  // [work.rows]
    return reinterpret_cast<int*>(GridExchange::memory() + work.lengths);
  }
  template <class Part>
  __device__ float* bias() const {  // [rows of A]
    float* at = reinterpret_cast<float*>(GridExchange::memory() + work.bias);
    return Part::kFrom == 0 ? at : at + work.tiles * kClusterTile;
  }

  __device__ int row_of(int i) const { return place[i] >> 16; }
  __device__ int unit_of(int i) const { return unit0 + (place[i] & 0xffff); }
  __device__ bool exists(int i) const { return row_of(i) < rows && unit_of(i) < p.n.H; }
  __device__ int64_t state_of(int i) const {
    return int64_t{row0 + row_of(i)} * p.n.H + unit_of(i);
  }
  __device__ int gate_of(int row) const { return row * work.inverse >> 20; }

  __device__ void load_weights() { load<First>(weights); }

  template <class Part, class Weights>
  __device__ void load(Weights& to_multiply) const {
    const Data* w = static_cast<const Data*>(p.weight_hh);
    const int H = static_cast<int>(p.n.H);
    const bool aligned = reinterpret_cast<uintptr_t>(w) % 16 == 0 && H % Pack<Data>::kSize == 0;
    const auto at = [&](int span) { return k_of(span); };
    to_multiply.load(at, [&](Pack<Data>& to, int k, int tile, int i) {
      const int row = tile * kClusterTile + i, gate = gate_of(row);
      const int unit = unit0 + row - gate * work.units;
      const bool there = gate < Part::kGates && unit < H;
      load_pack(to, w, int64_t{(Part::kFrom + gate) * H + unit} * H + k, there ? H - k : 0,
                aligned);
    });
    for (int row = threadIdx.x; row < Part::tiles(work) * kClusterTile; row += work.warps * 32) {
      const int gate = gate_of(row), unit = unit0 + row - gate * work.units;
      const bool there = p.bias_hh != nullptr && gate < Part::kGates && unit < H;
      const int at_b = (Part::kFrom + gate) * H + unit;
      bias<Part>()[row] = there ? widen(static_cast<const Data*>(p.bias_hh)[at_b]) : 0.0f;
    }
  }

  // This lane's first k in one of its warp's spans.
  __device__ int k_of(int span) const {
    return (my_warp() * work.spans + span) * kSpan<Data> + my_lane().q * Pack<Data>::kSize;
  }

  // The states before the first step of some rows.
  __device__ void begin(int first_row) {
    const SequenceSizes& n = p.n;
    row0 = first_row;
    rows = static_cast<int>(min(static_cast<int64_t>(work.rows), n.B - row0));
    GridExchange::sync_empty();
    for (int row = threadIdx.x; row < work.rows; row += work.warps * 32) {
      const int64_t b = row0 + row;
      lengths()[row] = static_cast<int>(row >= rows            ? 0
                                        : p.lengths == nullptr ? n.T
                                                               : min(n.T, p.lengths[b]));
    }
    GridExchange::sync_full();
    cut = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
#pragma unroll
      for (int s = 0; s < S; ++s) state[i][s] = Brief(0.0f);
#pragma unroll
      for (int g = 0; g < G; ++g) x[i][g] = Data(0.0f);
      if (!exists(i)) continue;
      const bool reset = is_reset(p, 0, row0 + row_of(i));
      restart(i, reset ? p.reset_h : p.h0, reset ? p.reset_c : p.c0);
    }
    request(0);
  }

  __device__ void restart(int i, const void* from_h, const void* from_c) {
    state[i][0] = Brief(or_zero<Data>(from_h, state_of(i)));
#pragma unroll
    for (int s = 1; s < S; ++s) {
      state[i][s] = Brief(or_zero<Data>(from_c, (s - 1) * p.n.B * p.n.H + state_of(i)));
    }
  }

  // Asks for what a step needs from memory beside h; x is not waited for until then.
  __device__ void request(int step) {
    const SequenceSizes& n = p.n;
    if (step >= n.T) return;
    cut = marks = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!exists(i)) continue;
      const int64_t row = time_of(n, step) * n.B + row0 + row_of(i);
      const Data* from = static_cast<const Data*>(p.gx) + row * G * n.H + unit_of(i);
#pragma unroll
      for (int g = 0; g < G; ++g) x[i][g] = from[g * n.H];
      const int length = lengths()[row_of(i)];
      cut |= uint32_t{reset_mark(n, p.reset, length, row0 + row_of(i), step + 1) != 0} << i;
      if (step + 1 < n.T && (place[i] & (kSector<Data> - 1)) == 0) {
        const int64_t later = time_of(n, step + 1) * n.B + row0 + row_of(i);
        GridExchange::expect(static_cast<const Data*>(p.y) + later * n.y_row + unit_of(i));
      }
    }
    for (int column = 0; column < sums().columns; ++column) {
      const int row = column * kClusterRows + my_lane().g;
      if (row >= rows) break;
      const int length = lengths()[row];
      const bool anew = reset_mark(n, p.reset, length, row0 + row, step) != 0;
      const bool begun = step > 0 && time_of(n, step - 1) < length;
      marks |= (uint32_t{anew} | uint32_t{begun} << kBegun) << column;
    }
  }

  // h of a row before a step. Who has ended is not asked for: what it had before is not needed.
  __device__ RowOfB<Data> row_before(int step, int column) const {
    const int row = column * kClusterRows + my_lane().g;
    if (row >= rows) return {nullptr, false};
    const int64_t b = row0 + row;
    const uint32_t mine = marks >> column;
    const bool anew = (mine & 1) != 0, begun = (mine >> kBegun & 1) != 0;
    if (!anew && begun) {
      const int64_t at = (time_of(p.n, step - 1) * p.n.B + b) * p.n.y_row;
      return {static_cast<const Data*>(p.y) + at, true};
    }
    const Data* from = static_cast<const Data*>(anew ? p.reset_h : p.h0);
    return {from == nullptr ? nullptr : from + b * p.n.H, false};
  }

  __device__ Eight eight_of(int span) const {
    const int64_t k = span < work.spans ? k_of(span) : p.n.H;
    return {k, static_cast<int>(p.n.H - k)};
  }

  __device__ void product(int step) const {
    const auto row = [&](int column) { return row_before(step, column); };
    const auto at = [&](int span) { return eight_of(span); };
    grid_product<kShape.sums>(weights, sums<First>(), wide, row, at);
  }

  __device__ void step(int step) {
    product(step);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i >= work.pairs) break;
      Brief saved[K];
      leave<First>(step, i, saved);
    }
    request(step + 1);
  }

  // The cell, and all that it leaves.
  template <class Part>
  __device__ void leave(int step, int i, Brief (&saved)[K]) {
    Brief out[S];
    advance<Part>(step, i, out, saved);
    const int64_t t = time_of(p.n, step), at_y = (t * p.n.B + row0 + row_of(i)) * p.n.y_row;
    const float h = exists(i) && t < lengths()[row_of(i)] ? out[0].v : 0.0f;
    publish<Data>(p.y, at_y + unit_of(i), h, exists(i), wide);
    if (exists(i)) store(step, i, out, saved);
  }

  // `state` then is what the next step starts with.
  template <class Part>
  __device__ void advance(int step, int i, Brief (&out)[S], Brief (&saved)[K]) {
    Brief of_x[G], u[G];
    if (!exists(i)) return;
    preactivations<Part>(i, of_x, u);
    Cell::forward(p.n.options.without_stepwise_only(), {}, of_x, u, state[i], out, saved);
    const bool live = time_of(p.n, step) < lengths()[row_of(i)];
#pragma unroll
    for (int s = 0; s < S; ++s) state[i][s] = out[s] = live ? out[s] : state[i][s];
    if (cut >> i & 1) restart(i, p.reset_h, p.reset_c);
  }

  // u of other gates are zero.
  template <class Part>
  __device__ void preactivations(int i, Brief (&of_x)[G], Brief (&u)[G]) const {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const bool mine = g >= Part::kFrom && g < Part::kFrom + Part::kGates;
      const int row_of_a = (g - Part::kFrom) * work.units + (place[i] & 0xffff);
      of_x[g] = Brief(widen(x[i][g]));
      u[g] =
          Brief(mine ? sums<Part>().total(work.warps, row_of_a, row_of(i)) + bias<Part>()[row_of_a]
                     : 0.0f);
    }
  }

  __device__ void store(int step, int i, const Brief (&out)[S], const Brief (&saved)[K]) const {
    const SequenceSizes& n = p.n;
    const int64_t t = time_of(n, step), row = t * n.B + row0 + row_of(i);
    const bool live = t < lengths()[row_of(i)];
#pragma unroll
    for (int s = 1; s < S; ++s) {
      if (p.cells == nullptr) break;
      float* cells = static_cast<float*>(p.cells) + t * (S - 1) * n.B * n.H;
      cells[(s - 1) * n.B * n.H + state_of(i)] = out[s].v;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (p.saved == nullptr) break;
      Data* to = static_cast<Data*>(p.saved) + (row * K + k) * n.H + unit_of(i);
      if (k != kOperand) round_to(*to, live ? saved[k].v : 0.0f);  // that has been published
    }
  }

  __device__ void end() {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!exists(i)) continue;
      round_to(static_cast<Data*>(p.hn)[state_of(i)], state[i][0].v);
#pragma unroll
      for (int s = 1; s < S; ++s) {
        round_to(static_cast<Data*>(p.cn)[(s - 1) * p.n.B * p.n.H + state_of(i)], state[i][s].v);
      }
    }
  }
};

#endif

template <class Cell, class Data>
__global__ void __launch_bounds__(kGridWarps * 32, 1)
    grid_forward(const __grid_constant__ GridCall<SequenceForward> call) {
#ifdef FRNN_RESIDENT
  const int group = blockIdx.x / call.work.size, groups = call.work.groups;
  using Cta =
      std::conditional_t<Cell::kSecond == 0, GridForward<Cell, Data>, GridForwardTwice<Cell, Data>>;
  Cta cta(call.directions[group / groups], call.work, blockIdx.x % call.work.size);
  if constexpr (Cell::kSecond > 0) cta.call = &call;
  cta.load_weights();
  for (int row = group % groups * call.work.rows; row < cta.p.n.B; row += groups * call.work.rows) {
    cta.begin(row);
    for (int i = 0; i < cta.p.n.T; ++i) cta.step(i);
    cta.end();
  }
#endif
}

}  // namespace cuda
}  // namespace fusedrnn
