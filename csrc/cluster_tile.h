// The tiles of the cluster kernels: the planner plans with them (csrc/plan_cluster.cpp), and
// csrc/cuda/cluster_*.cuh are written for them.
//
// W_hh is A of mma.sync m16n8k16 (float32: m16n8k8, a number in the place of two), 16 of its rows
// to a tile; B has eight batch rows to a tile. k is cut into spans of 64 bytes, 32 numbers or 16:
// 16 bytes of B a lane, two products. `item`, here and below: bytes of a number.
//
//   forward    A = W_hh, the gate rows of a CTA's own units; k runs over all units
//   backward   A = W_hh transposed, all units; k runs over the gate rows of a CTA's own units
#pragma once
#include <algorithm>
#include <cstdint>

namespace fusedrnn {

constexpr int kClusterRows = 8, kClusterTile = 16;
constexpr int cluster_span(int item) { return 64 / item; }
constexpr int kClusterStates = 2;                     // of a cell at most
constexpr int kClusterTileBytes = kClusterTile * 64;  // one span of a tile of A

// What a kernel is compiled for.
struct ClusterShape {
  int warps;  // of a CTA at most
  int tiles;  // of A that a warp has at most ...
  int spans;  // ... and spans of each that it keeps in registers; the others are in shared memory
  int most;   // tiles of B at most: 8, 16 or 32 batch rows
  int sums;   // that a warp adds to at a time, if it has as many tiles of B or fewer
  int wide;   // tiles of B at most in float32; 0: it is not compiled for it, which takes time
};

// 16 spans are 128 registers of a thread: all of W_hh at 512 units. More than 8 warps leave 168
// registers to a thread, and 12 warps reach 768 units of an LSTM.
constexpr ClusterShape kClusterForward[] = {{8, 1, 16, 4, 4, 2}, {12, 1, 12, 2, 2, 0}};
constexpr ClusterShape kClusterBackward[] = {{8, 4, 4, 4, 1, 1}, {12, 4, 3, 1, 1, 0}};
constexpr int kClusterShapes = 2;

// Units of one tile of A in forward: all gates of a unit meet in one warp. Cells of three gates
// leave a quarter of each tile empty.
constexpr int cluster_tile_units(int gates) { return gates == 1 ? 16 : 4; }

// (row, unit) pairs that a thread has of eight rows in backward, at most.
constexpr int cluster_pairs(int gates, int shape) { return gates == 1 && shape == 0 ? 2 : 1; }

// Tiles of B at most: half of them where a thread has more pairs of each, or registers run out.
constexpr int cluster_most(const ClusterShape& shape, int gates, int item) {
  if (item == 4) return shape.wide;
  return gates == 1 && shape.most > 1 ? shape.most / 2 : shape.most;
}

// How a cluster shares a problem, and where things stand in each CTA's shared memory.
struct ClusterWork {
  int shape;     // of kClusterForward or kClusterBackward
  int size;      // CTAs of a cluster
  int rows;      // batch rows of a cluster: 8, 16 or 32
  int units;     // of a CTA
  int warps;     // of a CTA
  int tiles;     // of A in a CTA
  int spans;     // of k
  int pitch;     // elements from one row of B to the next
  int inverse;   // of units, times 2^20: n / units is n * inverse >> 20 for n < 1024
  int resets;    // bytes before the gradients of reset states, after backward's partial sums
  int operand;   // bytes before B, which is there twice
  int barriers;  // bytes before two mbarriers
  int rest;      // bytes before the spans of A that are not in registers
  int shared;    // bytes in all
};

constexpr int cluster_round_up(int64_t n, int to) { return int((n + to - 1) / to * to); }

// False: this shape cannot serve the problem so.
inline bool cluster_work(ClusterWork& work, int gates, int64_t H, int shape, int size, int rows,
                         bool backward, int item) {
  const int span = cluster_span(item);
  const ClusterShape& s = (backward ? kClusterBackward : kClusterForward)[shape];
  const int tile_units = backward ? 4 : cluster_tile_units(gates);
  const int64_t units = cluster_round_up((H + size - 1) / size, tile_units);
  if (rows > cluster_most(s, gates, item) * kClusterRows || units > 1024) return false;
  if ((size - 1) * units >= H) return false;  // a CTA without units would not keep step
  work = {};
  work.shape = shape, work.size = size, work.rows = rows, work.units = int(units);
  work.tiles =
      backward ? cluster_round_up(H, kClusterTile) / kClusterTile : int(units) / tile_units;
  work.warps = backward ? s.warps : work.tiles;
  if (work.warps > s.warps || work.tiles > work.warps * s.tiles) return false;
  if (backward && units * kClusterRows > int64_t(work.warps) * 32 * cluster_pairs(gates, shape)) {
    return false;
  }
  work.spans = cluster_round_up(backward ? gates * units : H, span) / span;
  // Spans are multiplied four at a time. An odd number of them: eight lanes that read two rows meet
  // 32 different banks.
  const int64_t wide = backward ? work.spans * span : std::max(H, units * size);
  work.pitch = cluster_round_up(wide, 4 * span) + span;
  work.inverse = ((1 << 20) + work.units - 1) / work.units;
  work.resets = backward ? 2 * size * rows * work.units * 4 : 0;
  const int pairs = rows / kClusterRows * cluster_pairs(gates, shape) * kClusterStates;
  work.operand = work.resets + (backward ? pairs * work.warps * 32 * 4 : 0);
  work.barriers = work.operand + 2 * rows * work.pitch * item;
  work.rest = work.barriers + 16;
  work.shared = work.rest + work.tiles * std::max(0, work.spans - s.spans) * kClusterTileBytes;
  return true;
}

}  // namespace fusedrnn
