// The cluster kernel forward: a whole sequence in one launch, W_hh at rest.
//   u = W_hh h + b_hh,   (h, c) = cell(gx[t], u, h, c),   y[t] = h
//
// A cluster owns 8, 16 or 32 batch rows, each of its CTAs a slice of the hidden units, each warp
// one tile of W_hh: 16 gate rows, all gates of 4 units (a cell of one gate: 16 units). Gates and
// states stay in registers; h goes to the shared memory of every CTA, 8 bytes at a time, where a
// barrier counts bytes. It is the only thing that the CTAs wait for.
//
// Two buffers of h suffice. h of step i + 1 goes where h of step i - 1 was; who sends it has all of
// step i, to which every warp of every CTA contributed after it had read all of step i - 1.
#pragma once
#include "cluster_call.cuh"

namespace fusedrnn {
namespace cuda {

#ifdef FRNN_CLUSTERS

// Where the gate rows of units are in a tile, and which sums a lane ends up with.
template <int kGates>
struct TileOfUnits {
  static_assert(kGates == 1 || kGates == 3 || kGates == 4, "");
  static constexpr int kUnits = cluster_tile_units(kGates), kSlots = kClusterTile / kUnits;
  // (row, unit) pairs of a lane, and in how many rows: pair e is in that number e % kRows.
  static constexpr int kPairs = 4 / kSlots, kRows = kSlots == 1 ? 2 : 1;

  static __device__ int gate(int row) { return row / kUnits; }
  static __device__ int unit(int row) { return row % kUnits; }

  // Row of B and unit of this lane's pair e.
  static __device__ int my_row(int e) {
    const Lane lane = my_lane();
    return kSlots == 1 ? 2 * lane.q + e % 2 : 2 * lane.q + lane.g / 4;
  }
  static __device__ int my_unit(int e) {
    const Lane lane = my_lane();
    return kSlots == 1 ? lane.g + e / 2 * 8 : lane.g % 4;
  }

  // The sums of all gates of this lane's pairs. With four slots a lane has two of a unit's gates in
  // two rows of the batch, and the lane 16 further the two others: they swap, and keep a row each.
  template <class Value>
  static __device__ void gather(const float (&sums)[4], Value (&u)[kPairs][kGates]) {
    if constexpr (kSlots == 1) {
#pragma unroll
      for (int e = 0; e < kPairs; ++e) u[e][0] = Value(sums[e]);
    } else {
      const bool upper = my_lane().g >= 4;
      const float low = upper ? sums[1] : sums[0], high = upper ? sums[3] : sums[2];
      const float other_low = Mma::swap(upper ? sums[0] : sums[1], 16);
      const float other_high = Mma::swap(upper ? sums[2] : sums[3], 16);
      u[0][0] = Value(upper ? other_low : low);
      u[0][1] = Value(upper ? low : other_low);
      u[0][2] = Value(upper ? other_high : high);
      if constexpr (kGates == 4) u[0][3] = Value(upper ? high : other_high);
    }
  }
};

// What lanes of neighbouring units have, in their order: 8 bytes. In 16 bits of the four lanes 4, 8
// and 12 apart ...
template <class Data>
__device__ inline void neighbours(Data mine, uint32_t& low, uint32_t& high) {
  uint16_t bits;
  memcpy(&bits, &mine, 2);
  const int place = my_lane().g % 4;
  const uint32_t other = Mma::swap(static_cast<uint32_t>(bits), 4);
  const uint32_t pair = place % 2 ? other | static_cast<uint32_t>(bits) << 16 : bits | other << 16;
  const uint32_t others = Mma::swap(pair, 8);
  low = place < 2 ? pair : others;
  high = place < 2 ? others : pair;
}
// ... and in float32 of two.
__device__ inline void neighbours(float mine, uint32_t& low, uint32_t& high) {
  const float other = Mma::swap(mine, 4);
  const bool second = my_lane().g % 2 != 0;
  const float both[2] = {second ? other : mine, second ? mine : other};
  memcpy(&low, &both[0], 4), memcpy(&high, &both[1], 4);
}

template <class Cell, class Data, int kShape, int kColumns>
struct ClusterForward {
  using Brief = BriefOf<Data>;
  static constexpr int kTogether = 8 / sizeof(Data);  // units in what is sent at a time
  static constexpr int kSpans = kClusterForward[kShape].spans;
  using Tile = TileOfUnits<Cell::kGates>;
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int kPairs = kColumns * Tile::kPairs,
                       kChains = kClusterForward[kShape].sums / kColumns;

