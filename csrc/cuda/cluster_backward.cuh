// The cluster kernel backward: from the last step to the first, in one launch, W_hh at rest.
//   dh = dy[t] + (what the following step left) + sum over gates g of d_g(following step) W_hh[g]
//   (d, ds) = cell's backward;   grads[t] = d
//
// A CTA has the gate rows of its own units, as in forward, but transposed: its product with the
// gradients of its own gates gives a part of dh for all units. Each part goes to the CTA that owns
// the units, which adds them up in the order of ranks: same input, same bits.
//
// Parts have two buffers, as h has in forward: who sends the parts of step i + 1 has all of step i,
// and a CTA sends those after its threads have met, having read the parts of step i - 1. The
// gradients of the gates have two as well: a warp that is ahead writes them while another still
// multiplies those of the step before, and no warp is further ahead than one meeting of threads.
#pragma once
#include "cluster_call.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_CLUSTERS

template <class Cell, class Data, int kShape, int kColumns>
struct ClusterBackward {
  using Brief = BriefOf<Data>;
  static constexpr int kTiles = kClusterBackward[kShape].tiles;
  static constexpr int kSpans = kClusterBackward[kShape].spans;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, D = Cell::kGrads;
  static_assert(S <= kClusterStates, "");
  static constexpr int kInEach = cluster_pairs(G, kShape), kPairs = kColumns * kInEach;

  const SequenceBackward& p;
  const ClusterWork& work;
  float* parts;   // [2][work.size][work.rows][work.units]
  float* resets;  // [kPairs][S][threads]: gradients of the reset states, of each thread its own
  Data* gates;    // [2][work.rows][work.pitch]: gradients of the gates, [G][work.units] in a row
  uint64_t* barriers;
  int row0;            // the cluster's first batch row
  int rows;            // and how many there are
  int unit0;           // the CTA's first unit
  int place[kInEach];  // row and unit of a pair, in eight rows: row << 16 | unit
  Resident<Data, kTiles, kSpans> weights;
  Recalled<Cell, Data> known[kPairs];
  int length[kPairs];
  float carry[kPairs][S];  // gradients of the states

  __device__ ClusterBackward(const SequenceBackward& problem, const ClusterWork& share, int group)
      : p(problem),
        work(share),
        weights(my_warp(), share.warps, share.tiles, share.spans, Exchange::memory() + share.rest,
                problem.n.tf32) {
    char* memory = Exchange::memory();
    parts = reinterpret_cast<float*>(memory);
    resets = reinterpret_cast<float*>(memory + work.resets) + threadIdx.x;
    gates = reinterpret_cast<Data*>(memory + work.operand);
    barriers = reinterpret_cast<uint64_t*>(memory + work.barriers);
    row0 = group * work.rows;
    rows = static_cast<int>(min(static_cast<int64_t>(work.rows), p.n.B - row0));
    unit0 = Exchange::rank() * work.units;
    // Neighbours have neighbouring units.
#pragma unroll
    for (int e = 0; e < kInEach; ++e) {
      const int at = threadIdx.x + e * work.warps * 32;
      place[e] = at / work.units << 16 | at % work.units;
    }
  }

  // The first of two neighbouring units of which this lane has sums to send.
  __device__ int first_unit(int m, int half) const {
    return (weights.first + m * weights.stride) * kClusterTile + half * 8 + my_lane().g / 2 * 2;
  }
  __device__ int row_of(int i) const {
    return i / kInEach * kClusterRows + (place[i % kInEach] >> 16);
  }
  __device__ int own_unit(int i) const { return place[i % kInEach] & 0xffff; }
  __device__ int unit_of(int i) const { return unit0 + own_unit(i); }
  __device__ bool exists(int i) const {
    return place[i % kInEach] >> 16 < kClusterRows && row_of(i) < rows && unit_of(i) < p.n.H;
  }
  __device__ float& given_up(int i, int s) const { return resets[(i * S + s) * work.warps * 32]; }
  __device__ int64_t state_of(int i) const {
    return int64_t{row0 + row_of(i)} * p.n.H + unit_of(i);
  }

