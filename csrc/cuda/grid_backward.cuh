// The grid kernel backward: from the last step to the first, in one launch, W_hh at rest.
//   dh = dy[t] + (what the following step left) + sum over gates g of d_g(following step) W_hh[g]
//   (d, ds) = cell's backward;   grads[t] = d
//
// Groups, CTAs, warps and meetings are those of grid_forward.cuh. A CTA has the columns of W_hh
// that belong to its own units, and takes the gradients of all gates from L2: grads itself is what
// CTAs read of each other. The other way round, parts of dh for all units from the gate rows of its
// own, a CTA would write and read rows * H floats in each step, where it now reads G rows * H of 16
// bits: for four gates as many bytes, for fewer less, and no buffer beside the results.
#pragma once
#include <type_traits>

#include "grid_product.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_RESIDENT

template <class Cell, class Data>
struct GridBackwardTwice;

template <class Cell, class Data>
struct GridBackward {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, D = Cell::kGrads;
  using First = FirstGates<Cell>;
  static constexpr int kPairs = kGridPairs, kPack = Pack<Data>::kSize;
  static constexpr GridShape kShape = grid_shape(kGridCell<Cell>, true, sizeof(Data));
  using Brief = BriefOf<Data>;

  const SequenceBackward& p;
  const GridWork& work;
  bool wide;          // see publish()
  int unit0;          // the CTA's first unit
  int row0;           // first batch row of those at hand ...
  int rows;           // ... and how many there are
  int place[kPairs];  // row and unit of a pair: row << 16 | unit
  Resident<Data, kShape.tiles, kShape.spans> weights;
  Recalled<Cell, Data> known[kPairs];
  float carry[kPairs][S];  // gradients of the states

  __device__ GridBackward(const SequenceBackward& problem, const GridWork& share, int rank)
      : p(problem),
        work(share),
        weights(
            0, 1, share.tiles, share.spans,
            GridExchange::memory() + share.rest +
                my_warp() * share.tiles * max(0, share.spans - kShape.spans) * kClusterTileBytes,
            problem.n.tf32) {
    wide = rows_are_wide<Data>(p.grads, p.n.H, p.n.H);
    unit0 = rank * share.units;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int at = threadIdx.x + i * share.warps * 32;
      place[i] = at / share.units << 16 | at % share.units;
    }
  }

  // Shared memory, which takes no registers so.
  __device__ SumsOfWarps sums() const {
    float* at = reinterpret_cast<float*>(GridExchange::memory());
    return {at, work.rows / kClusterRows, work.tiles};
  }
  __device__ int* lengths() const {  // [work.rows]
    return reinterpret_cast<int*>(GridExchange::memory() + work.lengths);
  }

  __device__ int row_of(int i) const { return place[i] >> 16; }
  __device__ int unit_of(int i) const { return unit0 + (place[i] & 0xffff); }
  __device__ bool exists(int i) const { return row_of(i) < rows && unit_of(i) < p.n.H; }
  __device__ int64_t state_of(int i) const {
    return int64_t{row0 + row_of(i)} * p.n.H + unit_of(i);
  }
  // Gradients of the reset states: [kPairs][S][threads], of each thread its own.
  __device__ float& given_up(int i, int s) const {
    float* resets = reinterpret_cast<float*>(GridExchange::memory() + work.resets);
    return resets[(i * S + s) * work.warps * 32 + threadIdx.x];
  }

  // Gate and unit of this lane's first k in one of its warp's spans, gates counted in their
  // product; Part::kGates where there is none.
  struct GateRow {
    int gate, unit;
  };
  template <class Part>
  __device__ GateRow gate_row(int span) const {
    constexpr int kGates = Part::kGates;
    const int each = (static_cast<int>(p.n.H) + kPack - 1) / kPack * kPack;
    const int k = (my_warp() * Part::spans(work) + span) * kSpan<Data> + my_lane().q * kPack;
    int gate = span < Part::spans(work) ? 0 : kGates;
#pragma unroll
    for (int g = 1; g <= kGates; ++g) {
      if (k >= g * each && gate < kGates) gate = g;
    }
    return {gate, k - gate * each};
  }

  __device__ void load_weights() { load<First>(weights); }

  template <class Part, class Weights>
  __device__ void load(Weights& to_multiply) const {
    const Data* w = static_cast<const Data*>(p.weight_hh);
    const int H = static_cast<int>(p.n.H);
    const auto at = [&](int span) { return gate_row<Part>(span); };
    to_multiply.load(at, [&](Pack<Data>& to, const GateRow& from, int tile, int i) {
      const int column = tile * kClusterTile + i, unit = unit0 + column;
      const bool there = from.gate < Part::kGates && column < work.units && unit < H;
      const Data* rows = w + int64_t{(Part::kFrom + from.gate) * H + from.unit} * H + unit;
#pragma unroll
      for (int v = 0; v < kPack; ++v) {
        to.v[v] = Data(0.0f);
        if (there && from.unit + v < H) to.v[v] = rows[v * H];
      }
    });
  }

  // The gradients after the last step of some rows.
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
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      known[i].cut = 0;
#pragma unroll
      for (int s = 0; s < S; ++s) carry[i][s] = known[i].before[s] = 0;
      if (!exists(i)) continue;
      given_up(i, 0) = 0;
      carry[i][0] = or_zero<Data>(p.dhn, state_of(i));