  const SequenceForward& p;
  const ClusterWork& work;
  Data* h;  // [2][work.rows][work.pitch]
  uint64_t* barriers;
  int row0;   // the cluster's first batch row
  int rows;   // and how many there are
  int unit0;  // the warp's first unit
  Resident<Data, 1, kSpans> weights;
  float bias[2];
  Data x[kPairs][G];
  int length[kColumns * Tile::kRows];
  uint8_t cut[kColumns * Tile::kRows];  // whether the next step starts with the reset state
  Brief state[kPairs][S];

  __device__ ClusterForward(const SequenceForward& problem, const ClusterWork& share, int group)
      : p(problem),
        work(share),
        weights(my_warp(), share.warps, share.tiles, share.spans, Exchange::memory() + share.rest,
                problem.n.tf32) {
    char* memory = Exchange::memory();
    h = reinterpret_cast<Data*>(memory);
    barriers = reinterpret_cast<uint64_t*>(memory + work.barriers);
    row0 = group * work.rows;
    rows = static_cast<int>(min(static_cast<int64_t>(work.rows), p.n.B - row0));
    unit0 = Exchange::rank() * work.units + my_warp() * Tile::kUnits;
  }

  __device__ int row_of(int i) const {
    return i / Tile::kPairs * kClusterRows + Tile::my_row(i % Tile::kPairs);
  }
  // Which of the lane's rows a pair is in.
  static __device__ constexpr int place_of(int i) {
    return i / Tile::kPairs * Tile::kRows + i % Tile::kPairs % Tile::kRows;
  }
  __device__ int unit_of(int i) const { return unit0 + Tile::my_unit(i % Tile::kPairs); }
  __device__ bool exists(int i) const { return row_of(i) < rows && unit_of(i) < p.n.H; }