  __device__ void load_weights() {
    const Data* w = static_cast<const Data*>(p.weight_hh);
    const int H = static_cast<int>(p.n.H);
    struct Rows {
      int at[Pack<Data>::kSize];  // where rows of W_hh begin; -1: there is none
    };
    const auto at = [&](int span) {
      Rows rows;
#pragma unroll
      for (int v = 0; v < Pack<Data>::kSize; ++v) {
        const int k = span * kSpan<Data> + my_lane().q * Pack<Data>::kSize + v;
        const int gate = k * work.inverse >> 20;
        const int unit = unit0 + k - gate * work.units;
        rows.at[v] = gate < G && unit < H ? (gate * H + unit) * H : -1;
      }
      return rows;
    };
    weights.load(at, [&](Pack<Data>& to, const Rows& rows, int tile, int row) {
      const int column = tile * kClusterTile + row;
#pragma unroll
      for (int v = 0; v < Pack<Data>::kSize; ++v) {
        to.v[v] = Data(0.0f);
        if (rows.at[v] >= 0 && column < H) to.v[v] = w[rows.at[v] + column];
      }
    });
  }

  // The gradients after the last step.
  __device__ void begin() {
    const SequenceSizes& n = p.n;
    if (threadIdx.x == 0) Exchange::init(&barriers[0]), Exchange::init(&barriers[1]);
    for (int at = threadIdx.x; at < 2 * work.rows * work.pitch; at += work.warps * 32) {
      gates[at] = Data(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      length[i] = 0;
#pragma unroll
      for (int s = 0; s < S; ++s) carry[i][s] = known[i].before[s] = 0;
      known[i].cut = 0;
      if (!exists(i)) continue;
      const int64_t b = row0 + row_of(i);
      length[i] = static_cast<int>(p.lengths == nullptr ? n.T : min(n.T, p.lengths[b]));
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
    Exchange::sync_cluster();
  }

  __device__ float cell_state(int i, int s, int64_t t) const {
    const float* cells = static_cast<const float*>(p.cells) + t * (S - 1) * p.n.B * p.n.H;
    return cells[(s - 1) * p.n.B * p.n.H + state_of(i)];
  }

  // Asks for what step number i of forward left; nothing waits for it until the next meeting.
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
      to.cut = reset_mark(n, p.reset, length[j], b, i);
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
    }
  }

