// The grid kernel's plan: how many CTAs have W_hh between them, how many such groups share the
// batch, and how many rows each takes at a time.
//
// What the kernel takes is in grid_tile.h, to which both keep; time is a model.
#include <algorithm>
#include <sstream>

#include "plan.h"

namespace fusedrnn {
namespace {

// The model, in clocks: from the last store of h to the first load that finds it, what one SM gets
// of L2 in bytes a clock when all of them read, half of a load's way (a warp has two pieces on
// theirs), a product that waits for the one before, the maths of a cell for one pair of a thread;
// and, once a call, microseconds of filling what is awaited and bytes of it a microsecond.
constexpr double kExchange = 1400, kL2PerClock = 24, kPieceClocks = 300, kProductLatency = 33;
constexpr double kForwardGates = 130, kBackwardGates = 360, kSharedPerClock = 128;
constexpr double kFillUs = 2.5, kFillPerUs = 2e6;

GridCell cell_of(const PlanProblem& p) { return {p.gates, p.states, p.second}; }

std::string why_never(const PlanProblem& p, const GpuDevice& d) {
  if (d.arch < 80) return d.title + " is older than sm_80";
  if (p.dtype == DType::f64) return kNoTensorCores;
  if (p.projection) return "h is projected: its product would have to be resident too";
  if (p.stepwise_only) return kStepwiseOnly;
  if (std::max(p.T, p.B) > 1 << 30) return "it counts steps and rows in 32 bits";
  return "";
}

// One of a step's products: its gates, its tiles in a CTA, its spans in a warp, the sums that this
// adds to in turns, and the bytes of A that are not in registers.
struct Multiplied {
  int gates, tiles, spans, sums, rest;
};

// Clocks of one group from an exchange through a product to the gates.
double clocks(const Multiplied& m, const GridWork& w, const PlanProblem& p, const GpuDevice& d) {
  const int columns = w.rows / kClusterRows;
  const int item = item_size(p.dtype), products = products_of(p);
  const double depth = double(w.warps) * m.spans * cluster_span(item);
  const double product = double(m.tiles) * kClusterTile * depth * w.rows * products / d.mma16;
  // Of a product in parts each waits for the one before.
  const int parts = products == 6 ? 3 : 1;
  const double chain = m.spans * 2.0 * parts * columns / m.sums * kProductLatency;
  const double rows = double(std::min<int64_t>(w.rows, p.B));
  const double read =
      rows * double(grid_depth(m.gates, p.H, p.backward, item)) * item / kL2PerClock;
  const double pieces = double(ceil_div(m.spans, kGridPiece) * columns - 1) * kPieceClocks;
  // What of A is not in registers, for each column; and the warps' sums, in and out.
  const double rest = double(m.rest) * columns / kSharedPerClock;
  const double added = 2.0 * w.warps * columns * m.tiles * kGridSumBytes / kSharedPerClock;
  const double gates = (p.backward ? kBackwardGates : kForwardGates) * (1 + w.pairs) / 2;
  return kExchange + std::max({product, chain, read, pieces, rest}) + added + gates;
}

// Clocks of one step of one group.
double clocks(const GridWork& w, const PlanProblem& p, const GpuDevice& d) {
  const int item = item_size(p.dtype), first = p.gates - p.second;
  const GridShape one = grid_shape(cell_of(p), p.backward, item);
  const GridShape two = grid_second_shape(p.backward, item);
  double all = clocks({first, w.tiles, w.spans, one.sums, w.second_rest - w.rest}, w, p, d);
  if (p.second > 0) {
    all += clocks({p.second, w.second_tiles, w.second_spans, two.sums, w.shared - w.second_rest}, w,
                  p, d);
  }
  return all;
}

Plan plan_of(GridWork w, const PlanProblem& p, const GpuDevice& d) {
  Plan plan{SequenceKernel::grid};
  const int64_t shares = ceil_div(p.B, w.rows);  // of the batch
  plan.rounds = ceil_div(shares, w.groups);
  w.groups = int(ceil_div(shares, plan.rounds));
  plan.grid = w;
  plan.rows = w.rows, plan.units = w.units;
  plan.ctas = int64_t(p.directions) * w.groups * w.size;
  plan.threads = 32 * w.warps;
  plan.registers = kRegistersPerThread;
  plan.shared = w.shared;
  plan.ctas_per_sm = 1;
  plan.at_once = d.sms / plan.ctas;
  const int64_t pieces = int64_t(w.tiles) * w.spans + int64_t(w.second_tiles) * w.second_spans;
  plan.resident_bytes = w.warps * pieces * kClusterTileBytes;
  plan.launches = 1;
  const double load = double(plan.resident_bytes) / kL2PerClock / (d.ghz * 1e3);
  const double filled = double(p.directions * p.B * p.H) *
                        (p.backward ? p.gates : 1 + (p.second > 0)) * item_size(p.dtype);
  plan.us_per_step = plan.rounds * clocks(w, p, d) / (d.ghz * 1e3) + filled / kFillPerUs +
                     (load + kFillUs) / std::max<int64_t>(p.T, 1);
  return plan;
}

}  // namespace

Plan plan_grid(const PlanProblem& p, const GpuDevice& d) {
  Plan best{SequenceKernel::grid};
  best.obstacle = why_never(p, d);
  if (!best.obstacle.empty()) return best;
  const GridCell cell = cell_of(p);
  const int item = item_size(p.dtype), most_tiles = grid_shape(cell, p.backward, item).tiles;
  for (int tiles = 1; tiles <= most_tiles; ++tiles) {
    for (int warps = kGridWarps; warps >= 1; warps /= 2) {
      for (int rows = kClusterRows; rows <= kGridRows; rows += kClusterRows) {
        GridWork work;
        if (!grid_work(work, cell, p.H, tiles, warps, rows, p.backward, item)) continue;
        const int64_t groups = d.sms / (int64_t(work.size) * p.directions * p.at_once);
        if (work.shared > d.shared_per_cta || groups == 0) continue;
        work.groups = int(groups);
        const Plan plan = plan_of(work, p, d);
        if (best.ctas == 0 || plan.us_per_step < best.us_per_step) best = plan;
        if (rows >= p.B) break;
      }
    }
  }
  std::ostringstream text;
  const int64_t bytes = int64_t(p.gates) * p.H * p.H * item_size(p.dtype);
  if (best.ctas == 0) {
    text << "W_hh takes " << bytes / 1024 << " KB, more than all SMs of " << d.title << " can hold"
         << side_by_side(p);
    best.obstacle = text.str();
    return best;
  }
  text << "W_hh (" << bytes / 1024 << " KB) stays on chip, " << best.resident_bytes / 1024
       << " KB in each of " << best.grid.size << " CTAs";
  if (best.grid.groups > 1) text << "; " << best.grid.groups << " such groups share the batch";
  text << words_of(p);
  best.reason = text.str();
  return best;
}

}  // namespace fusedrnn
