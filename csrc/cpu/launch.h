// How many threads run a layer's directions, and with which dtype.
#pragma once
#include <omp.h>
#include <unistd.h>

#include "../sequence.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

constexpr const char* kNoMemory = "out of memory for the CPU sequence kernel's buffers";

// A worker per this many multiply-adds of one step: below that a barrier costs more than it saves.
constexpr int64_t kWorkPerThread = 32768;
// A gate's own maths, in multiply-adds.
constexpr int64_t kGateWork = 8;

// Multiply-adds of one step, or what takes as long.
inline int64_t work_of_step(const SequenceSizes& n, int gates) {
  return n.B * n.H * gates * (n.options.independent ? kGateWork : n.P);
}

// Threads pay that never wait for each other from this many multiply-adds each on, about 10 us:
// those of both directions side by side, and crews.
constexpr int64_t kWorkApart = 262144;
// The least rows of a crew, for it reads all weights in every step.
constexpr int64_t kRowsOfCrew = 4;

// The most weights, in bytes, that stay in a core's L2: three quarters of it.
inline int64_t most_weights() {
  static const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return (found > 0 ? found : int64_t(1) << 20) / 4 * 3;
}

// How many threads run one direction, and how many crews (product.h) they are. A barrier between
// two cores, and what they hand each other, take 7 to 20 us a step (docs/notebook-cpu.md), so as
// few as can be meet in one.
struct Team {
  int threads = 1, crews = 1;

  Team(const SequenceSizes& n, int gates, int most) {
    const int64_t step = work_of_step(n, gates), weights = gates * n.H * n.depth();
    const bool apart = n.T > 1 && weights * (n.dtype == DType::f64 ? 8 : 4) <= most_weights();
    const int64_t rows = apart ? n.B / kRowsOfCrew : 1, paying = n.T * step / kWorkApart;
    const int64_t alone = rows < paying ? rows : paying, meeting = step / kWorkPerThread;
    const int64_t wanted = alone > meeting ? alone : meeting;
    threads = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
    crews = int(rows < 1 ? 1 : rows < threads ? rows : threads);
    while (threads % crews) --crews;
  }
};

template <class Pass>
void side_by_side(Pass& first, Pass& second, const Team& each) {
  const int threads = each.threads;
#pragma omp parallel num_threads(2 * threads)
  {
    const int index = omp_get_thread_num(), count = omp_get_num_threads();
    if (count == 2 * threads) {
      (index < threads ? first : second).run(Worker{index % threads, threads}, each.crews);
    } else {  // fewer threads than asked for
      first.run(Worker{index, count}, 1);
      second.run(Worker{index, count}, 1);
    }
  }
}

template <class Pass>
void alone(Pass& pass, const Team& team) {
  if (team.threads == 1) return pass.run(Worker{0, 1}, 1);
#pragma omp parallel num_threads(team.threads)
  {
    const int count = omp_get_num_threads();
    pass.run(Worker{omp_get_thread_num(), count}, count == team.threads ? team.crews : 1);
  }
}

// The layer's directions on as many threads as they are worth.
template <class Pass, class Args>
const char* run(const Args* args, int directions, int gates) {
  const SequenceSizes& n = args[0].n;
  const Team team(n, gates, n.threads);
  Pass first(args[0]);
  if (!first.allocated()) return kNoMemory;
  if (directions == 1) {
    alone(first, team);
    return nullptr;
  }
  Pass second(args[1]);
  if (!second.allocated()) return kNoMemory;
  if (n.threads > 1 && n.T * work_of_step(n, gates) >= kWorkApart) {
    side_by_side(first, second, Team(n, gates, n.threads / 2));
  } else {
    alone(first, team);
    alone(second, team);
  }
  return nullptr;
}

// Pass<Cell, D> for the call's dtype D.
template <class Cell, template <class, class> class Pass, class Args>
const char* run_typed(const Args* args, int directions) {
  switch (args[0].n.dtype) {
#ifndef FRNN_BF16_DOT  // which changes nothing for the others: dispatch.cpp gives them to avx512
    case DType::f64:
      return run<Pass<Cell, double>>(args, directions, Cell::kGates);
    case DType::f32:
      return run<Pass<Cell, float>>(args, directions, Cell::kGates);
    case DType::f16:
      return run<Pass<Cell, f16>>(args, directions, Cell::kGates);
#endif
    case DType::bf16:
      return run<Pass<Cell, bf16>>(args, directions, Cell::kGates);
    default:
      return "unknown dtype";
  }
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
