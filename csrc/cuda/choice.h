// Which kernel serves a call: the planner's choice for the current GPU, and what the driver says to
// it at the moment.
#pragma once
#include <cstdlib>
#include <cstring>
#include <string>

#include "../cells.h"
#include "cluster_launchers.h"

namespace fusedrnn {
namespace cuda {

// FUSEDRNN_CUDA_KERNEL=cluster|stepwise asks for one kernel instead of the planner's choice.
inline const char* kernel_asked_for() {
  const char* name = std::getenv("FUSEDRNN_CUDA_KERNEL");
  return name == nullptr ? "" : name;
}

inline bool operator==(const PlanProblem& a, const PlanProblem& b) {
  return a.gates == b.gates && a.states == b.states && a.second == b.second && a.T == b.T &&
         a.B == b.B && a.H == b.H && a.P == b.P && a.dtype == b.dtype &&
         a.projection == b.projection && a.backward == b.backward && a.directions == b.directions &&
         a.stepwise_only == b.stepwise_only;
}

// The cluster kernel's plan if it is the one to run, else null. Remembered: calls come in rows of
// the same sizes, and planning takes longer than a launch.
inline const Plan* cluster_plan(const PlanProblem& p, const GpuDevice& gpu, bool forced) {
  struct Memory {
    PlanProblem problem;
    const GpuDevice* gpu = nullptr;
    bool forced = false;
    Plan plan;
  };
  static thread_local Memory last[2];  // forward and backward
  Memory& memory = last[p.backward];
  if (memory.gpu != &gpu || memory.forced != forced || !(memory.problem == p)) {
    memory = {p, &gpu, forced, forced ? plan_cluster(p, gpu) : plans(p, gpu).front()};
  }
  return memory.plan.kernel == SequenceKernel::cluster ? &memory.plan : nullptr;
}

// Serves a call by the cluster kernel and sets `wrong`, or returns false: it is the stepwise
// kernel's. run(kernels, plan, refused) launches.
template <class Cell, class Args, class Run>
bool by_cluster(const Args* p, int directions, bool backward, const char*& wrong, Run run) {
  const char* asked = kernel_asked_for();
  const bool forced = std::strcmp(asked, "cluster") == 0;
  const SequenceSizes& n = p->n;
  wrong = nullptr;
  if (*asked != '\0' && !forced && std::strcmp(asked, "stepwise") != 0) {
    wrong = "FUSEDRNN_CUDA_KERNEL must be cluster or stepwise, or not set";
    return true;
  }
  const GpuDevice* gpu = current_gpu();
  if (n.B == 0 || gpu == nullptr || std::strcmp(asked, "stepwise") == 0) return false;
  const Plan* plan =
      cluster_plan({Cell::kGates, Cell::kStates, Cell::kSecond, n.T, n.B, n.H, n.P, n.dtype,
                    p->weight_hr != nullptr, backward, directions, n.options.stepwise_only()},
                   *gpu, forced);
  if (plan == nullptr) return false;
  bool refused = !plan->obstacle.empty();
  const char* why = plan->obstacle.c_str();
  if (!refused) {
    why = n.dtype == DType::bf16 ? run(Clustered<Cell, DType::bf16>(), plan->work, refused)
                                 : run(Clustered<Cell, DType::f16>(), plan->work, refused);
  }
  if (refused && !forced) return false;
  static thread_local std::string text;
  if (refused) text = std::string("FUSEDRNN_CUDA_KERNEL=cluster, but ") + why;
  wrong = refused ? text.c_str() : why;
  return true;
}

}  // namespace cuda
}  // namespace fusedrnn
