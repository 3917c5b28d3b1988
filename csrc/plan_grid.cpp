// What a kernel would take that keeps W_hh on all SMs for a whole sequence: capacity, tiles, time.
//
// W_hh is the A operand of mma.sync m16n8k16, in registers as far as they go and in shared memory
// for the rest; h is B, eight batch rows to a tile. A tile of 16 gate rows holds 4 units of an LSTM
// (all four gates of a unit then meet in one warp), else 16 units of one gate. Float32 keeps the
// same places with multiply-adds instead: its products are ieee, which tensor cores do not have.
#include <algorithm>
#include <limits>
#include <sstream>

#include "plan.h"

namespace fusedrnn {
namespace {

// Registers of a thread that are no weights. Forward: 182 - 128 as compiled for sm_90a at H = 512
// on 16 CTAs; backward, whose accumulators cover all of H: 254 - 128.
constexpr int kForwardRegisters = 54, kBackwardRegisters = 126;
// The model, in clocks: an exchange of h across the grid, the maths of a cell, and what one SM gets
// of L2 in bytes a clock when all of them read.
constexpr double kGridExchange = 1400;
constexpr double kForwardGates = 130, kBackwardGates = 360;
constexpr double kL2PerClock = 24, kSharedPerClock = 128;
constexpr int kMaxRows = 64;  // batch rows of one pass: eight tiles of eight

int units_of_a_tile(const PlanProblem& p) { return p.gates == 4 ? 4 : 16; }

std::string why_never(const PlanProblem& p) {
  if (p.stepwise_only) return kStepwiseOnly;
  if (p.dtype == DType::f64) return "float64 is the stepwise kernel's alone";
  if (p.projection) return "h is projected: its product would have to be resident too";
  return "";
}

// h before and after the step, each row with 16 bytes against bank conflicts, and the barriers;
// backward sends partial sums in float32 instead.
int64_t exchange_bytes(const PlanProblem& p, int64_t rows) {
  return 2 * rows * (ceil_div(p.H, 16) * 16 + 8) * (p.backward ? 4 : item_size(p.dtype)) + 256;
}

// Where `count` CTAs that share W_hh would keep it, `rows` batch rows at a time. False: they
// cannot.
bool reside(Plan& plan, const PlanProblem& p, const GpuDevice& d, int64_t count, int64_t rows) {
  const int item = item_size(p.dtype), tile_units = units_of_a_tile(p);
  const int64_t depth = ceil_div(p.H, 16) * 16;
  plan.rows = rows;
  plan.units = ceil_div(ceil_div(p.H, count), tile_units) * tile_units;
  const int64_t tiles = ceil_div(p.gates * plan.units, 16);
  plan.resident_bytes = tiles * 16 * depth * item;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int warps = 4; warps <= 16; warps += 4) {
    const int threads = 32 * warps, used = p.backward ? kBackwardRegisters : kForwardRegisters;
    const int most = std::min(kRegistersPerThread, kRegistersPerSm / threads / 8 * 8);
    const int64_t wanted = ceil_div(tiles, warps) * 16 * depth * item / 128;  // of a thread
    const int64_t kept = std::min<int64_t>(wanted, std::max(0, (most - used) / 4 * 4));
    const int64_t rest = std::max<int64_t>(0, plan.resident_bytes - kept * threads * 4);
    if (used > most || rest >= least) continue;
    least = rest;
    plan.threads = threads;
    plan.registers = int(used + kept);
  }
  if (least + exchange_bytes(p, rows) > d.shared_per_cta) return false;
  plan.shared = int(least + exchange_bytes(p, rows));
  plan.ctas_per_sm = 1;
  return true;
}

// Clocks of one pass of one CTA, without the exchange.
double clocks(const Plan& plan, const PlanProblem& p, const GpuDevice& d) {
  const double multiply_adds = double(p.gates) * plan.units * p.H * plan.rows;
  const double product = multiply_adds / (p.dtype == DType::f32 ? d.fma32 : d.mma16);
  const double in_shared = double(plan.shared - exchange_bytes(p, plan.rows)) / kSharedPerClock;
  return std::max(product, in_shared) + (p.backward ? kBackwardGates : kForwardGates);
}

// Takes `candidate` if it is faster than what there is.
void keep_faster(Plan& best, const Plan& candidate) {
  if (best.ctas == 0 || candidate.us_per_step < best.us_per_step) best = candidate;
}

Plan concluded(Plan best, const PlanProblem& p, const GpuDevice& d) {
  std::ostringstream text;
  const int64_t bytes = int64_t(p.gates) * p.H * p.H * item_size(p.dtype);
  if (best.ctas == 0) {
    text << "W_hh takes " << bytes / 1024 << " KB, more than all SMs of " << d.title << " can hold";
    best.obstacle = text.str();
  } else {
    best.launches = 1;
    text << "W_hh (" << bytes / 1024 << " KB) stays on chip, " << best.resident_bytes / 1024
         << " KB in each of " << ceil_div(p.H, best.units) << " CTAs";
    best.reason = text.str();
  }
  return best;
}

}  // namespace

Plan plan_grid(const PlanProblem& p, const GpuDevice& d) {
  Plan best{SequenceKernel::grid};
  best.obstacle = d.arch < 80 ? d.title + " is older than sm_80" : why_never(p);
  if (!best.obstacle.empty()) return best;
  // Each direction splits its batch over groups of CTAs; each group holds all of W_hh.
  for (int64_t groups = 1; groups * p.directions <= d.sms; groups *= 2) {
    const int64_t mine = ceil_div(p.B, groups);
    for (int64_t rows = 8; rows <= kMaxRows; rows *= 2) {
      Plan plan{SequenceKernel::grid};
      if (!reside(plan, p, d, d.sms / (groups * p.directions), rows)) break;
      plan.rounds = ceil_div(mine, rows);
      plan.ctas = groups * p.directions * ceil_div(p.H, plan.units);
      // Forward: every CTA reads h. Backward: it writes and reads partial sums in float32.
      const double bytes = double(mine) * p.H * (p.backward ? 8 : item_size(p.dtype));
      const double exchange = (kGridExchange + bytes / kL2PerClock) * (p.second > 0 ? 2 : 1);
      plan.us_per_step = (exchange + plan.rounds * clocks(plan, p, d)) / (d.ghz * 1e3);
      keep_faster(best, plan);
      if (rows >= mine) break;
    }
    if (groups >= p.B) break;
  }
  return concluded(best, p, d);
}

}  // namespace fusedrnn
