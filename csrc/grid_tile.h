// The tiles of the grid kernels: the planner plans with them (csrc/plan_grid.cpp), and
// csrc/cuda/grid_*.cuh are written for them. Tiles and spans are those of cluster_tile.h.
//
//   forward    A = W_hh, the gate rows of a CTA's own units, one gate's below the other's; k runs
//              over all units
//   backward   A = W_hh transposed, a CTA's own units; k runs over all gate rows, each gate's units
//              rounded up to a multiple of 16 bytes
//
// Each warp has all tiles of its CTA in a part of k, so that no two warps need the same of B: it
// goes from L2 straight into registers. The sums of the warps are added up in shared memory.
//
// A cell with a second product has an A for each: of its first gates, and of its last ones. Units,
// warps and rows are those of both.
#pragma once
#include "cluster_tile.h"

namespace fusedrnn {

constexpr int kGridWarps = 8, kGridRows = 64;  // at most
constexpr int kGridPiece = 2;                  // spans of B that a warp asks for at a time
constexpr int kGridSumBytes = kClusterTile * kClusterRows * 4;  // of a tile's sums

// What of a cell its kernels are made for: Cell::kGates, Cell::kStates, Cell::kSecond.
struct GridCell {
  int gates, states, second;
};
template <class Cell>
constexpr GridCell kGridCell = {Cell::kGates, Cell::kStates, Cell::kSecond};

// What a kernel is compiled for: tiles of A that a warp has at most; spans of each that it keeps in
// registers, eight to a span (the other spans are in shared memory); and sums that it adds to in
// turns. As many registers of weights as the rest of the cell leaves; float32 leaves fewer, since
// its products need room to take numbers apart.
struct GridShape {
  int tiles, spans, sums;
};
constexpr GridShape grid_shape(GridCell cell, bool backward, int item) {
  const bool many = cell.states > 2;
  const int less = item == 4 ? 1 : 0;
  if (cell.second > 0) return backward ? GridShape{1, 8, 2} : GridShape{2, 4, 1};
  if (backward) return {1, (many ? 12 : 14) - 2 * less, 2};
  return {(many ? 3 : 4) - less, 4, 1};
}
// Of the second product.
constexpr GridShape grid_second_shape(bool backward, int item) {
  return backward ? GridShape{1, 4, 2} : GridShape{1, item == 4 ? 4 : 6, 2};
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
  // The same of a second product. There is none: no tiles, no spans.
  int second_tiles, second_spans, second_rest;
};

// Elements of k in a product of so many gates.
constexpr int64_t grid_depth(int gates, int64_t H, bool backward, int item) {
  const int64_t pack = 16 / item;
  return backward ? gates * ((H + pack - 1) / pack * pack) : H;
}

// `tiles`: of the (first) A in a CTA. False: the kernel cannot serve the problem so.
inline bool grid_work(GridWork& work, GridCell cell, int64_t H, int tiles, int warps, int rows,
                      bool backward, int item) {
  const GridShape s = grid_shape(cell, backward, item), second = grid_second_shape(backward, item);
  const int first = cell.gates - cell.second, per_unit = backward ? 1 : first;
  if (tiles > s.tiles || warps > kGridWarps || rows > kGridRows || rows % kClusterRows != 0) {
    return false;
  }
  if (H > 1 << 14) return false;  // offsets within W_hh are kept in 32 bits
  work = {};
  work.rows = rows, work.warps = warps;
  work.units = tiles * kClusterTile / per_unit / 2 * 2;
  work.tiles = (work.units * per_unit + kClusterTile - 1) / kClusterTile;
  work.size = int((H + work.units - 1) / work.units);
  const auto spans = [&](int gates) {
    const int64_t depth = grid_depth(gates, H, backward, item);
    const int64_t across = int64_t(warps) * cluster_span(item);
    return int((depth + across - 1) / across);
  };
  work.spans = spans(first);
  if (cell.second > 0) {
    const int rows_of_a = work.units * (backward ? 1 : cell.second);
    work.second_tiles = (rows_of_a + kClusterTile - 1) / kClusterTile;
    work.second_spans = spans(cell.second);
    if (work.second_tiles > second.tiles) return false;
  }
  const int threads = warps * 32;
  work.pairs = (rows * work.units + threads - 1) / threads;
  if (work.pairs > kGridPairs) return false;
  work.inverse = ((1 << 20) + work.units - 1) / work.units;
  const int most = std::max(work.tiles, work.second_tiles);
  work.lengths = warps * (rows / kClusterRows) * most * kGridSumBytes;
  work.bias = work.lengths + rows * 4;
  work.resets = work.bias + (backward ? 0 : (work.tiles + work.second_tiles) * kClusterTile * 4);
  work.rest = work.resets + (backward ? work.pairs * cell.states * threads * 4 : 0);
  const auto rest = [&](int tiles, int over) {
    return warps * tiles * std::max(0, over) * kClusterTileBytes;
  };
  work.second_rest = work.rest + rest(work.tiles, work.spans - s.spans);
  work.shared = work.second_rest + rest(work.second_tiles, work.second_spans - second.spans);
  return true;
}

}  // namespace fusedrnn