  __device__ void load_weights() {
    const Data* w = static_cast<const Data*>(p.weight_hh);
    const int64_t H = p.n.H;
    const bool aligned = reinterpret_cast<uintptr_t>(w) % 16 == 0 && H % Pack<Data>::kSize == 0;
    const auto at = [](int span) { return span * kSpan<Data> + my_lane().q * Pack<Data>::kSize; };
    weights.load(at, [&](Pack<Data>& to, int k, int, int row) {
      const int gate = Tile::gate(row), unit = unit0 + Tile::unit(row);
      const bool there = gate < G && unit < H;
      load_pack(to, w, (gate * H + unit) * H + k, there ? H - k : 0, aligned);
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = my_lane().g + 8 * half, gate = Tile::gate(row);
      const int unit = unit0 + Tile::unit(row);
      const bool there = p.bias_hh != nullptr && gate < G && unit < H;
      bias[half] = there ? widen(static_cast<const Data*>(p.bias_hh)[gate * H + unit]) : 0.0f;
    }
  }

  // The states before the first step: a thread's own, and h of all units of the cluster's rows.
  __device__ void begin() {
    const SequenceSizes& n = p.n;
    if (threadIdx.x == 0) Exchange::init(&barriers[0]), Exchange::init(&barriers[1]);
    for (int at = threadIdx.x; at < 2 * work.rows * work.pitch; at += work.warps * 32) {
      const int row = at / work.pitch % work.rows, unit = at % work.pitch;
      float value = 0;
      if (at < work.rows * work.pitch && row < rows && unit < n.H) {
        const int64_t b = row0 + row;
        value = or_zero<Data>(is_reset(p, 0, b) ? p.reset_h : p.h0, b * n.H + unit);
      }
      round_to(h[at], value);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t b = row0 + row_of(i), at = b * n.H + unit_of(i);
      if (i % Tile::kPairs < Tile::kRows) {
        length[place_of(i)] = static_cast<int>(row_of(i) >= rows      ? 0
                                               : p.lengths == nullptr ? n.T
                                                                      : min(n.T, p.lengths[b]));
        cut[place_of(i)] = 0;
      }
#pragma unroll
      for (int s = 0; s < S; ++s) state[i][s] = Brief(0.0f);
#pragma unroll
      for (int g = 0; g < G; ++g) x[i][g] = Data(0.0f);
      if (!exists(i)) continue;
      const bool anew = is_reset(p, 0, b);
      restart(i, anew ? p.reset_h : p.h0, anew ? p.reset_c : p.c0, at);
    }
    request(0);
    Exchange::sync_cluster();
  }

  __device__ void restart(int i, const void* from_h, const void* from_c, int64_t at) {
    state[i][0] = Brief(or_zero<Data>(from_h, at));
#pragma unroll
    for (int s = 1; s < S; ++s) {
      state[i][s] = Brief(or_zero<Data>(from_c, (s - 1) * p.n.B * p.n.H + at));
    }
  }

  // Asks for what step i needs from memory; nothing waits for it until then.
  __device__ void request(int step) {
    const SequenceSizes& n = p.n;
    if (step >= n.T) return;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t b = row0 + row_of(i);
      if (i % Tile::kPairs < Tile::kRows && row_of(i) < rows) {
        cut[place_of(i)] = reset_mark(n, p.reset, length[place_of(i)], b, step + 1);
      }
      if (!exists(i)) continue;
      const Data* from =
          static_cast<const Data*>(p.gx) + (time_of(n, step) * n.B + b) * G * n.H + unit_of(i);
#pragma unroll
      for (int g = 0; g < G; ++g) x[i][g] = from[g * n.H];
    }
  }