  __device__ void step(int i) {
    const int at = static_cast<int>(p.n.T) - 1 - i;  // steps made so far
    uint64_t* next = &barriers[(at + 1) & 1];
    if (threadIdx.x == 0) Exchange::expect(next, bytes_to_come());
    if (at > 0) wait_for_parts(at);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (exists(j)) retreat(i, j, at);
    }
    request(i - 1);
    Exchange::sync_cta();
    const Lane lane = my_lane();
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (n * kClusterRows >= rows) break;
      const int row = n * kClusterRows + lane.g;
      const Data* from = gates + ((at & 1) * work.rows + (row < rows ? row : 0)) * work.pitch +
                         lane.q * Pack<Data>::kSize;
      float sums[kTiles][1][1][4] = {};
      weights.multiply(sums, [&](int, int span) {
        return reinterpret_cast<const uint4*>(from + span * kSpan<Data>);
      });
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (m < weights.tiles) send(sums[m][0][0], m, n, (at + 1) & 1);
      }
    }
  }

  __device__ void wait_for_parts(int at) { Exchange::wait(&barriers[at & 1], (at - 1) >> 1 & 1); }

  // Of its own units that there are, two by two, from every CTA.
  __device__ int bytes_to_come() const {
    const int units = static_cast<int>(min(static_cast<int64_t>(work.units), p.n.H - unit0));
    return work.size * rows * ((units + 1) / 2) * 8;
  }

  // The gradients of the states after a step; what flows out of a row that is reset there goes to
  // the reset state.
  __device__ void gather(int j, int at, bool cut, Brief (&d)[S]) {
#pragma unroll
    for (int s = 0; s < S; ++s) d[s] = Brief(carry[j][s]);
    if (at == 0) return;
    const float* part = parts + ((at & 1) * work.size * work.rows + row_of(j)) * work.units;
#pragma unroll 4
    for (int rank = 0; rank < work.size; ++rank) {
      d[0] += Brief(part[rank * work.rows * work.units + own_unit(j)]);
    }
    if (!cut) return;
#pragma unroll
    for (int s = 0; s < S; ++s) given_up(j, s) += d[s].v, d[s] = Brief(0.0f);
  }

  // The cell backward.
  __device__ void retreat(int i, int j, int at) {
    const SequenceSizes& n = p.n;
    const Recalled<Cell, Data>& of = known[j];
    const int64_t t = time_of(n, i), b = row0 + row_of(j);
    Brief dout[S], d[D], ds[S];
#pragma unroll
    for (int k = 0; k < D; ++k) d[k] = Brief(0.0f);
    gather(j, at, of.cut_after, dout);
    const bool live = t < length[j];
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
    Data* to = gates + ((at & 1) * work.rows + row_of(j)) * work.pitch + own_unit(j);
#pragma unroll
    for (int g = 0; g < G; ++g) round_to(to[g * work.units], d[Cell::h_grad(g)].v);
    Data* grads = static_cast<Data*>(p.grads) + (t * n.B + b) * D * n.H + unit_of(j);
#pragma unroll
    for (int k = 0; k < D; ++k) round_to(grads[k * n.H], d[k].v);
  }

  // Before a row's first step it has its initial states: y is no state where it takes no part.
  __device__ void states_before(int i, int j, Brief (&s)[S]) const {
    const SequenceSizes& n = p.n;
    const Recalled<Cell, Data>& of = known[j];
    s[0] = Brief(widen(of.h));
#pragma unroll
    for (int k = 1; k < S; ++k) s[k] = Brief(of.before[k]);
    if (i > 0 && time_of(n, i - 1) < length[j] && !of.cut) return;
    s[0] = Brief(or_zero<Data>(of.cut ? p.reset_h : p.h0, state_of(j)));
#pragma unroll
    for (int k = 1; k < S; ++k) {
      s[k] = Brief(or_zero<Data>(of.cut ? p.reset_c : p.c0, (k - 1) * n.B * n.H + state_of(j)));
    }
  }

  // A tile's sums to their owners. A lane has one unit in two rows, and the lane 4 further its
  // neighbour: they swap, and keep a row each.
  __device__ void send(const float (&sums)[4], int m, int n, int buffer) {
    const Lane lane = my_lane();
    const bool odd = lane.g % 2;
    const int row = n * kClusterRows + 2 * lane.q + odd;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float even_row = sums[2 * half], odd_row = sums[2 * half + 1];
      const float mine = odd ? odd_row : even_row, other = Mma::swap(odd ? even_row : odd_row, 4);
      if (row >= rows || first_unit(m, half) >= p.n.H) continue;
      const float low = odd ? other : mine, high = odd ? mine : other;
      const int first = first_unit(m, half), owner = first * work.inverse >> 20;
      const int unit = first - owner * work.units;
      const auto there = Exchange::address(Exchange::memory(), owner);
      const int slot = (buffer * work.size + Exchange::rank()) * work.rows + row;
      uint32_t words[2];
      memcpy(&words[0], &low, 4), memcpy(&words[1], &high, 4);
      Exchange::send(there + (slot * work.units + unit) * 4, there + work.barriers + buffer * 8,
                     words[0], words[1]);
    }
  }

  // The gradients of the initial states.
  __device__ void end() {
    const SequenceSizes& n = p.n;
    const int at = static_cast<int>(n.T);
    if (at > 0) wait_for_parts(at);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (!exists(j)) continue;
      Brief d[S];
      gather(j, at, known[j].cut, d);
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

// A CTA ends when all that is sent to it has come: each has units to wait for.
template <class Cell, class Data, int kShape, int kColumns>
__global__ void __launch_bounds__(kClusterBackward[kShape].warps * 32, 1)
    cluster_backward(const __grid_constant__ ClusterCall<SequenceBackward> call) {
#ifdef FRNN_CLUSTERS
  const int cluster = blockIdx.x / call.work.size;
  ClusterBackward<Cell, Data, kShape, kColumns> cta(call.directions[cluster / call.groups],
                                                    call.work, cluster % call.groups);
  cta.load_weights();
  cta.begin();
  for (int i = static_cast<int>(cta.p.n.T) - 1; i >= 0; --i) cta.step(i);
  cta.end();
#endif
}

}  // namespace cuda
}  // namespace fusedrnn
