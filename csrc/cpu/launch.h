// How many threads run a layer's directions, and with which dtype.
#pragma once
#include <omp.h>

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

inline int workers(const SequenceSizes& n, int gates) {
  const int64_t most = work_of_step(n, gates) / kWorkPerThread;
  return int(most < 1 ? 1 : most < n.threads ? most : n.threads);
}

// Both directions side by side pay from this many multiply-adds each on, about 10 us.
constexpr int64_t kWorkPerDirection = 262144;

template <class Pass>
void side_by_side(Pass& first, Pass& second, int each) {
#pragma omp parallel num_threads(2 * each)
  {
    const int index = omp_get_thread_num(), count = omp_get_num_threads();
    if (count == 2 * each) {
      (index < each ? first : second).run(Worker{index % each, each});
    } else {  // fewer threads than asked for
      first.run(Worker{index, count});
      second.run(Worker{index, count});
    }
  }
}

template <class Pass>
void alone(Pass& pass, int threads) {
  if (threads == 1) return pass.run(Worker{0, 1});
#pragma omp parallel num_threads(threads)
  pass.run(Worker{omp_get_thread_num(), omp_get_num_threads()});
}

// The layer's directions on as many threads as they are worth.
template <class Pass, class Args>
const char* run(const Args* args, int directions, int gates) {
  const SequenceSizes& n = args[0].n;
  const int threads = workers(n, gates);
  Pass first(args[0]);
  if (!first.allocated()) return kNoMemory;
  if (directions == 1) {
    alone(first, threads);
    return nullptr;
  }
  Pass second(args[1]);
  if (!second.allocated()) return kNoMemory;
  if (n.threads > 1 && n.T * work_of_step(n, gates) >= kWorkPerDirection) {
    side_by_side(first, second, threads > n.threads / 2 ? n.threads / 2 : threads);
  } else {
    alone(first, threads);
    alone(second, threads);
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
