// The cluster kernel's plan: which shape, how many CTAs to a cluster, how many batch rows.
//
// What the kernel takes is in cluster_tile.h, to which both keep; time is a model.
#include <algorithm>
#include <sstream>

#include "plan.h"

namespace fusedrnn {
namespace {

// The model, in clocks: an exchange inside a cluster up to its first byte, what each further CTA
// adds, the bytes a clock after it, and the same where a cluster is one CTA; a product that waits
// for the one before; and the maths of a cell for eight rows.
constexpr double kExchange = 200, kExchangeCta = 5, kExchangePerClock = 64, kAlone = 40;
constexpr double kProductLatency = 33, kForwardGates = 130, kBackwardGates = 360;
constexpr double kSharedPerClock = 128;

// How many clusters of this size a device holds at once.
int64_t clusters(const GpuDevice& d, int size) {
  return d.gpcs == 0 ? 0 : int64_t(d.sms / d.gpcs / size) * d.gpcs;
}

std::string why_never(const PlanProblem& p, const GpuDevice& d) {
  if (d.max_cluster < 2) return d.title + " has no thread-block clusters";
  if (d.arch >= 120) return "the kernel is made for sm_90 and sm_100, whose SMs hold twice as much";
  if (p.dtype == DType::f64) return kNoTensorCores;
  if (p.projection) return "h is projected: its product would have to be resident too";
  if (p.states > kClusterStates) return "the cell has more states than it makes room for";
  if (p.stepwise_only) return kStepwiseOnly;
  if (p.second > 0) return "the cell's second product would take a second exchange in each step";
  if (std::max(p.T, p.B) > 1 << 30) return "it counts steps and rows in 32 bits";
  return "";
}

// Clocks of one step of one cluster.
double clocks(const ClusterWork& w, const PlanProblem& p, const GpuDevice& d) {
  const int columns = w.rows / kClusterRows;
  const int item = item_size(p.dtype), products = products_of(p);
  const double depth = double(w.spans) * cluster_span(item);
  const double product = double(w.tiles) * kClusterTile * depth * w.rows * products / d.mma16;
  // Each warp reads all of B, and what of A is not in registers.
  const double read = double(w.warps) * depth * w.rows * item + (w.shared - w.rest);
  // Backward has a sum for each tile of A besides, and takes eight rows after eight.
  const int sums = (p.backward ? kClusterBackward : kClusterForward)[w.shape].sums;
  const int parts = products == 6 ? 3 : 1;
  const double chain = w.spans * 2.0 * parts * columns / sums * kProductLatency;
  const double gates = (p.backward ? kBackwardGates : kForwardGates) * (1 + columns) / 2;
  const double bytes = double(w.size) * w.units * w.rows * (p.backward ? 4 : item);
  const double exchange =
      w.size == 1 ? kAlone : kExchange + kExchangeCta * w.size + bytes / kExchangePerClock;
  return std::max({product, read / kSharedPerClock, chain}) + gates + exchange;
}

Plan plan_of(const ClusterWork& w, const PlanProblem& p, const GpuDevice& d) {
  Plan plan{SequenceKernel::cluster};
  const int64_t groups = p.directions * ceil_div(p.B, w.rows);
  plan.work = w;
  plan.rows = w.rows, plan.units = w.units, plan.cluster = w.size;
  plan.ctas = groups * w.size;
  plan.threads = 32 * w.warps;
  const int bound = 32 * (p.backward ? kClusterBackward : kClusterForward)[w.shape].warps;
  plan.registers = std::min(kRegistersPerThread, kRegistersPerSm / bound / 8 * 8);
  plan.shared = w.shared;
  plan.ctas_per_sm = 1;
  plan.resident_bytes = int64_t(w.tiles) * w.spans * kClusterTileBytes;
  plan.launches = 1;
  plan.rounds = ceil_div(groups, clusters(d, w.size));
  plan.at_once = clusters(d, w.size) / groups;
  plan.us_per_step = plan.rounds * clocks(w, p, d) / (d.ghz * 1e3);
  return plan;
}

}  // namespace

Plan plan_cluster(const PlanProblem& p, const GpuDevice& d) {
  Plan best{SequenceKernel::cluster};
  best.obstacle = why_never(p, d);
  if (!best.obstacle.empty()) return best;
  for (int shape = 0; shape < kClusterShapes; ++shape) {
    for (int size = 1; size <= d.max_cluster && clusters(d, size) > 0; size *= 2) {
      for (int rows = kClusterRows; rows <= 4 * kClusterRows; rows *= 2) {
        ClusterWork work;
        if (!cluster_work(work, p.gates, p.H, shape, size, rows, p.backward, item_size(p.dtype))) {
          continue;
        }
        if (work.shared > d.shared_per_cta) continue;
        const Plan plan = plan_of(work, p, d);
        if (p.at_once > 1 && plan.at_once < p.at_once) continue;
        if (best.ctas == 0 || plan.us_per_step < best.us_per_step) best = plan;
        if (rows >= p.B) break;
      }
    }
  }
  std::ostringstream text;
  const int64_t bytes = int64_t(p.gates) * p.H * p.H * item_size(p.dtype);
  if (best.ctas == 0) {
    text << "W_hh takes " << bytes / 1024 << " KB, more than the largest cluster of " << d.title
         << " can hold" << side_by_side(p);
    best.obstacle = text.str();
    return best;
  }
  text << "W_hh (" << bytes / 1024 << " KB) stays on chip, " << best.resident_bytes / 1024
       << " KB in each of " << best.cluster << " CTAs";
  text << words_of(p);
  best.reason = text.str();
  return best;
}

}  // namespace fusedrnn
