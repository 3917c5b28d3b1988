// The tiles of the grid kernels: the planner plans with them (csrc/plan_grid.cpp), and
// csrc/cuda/grid_*.cuh are written for them. Tiles and spans are those of cluster_tile.h.
//
//   forward    A = W_hh, the gate rows of a CTA's own units, one gate's below the other's; k runs
//              over all units
//   backward   A = W_hh transposed, a CTA's own units; k runs over all gate rows, each gate's units
//              rounded up to a multiple of 8
//
// Each warp has all tiles of its CTA in a part of k, so that no two warps need the same of B: it
// goes from L2 straight into registers. The sums of the warps are added up in shared memory.
#pragma once
#include "cluster_tile.h"

namespace fusedrnn {

constexpr int kGridWarps = 8, kGridRows = 64;  // at most
constexpr int kGridPiece = 2;                  // spans of B that a warp asks for at a time
constexpr int kGridSumBytes = kClusterTile * kClusterRows * 4;  // of a tile's sums

// What of a cell its kernels are made for: Cell::kGates, Cell::kStates.
struct GridCell {
  int gates, states;
};
template <class Cell>
constexpr GridCell kGridCell = {Cell::kGates, Cell::kStates};

// What a kernel is compiled for: tiles of A that a warp has at most; spans of each that it keeps in
// registers, 128 and 112 of them in all (the other spans are in shared memory); and sums that it
// adds to in turns.
struct GridShape {
  int tiles, spans, sums;
};
constexpr GridShape grid_shape(GridCell cell, bool backward) {
  const bool many = cell.states > 2;  // which take the registers of weights
  if (backward) return {1, many ? 12 : 14, 2};
  return {many ? 3 : 4, 4, 1};
}

constexpr int kGridPairs = 2;  // (row, unit) pairs of a thread at most

// How a group of CTAs shares a problem, and where things stand in each CTA's shared memory.
struct GridWork {
  int size;     // CTAs of a group, which have all of W_hh between them
  int groups;   // of a direction
  int rows;     // batch rows of a group at a time: a multiple of 8
  int units;    // of a CTA: an even number
  int warps;    // of a CTA
  int tiles;    // of A in a CTA
  int spans;    // of k in a warp
  int pairs;    // (row, unit) pairs of a thread
  int inverse;  // of units, times 2^20: n / units is n * inverse >> 20 for n < 1024
  int lengths;  // bytes before the rows' lengths, after the warps' sums
  int bias;     // bytes before b_hh in the order of A's rows
  int resets;   // bytes before the gradients of reset states
  int rest;     // bytes before the spans of A that are not in registers
  int shared;   // bytes in all
};

// Elements of k.
constexpr int64_t grid_depth(int gates, int64_t H, bool backward) {
  return backward ? gates * ((H + 7) / 8 * 8) : H;
}

// `tiles`: of A in a CTA. False: the kernel cannot serve the problem so.
inline bool grid_work(GridWork& work, GridCell cell, int64_t H, int tiles, int warps, int rows,
                      bool backward) {
  const GridShape s = grid_shape(cell, backward);
  const int per_unit = backward ? 1 : cell.gates;
  if (tiles > s.tiles || warps > kGridWarps || rows > kGridRows || rows % kClusterRows != 0) {
    return false;
  }
  if (H > 1 << 14) return false;  // offsets within W_hh are kept in 32 bits
  work = {};
  work.rows = rows, work.warps = warps;
  work.units = tiles * kClusterTile / per_unit / 2 * 2;
  work.tiles = (work.units * per_unit + kClusterTile - 1) / kClusterTile;
  work.size = int((H + work.units - 1) / work.units);
  const int64_t depth = grid_depth(cell.gates, H, backward);
  work.spans = int((depth + int64_t(warps) * kClusterSpan - 1) / (int64_t(warps) * kClusterSpan));
  const int threads = warps * 32;
  work.pairs = (rows * work.units + threads - 1) / threads;
  if (work.pairs > kGridPairs) return false;
  work.inverse = ((1 << 20) + work.units - 1) / work.units;
  work.lengths = warps * (rows / kClusterRows) * work.tiles * kGridSumBytes;
  work.bias = work.lengths + rows * 4;
  work.resets = work.bias + (backward ? 0 : work.tiles * kClusterTile * 4);
  work.rest = work.resets + (backward ? work.pairs * cell.states * threads * 4 : 0);
  work.shared =
      work.rest + warps * work.tiles * std::max(0, work.spans - s.spans) * kClusterTileBytes;
  return true;
}

}  // namespace fusedrnn