#pragma unroll
      for (int s = 1; s < S; ++s) {
        given_up(i, s) = 0;
        carry[i][s] = or_zero<Data>(p.dcn, (s - 1) * n.B * n.H + state_of(i));
        if (n.T > 0) known[i].before[s] = cell_state(i, s, time_of(n, n.T - 1));
      }
    }
    request(static_cast<int>(n.T) - 1);
  }

  __device__ float cell_state(int i, int s, int64_t t) const {
    const float* cells = static_cast<const float*>(p.cells) + t * (S - 1) * p.n.B * p.n.H;
    return cells[(s - 1) * p.n.B * p.n.H + state_of(i)];
  }

  // Asks for what step number i of forward left; nothing waits for it until it is looked at.
  __device__ void request(int i) {
    const SequenceSizes& n = p.n;
    if (i < 0) return;
    const int64_t t = time_of(n, i), before = i > 0 ? time_of(n, i - 1) : t;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (!exists(j)) continue;
      Recalled<Cell, Data>& to = known[j];
      const int64_t b = row0 + row_of(j), unit = unit_of(j);
      to.cut_after = to.cut;
      to.cut = reset_mark(n, p.reset, lengths()[row_of(j)], b, i);
      const Data* saved = static_cast<const Data*>(p.saved) + (t * n.B + b) * K * n.H + unit;
#pragma unroll
      for (int k = 0; k < K; ++k) to.saved[k] = saved[k * n.H];
      to.h = static_cast<const Data*>(p.y)[(before * n.B + b) * n.y_row + unit];
#pragma unroll
      for (int s = 1; s < S; ++s) {
        to.after[s] = to.before[s];
        to.before[s] = cell_state(j, s, before);
      }
      to.dy = Data(0.0f);
      if (p.dy != nullptr) to.dy = static_cast<const Data*>(p.dy)[(t * n.B + b) * n.y_row + unit];
      if (i > 0 && (place[j] & (kSector<Data> - 1)) == 0) {
        const Data* later = static_cast<const Data*>(p.grads) + (before * n.B + b) * D * n.H + unit;
#pragma unroll
        for (int k = 0; k < D; ++k) GridExchange::expect(later + k * n.H);
      }
    }
  }

  __device__ void product(int i) const { multiply<First>(i, weights); }

  // What these gates of step number i gave.
  template <class Part, class Weights>
  __device__ void multiply(int i, const Weights& of_gates) const {
    const int64_t t = time_of(p.n, i);
    const auto row = [&](int column) {
      const int mine = column * kClusterRows + my_lane().g;
      const Data* grads = static_cast<const Data*>(p.grads);
      const Data* from = grads + (t * p.n.B + row0 + mine) * D * p.n.H;
      return RowOfB<Data>{mine < rows ? from : nullptr, true};
    };
    const auto at = [&](int span) {
      const GateRow from = gate_row<Part>(span);
      const int count = from.gate < Part::kGates ? static_cast<int>(p.n.H) - from.unit : 0;
      return Eight{Cell::h_grad(Part::kFrom + from.gate) * p.n.H + from.unit, count};
    };
    grid_product<kShape.sums>(of_gates, sums(), wide, row, at);
  }

  __device__ void step(int i) {
    const bool last = i + 1 == p.n.T;
    if (!last) product(i + 1);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (j >= work.pairs) break;
      Brief d[D];
#pragma unroll
      for (int k = 0; k < D; ++k) d[k] = Brief(0.0f);
      if (exists(j)) retreat(i, j, last, d);
      const int64_t row = time_of(p.n, i) * p.n.B + row0 + row_of(j);
#pragma unroll
      for (int k = 0; k < D; ++k) {
        publish<Data>(p.grads, (row * D + k) * p.n.H + unit_of(j), d[k].v, exists(j), wide);
      }
    }
    request(i - 1);
  }

  // The gradients of the states after a step; what flows out of a row that is reset there goes to
  // the reset state.
  __device__ void gather(int j, bool last, bool cut, Brief (&d)[S]) {
#pragma unroll
    for (int s = 0; s < S; ++s) d[s] = Brief(carry[j][s]);
    if (last) return;
    d[0] += Brief(sums().total(work.warps, place[j] & 0xffff, row_of(j)));
    if (!cut) return;
#pragma unroll
    for (int s = 0; s < S; ++s) given_up(j, s) += d[s].v, d[s] = Brief(0.0f);
  }

  // The cell backward.
  __device__ void retreat(int i, int j, bool last, Brief (&d)[D]) {
    const SequenceSizes& n = p.n;
    const Recalled<Cell, Data>& of = known[j];
    Brief dout[S], ds[S];
    gather(j, last, of.cut_after, dout);
    const bool live = time_of(n, i) < lengths()[row_of(j)];
    if (live) {
      Brief saved[K], s[S], out[S];
#pragma unroll
      for (int k = 0; k < K; ++k) saved[k] = Brief(widen(of.saved[k]));
      states_before(i, j, s);
      out[0] = Brief(0.0f);
#pragma unroll
      for (int k = 1; k < S; ++k) out[k] = Brief(of.after[k]);
      dout[0] = limited(n.options, dout[0] + Brief(widen(of.dy)));
      Cell::backward(n.options.without_stepwise_only(), {}, saved, s, out, dout, d, ds);
    }
#pragma unroll
    for (int s = 0; s < S; ++s) carry[j][s] = live ? ds[s].v : dout[s].v;
  }

  // Before a row's first step it has its initial states: y is no state where it takes no part.
  __device__ void states_before(int i, int j, Brief (&s)[S]) const {
    const SequenceSizes& n = p.n;
    const Recalled<Cell, Data>& of = known[j];
    s[0] = Brief(widen(of.h));
#pragma unroll
    for (int k = 1; k < S; ++k) s[k] = Brief(of.before[k]);
    if (i > 0 && time_of(n, i - 1) < lengths()[row_of(j)] && !of.cut) return;
    s[0] = Brief(or_zero<Data>(of.cut ? p.reset_h : p.h0, state_of(j)));
#pragma unroll
    for (int k = 1; k < S; ++k) {
      s[k] = Brief(or_zero<Data>(of.cut ? p.reset_c : p.c0, (k - 1) * n.B * n.H + state_of(j)));
    }
  }

  // The gradients of the initial states.
  __device__ void end() {
    const SequenceSizes& n = p.n;
    if (n.T > 0) product(0);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (!exists(j)) continue;
      Brief d[S];
      gather(j, n.T == 0, known[j].cut, d);
      round_to(static_cast<Data*>(p.dh0)[state_of(j)], d[0].v);
      if (p.dreset_h != nullptr) {
        round_to(static_cast<Data*>(p.dreset_h)[state_of(j)], given_up(j, 0));
      }
#pragma unroll
      for (int s = 1; s < S; ++s) {
        const int64_t to = (s - 1) * n.B * n.H + state_of(j);
        round_to(static_cast<Data*>(p.dc0)[to], d[s].v);
        if (p.dreset_c != nullptr) round_to(static_cast<Data*>(p.dreset_c)[to], given_up(j, s));
      }
    }
  }
};

#endif

template <class Cell, class Data>
__global__ void __launch_bounds__(kGridWarps * 32, 1)
    grid_backward(const __grid_constant__ GridCall<SequenceBackward> call) {
#ifdef FRNN_RESIDENT
  const int group = blockIdx.x / call.work.size, groups = call.work.groups;
  using Cta = std::conditional_t<Cell::kSecond == 0, GridBackward<Cell, Data>,
                                 GridBackwardTwice<Cell, Data>>;
  Cta cta(call.directions[group / groups], call.work, blockIdx.x % call.work.size);
  cta.load_weights();
  for (int row = group % groups * call.work.rows; row < cta.p.n.B; row += groups * call.work.rows) {
    cta.begin(row);
    for (int i = static_cast<int>(cta.p.n.T) - 1; i >= 0; --i) cta.step(i);
    cta.end();
  }
#endif
}

}  // namespace cuda
}  // namespace fusedrnn