  __device__ void step(int step) {
    const bool more = step + 1 < p.n.T;
    uint64_t* next = &barriers[(step + 1) & 1];
    if (more && threadIdx.x == 0)
      Exchange::expect(next, rows * work.size * work.units * int{sizeof(Data)});
    if (step > 0) Exchange::wait(&barriers[step & 1], (step - 1) >> 1 & 1);

    float sums[1][kColumns][kChains][4] = {};
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][n][0][e] = bias[e / 2];
    }
    // Up to eight rows, those that are not there cost nothing: their lanes read the first row along
    // with others.
    const Lane lane = my_lane();
    const int row = kColumns > 1 || lane.g < rows ? lane.g : 0;
    const Data* from = h + ((step & 1) * work.rows + row) * work.pitch + lane.q * Pack<Data>::kSize;
    weights.multiply(sums, [&](int n, int span) {
      return reinterpret_cast<const uint4*>(from + n * kClusterRows * work.pitch +
                                            span * kSpan<Data>);
    });
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int chain = 1; chain < kChains; ++chain) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[0][n][0][e] += sums[0][n][chain][e];
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      Brief u[Tile::kPairs][G], saved[Tile::kPairs][K], out[Tile::kPairs][S];
      Tile::gather(sums[0][n][0], u);
#pragma unroll
      for (int e = 0; e < Tile::kPairs; ++e) {
        const int i = n * Tile::kPairs + e;
        advance(step, i, u[e], out[e], saved[e]);
        if (more) send(i, (step + 1) & 1);
      }
#pragma unroll
      for (int e = 0; e < Tile::kPairs; ++e) store(step, n * Tile::kPairs + e, out[e], saved[e]);
    }
    request(step + 1);
  }

  // The cell. `state` then is what the next step starts with.
  __device__ void advance(int step, int i, const Brief (&u)[G], Brief (&out)[S],
                          Brief (&saved)[K]) {
    Brief of_x[G];
#pragma unroll
    for (int g = 0; g < G; ++g) of_x[g] = Brief(widen(x[i][g]));
    Cell::forward(p.n.options.without_stepwise_only(), {}, of_x, u, state[i], out, saved);
    const bool live = time_of(p.n, step) < length[place_of(i)];
#pragma unroll
    for (int s = 0; s < S; ++s) state[i][s] = out[s] = live ? out[s] : state[i][s];
    if (cut[place_of(i)] && exists(i)) {
      restart(i, p.reset_h, p.reset_c, int64_t{row0 + row_of(i)} * p.n.H + unit_of(i));
    }
  }

  // h of some units of a row, this lane's among them, to every CTA's buffer. The lanes that hold
  // the same share the CTAs.
  __device__ void send(int i, int buffer) {
    Data mine;
    round_to(mine, state[i][0].v);
    uint32_t low, high;
    neighbours(mine, low, high);
    if (row_of(i) >= rows) return;
    const int mine_of = my_lane().g % kTogether, unit = unit_of(i) - mine_of;
    const int to =
        ((buffer * work.rows + row_of(i)) * work.pitch + unit) * static_cast<int>(sizeof(Data));
    const int barrier = work.barriers + buffer * 8;
#pragma unroll
    for (int first = 0; first < 16; first += kTogether) {
      const int peer = mine_of + first;
      if (peer >= work.size) continue;
      const auto there = Exchange::address(Exchange::memory(), peer);
      Exchange::send(there + to, there + barrier, low, high);
    }
  }

  __device__ void store(int step, int i, const Brief (&out)[S], const Brief (&saved)[K]) {
    if (!exists(i)) return;
    const SequenceSizes& n = p.n;
    const int64_t t = time_of(n, step), b = row0 + row_of(i), row = t * n.B + b;
    const int64_t unit = unit_of(i);
    const bool live = t < length[place_of(i)];
    round_to(static_cast<Data*>(p.y)[row * n.y_row + unit], live ? out[0].v : 0.0f);
#pragma unroll
    for (int s = 1; s < S; ++s) {
      if (p.cells == nullptr) break;
      float* cells = static_cast<float*>(p.cells) + t * (S - 1) * n.B * n.H;
      cells[((s - 1) * n.B + b) * n.H + unit] = out[s].v;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (p.saved == nullptr) break;
      Data* to = static_cast<Data*>(p.saved) + (row * K + k) * n.H + unit;
      round_to(*to, live ? saved[k].v : 0.0f);
    }
  }

  __device__ void end() {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!exists(i)) continue;
      const int64_t at = int64_t{row0 + row_of(i)} * p.n.H + unit_of(i);
      round_to(static_cast<Data*>(p.hn)[at], state[i][0].v);
#pragma unroll
      for (int s = 1; s < S; ++s) {
        round_to(static_cast<Data*>(p.cn)[(s - 1) * p.n.B * p.n.H + at], state[i][s].v);
      }
    }
  }
};

#endif

// A CTA ends when all that is sent to it has come: h of the last step is sent to nobody.
template <class Cell, class Data, int kShape, int kColumns>
__global__ void __launch_bounds__(kClusterForward[kShape].warps * 32, 1)
    cluster_forward(const __grid_constant__ ClusterCall<SequenceForward> call) {
#ifdef FRNN_CLUSTERS
  const int cluster = blockIdx.x / call.work.size;
  ClusterForward<Cell, Data, kShape, kColumns> cta(call.directions[cluster / call.groups],
                                                   call.work, cluster % call.groups);
  cta.load_weights();
  cta.begin();
  for (int i = 0; i < cta.p.n.T; ++i) cta.step(i);
  cta.end();
#endif
}

}  // namespace cuda
}  // namespace fusedrnn
