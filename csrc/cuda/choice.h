// Which kernel serves a call: the planner's choice for the current GPU, and what the driver says to
// it at the moment.
#pragma once
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../cells.h"
#include "cluster_launchers.h"
#include "grid_launchers.h"

namespace fusedrnn {
namespace cuda {

// FUSEDRNN_CUDA_KERNEL=cluster|grid|stepwise asks for one kernel instead of the planner's choice.
inline const char* kernel_asked_for() {
  const char* name = std::getenv("FUSEDRNN_CUDA_KERNEL");
  return name == nullptr ? "" : name;
}

inline bool operator==(const PlanProblem& a, const PlanProblem& b) {
  return a.gates == b.gates && a.states == b.states && a.second == b.second && a.T == b.T &&
         a.B == b.B && a.H == b.H && a.P == b.P && a.dtype == b.dtype &&
         a.projection == b.projection && a.backward == b.backward && a.directions == b.directions &&
         a.stepwise_only == b.stepwise_only && a.tf32 == b.tf32 && a.at_once == b.at_once;
}

// The plans of the kernels with W_hh on chip that are to be tried for a call before the stepwise
// one, or the one that is asked for. Remembered: calls come in rows of the same sizes, and planning
// takes longer than a launch.
inline const std::vector<Plan>& resident_plans(const PlanProblem& p, const GpuDevice& gpu,
                                               const char* asked) {
  struct Memory {
    PlanProblem problem;
    const GpuDevice* gpu = nullptr;
    std::string asked;
    std::vector<Plan> found;
  };
  static thread_local Memory last[2];  // forward and backward
  Memory& memory = last[p.backward];
  if (memory.gpu == &gpu && memory.asked == asked && memory.problem == p) return memory.found;
  memory = {p, &gpu, asked, {}};
  if (memory.asked == "cluster") {
    memory.found = {plan_cluster(p, gpu)};
  } else if (memory.asked == "grid") {
    memory.found = {plan_grid(p, gpu)};
  } else {
    for (Plan& plan : plans(p, gpu)) {
      if (plan.kernel == SequenceKernel::stepwise) break;
      memory.found.push_back(std::move(plan));
    }
  }
  return memory.found;
}

// run(kernels, work, refused) of the plan's kernel.
template <class Cell, DType kType, class Run>
const char* launched(const Plan& plan, bool& refused, Run run) {
  if (plan.kernel == SequenceKernel::cluster) {
    return run(Clustered<Cell, kType>(), plan.work, refused);
  }
  return run(Gridded<Cell, kType>(), plan.grid, refused);
}

// Serves a call by a kernel with W_hh on chip and sets `wrong`, or returns false: it is the
// stepwise kernel's. run(kernels, work, refused) launches; where it is refused the next best is
// tried.
template <class Cell, class Args, class Run>
bool by_resident(const Args* p, int directions, bool backward, const char*& wrong, Run run) {
  const char* asked = kernel_asked_for();
  const bool stepwise = std::strcmp(asked, "stepwise") == 0;
  const bool forced = std::strcmp(asked, "cluster") == 0 || std::strcmp(asked, "grid") == 0;
  const SequenceSizes& n = p->n;
  wrong = nullptr;
  if (*asked != '\0' && !forced && !stepwise) {
    wrong = "FUSEDRNN_CUDA_KERNEL must be cluster, grid or stepwise, or not set";
    return true;
  }
  const GpuDevice* gpu = current_gpu();
  if (n.B == 0 || gpu == nullptr || stepwise) return false;
  PlanProblem problem = {Cell::kGates, Cell::kStates, Cell::kSecond,
                         n.T,          n.B,           n.H,
                         n.P,          n.dtype,       p->weight_hr != nullptr,
                         backward,     directions,    n.options.stepwise_only()};
  problem.tf32 = n.tf32, problem.at_once = n.at_once;
  for (const Plan& plan : resident_plans(problem, *gpu, asked)) {
    bool refused = !plan.obstacle.empty();
    const char* why = plan.obstacle.c_str();
    if (!refused) {
      why = n.dtype == DType::bf16  ? launched<Cell, DType::bf16>(plan, refused, run)
            : n.dtype == DType::f16 ? launched<Cell, DType::f16>(plan, refused, run)
                                    : launched<Cell, DType::f32>(plan, refused, run);
    }
    if (refused && !forced) continue;
    static thread_local std::string text;
    if (refused) text = std::string("FUSEDRNN_CUDA_KERNEL=") + asked + ", but " + why;
    wrong = refused ? text.c_str() : why;
    return true;
  }
  return false;
}

}  // namespace cuda
}  // namespace fusedrnn
