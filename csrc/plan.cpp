// The stepwise kernel's plan, and the choice among the kernels.
#include "plan.h"

#include <algorithm>
#include <sstream>

namespace fusedrnn {
namespace {

// The model of a step, to be replaced by what `python -m benchmarks gpu-check` measures:
// microseconds from one launch to the next, clocks of a tile's way from L2 through two barriers,
// clocks of a cell's maths with its loads and stores.
constexpr double kLaunchUs = 2.2, kTileClocks = 700, kEpilogueClocks = 1500;
// Of a row's way through its moments, its cell and back to memory, for as many units as threads.
constexpr double kRowClocks = 6000;

// One launch of a step: `terms` products of [rows, depth] by [depth, units * gates]. Without gates
// it is one of whole rows.
struct Launch {
  int gates, terms;
  int64_t units, depth;
};

// The launches of each step: csrc/cuda/sequence.cuh makes them.
std::vector<Launch> launches_of_a_step(const PlanProblem& p) {
  const int first = p.gates - p.second;
  const int64_t width = p.full ? p.P + p.H : p.P;
  const Launch row = {0, 0, p.H, 0};  // forward_row, backward_row
  std::vector<Launch> launches;
  if (!p.backward) {
    if (p.second > 0) launches.push_back({first, 1, p.H, p.P});  // forward_operand
    if (p.layer_norm) {
      launches.push_back({1, 1, p.gates * p.H, p.P});  // forward_product
      launches.push_back(row);
    } else {
      launches.push_back({p.second > 0 ? p.second : p.gates, 1, p.H, width});  // forward_step
    }
    if (p.projection) launches.push_back({1, 1, p.P, p.H});  // forward_projection
  } else {
    const bool dh = p.projection, apart = p.full || p.layer_norm;
    const int terms = apart ? 0 : first;
    if (apart) launches.push_back({1, 1, width, p.gates * p.H});   // backward_arrive
    if (dh) launches.push_back({1, terms, p.P, p.H});              // backward_state
    if (dh && p.layer_norm) launches.push_back({1, 1, p.H, p.P});  // backward_hidden
    const Launch step = {1, dh ? 1 : terms, p.H, dh ? p.P : p.H};  // backward_step
    launches.push_back(p.layer_norm ? row : step);
    if (p.second > 0) launches.push_back({1, p.second, p.H, p.H});  // backward_operand
  }
  return launches;
}

}  // namespace

const char* name_of(SequenceKernel kernel) {
  switch (kernel) {
    case SequenceKernel::cluster:
      return "cluster";
    case SequenceKernel::grid:
      return "grid";
    case SequenceKernel::stepwise:
      break;
  }
  return "stepwise";
}

Plan plan_stepwise(const PlanProblem& p, const GpuDevice& d) {
  using Tile = StepwiseTile;
  const int item = item_size(p.dtype);
  const bool tensor_cores = item == 2 && d.arch >= 80;
  const int fma = tensor_cores ? d.mma16 : item == 8 ? d.fma64 : d.fma32;
  Plan plan{SequenceKernel::stepwise};
  plan.rows = Tile::kRows, plan.units = Tile::kUnits;
  plan.threads = Tile::kThreads;
  const int bound = Tile::ctas_per_sm(item, tensor_cores);
  plan.registers =
      std::min(kRegistersPerThread, kRegistersPerSm / (Tile::kThreads * bound) / 8 * 8);
  plan.ctas_per_sm = bound;
  const auto launches = launches_of_a_step(p);
  for (const Launch& l : launches) {
    if (l.gates == 0) {
      const double clocks = kRowClocks * ceil_div(l.units, Tile::kRowThreads);
      const int64_t rows = ceil_div(p.directions * p.B, 2 * int64_t(d.sms));  // two CTAs an SM
      plan.us_per_step += kLaunchUs + rows * clocks / (d.ghz * 1e3);
      continue;
    }
    const int depth = Tile::depth(l.gates, item);
    const int shared = Tile::shared(l.gates, item, !p.backward);
    const int64_t ctas = p.directions * Tile::ctas(p.B, l.units);  // side by side
    const int fit = std::min(bound, d.shared_per_sm / (shared + kSharedReserved));
    plan.ctas = std::max(plan.ctas, ctas);
    plan.depth = std::max(plan.depth, depth);
    plan.shared = std::max(plan.shared, shared);
    plan.ctas_per_sm = std::min(plan.ctas_per_sm, fit);
    const int64_t rounds = ceil_div(ctas, int64_t(d.sms) * fit);
    plan.rounds = std::max(plan.rounds, rounds);
    const int64_t at_once = int64_t(d.sms) * fit / ctas;
    plan.at_once = plan.at_once == 0 ? at_once : std::min(plan.at_once, at_once);
    const int64_t beside = std::min<int64_t>(fit, ceil_div(ctas, d.sms));
    const double tile = double(Tile::kRows) * Tile::kUnits * l.gates * depth * beside / fma;
    const double tiles = double(l.terms) * ceil_div(l.depth, depth);
    const double clocks = tiles * std::max(tile, kTileClocks) + kEpilogueClocks;
    plan.us_per_step += kLaunchUs + rounds * clocks / (d.ghz * 1e3);
  }
  // Backward ends with one more product, which brings the gradient of h0.
  plan.launches = p.T * int64_t(launches.size()) + (p.backward ? 1 : 0);
  std::ostringstream reason;
  reason << "serves every size and type; " << plan.ctas << " CTAs on " << d.sms << " SMs that hold "
         << plan.ctas_per_sm << " each; " << (tensor_cores ? "tensor cores" : "multiply-adds");
  plan.reason = reason.str();
  return plan;
}

std::vector<Plan> plans(const PlanProblem& p, const GpuDevice& d) {
  std::vector<Plan> all = {plan_cluster(p, d), plan_grid(p, d), plan_stepwise(p, d)};
  std::stable_sort(all.begin(), all.end(), [](const Plan& a, const Plan& b) {
    const bool serves = a.obstacle.empty();
    return serves != b.obstacle.empty() ? serves : a.us_per_step < b.us_per_step;
  });
  return all;
}

}  // namespace fusedrnn
