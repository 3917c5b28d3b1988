// The CPU sequence kernels of every cell and dtype. Compiled once per instruction set (FRNN_ISA).
#include <omp.h>

#include <cstring>

#include "../cells.h"
#include "backward.h"
#include "isa.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

constexpr const char* kNoMemory = "out of memory for the CPU sequence kernel's buffers";

// A worker per this many multiply-adds of one step: below that a barrier costs more than it saves.
constexpr int64_t kWorkPerThread = 32768;

int workers(const SequenceSizes& n, int gates) {
  const int64_t most = n.B * n.H * n.P * gates / kWorkPerThread;
  return int(most < 1 ? 1 : most < n.threads ? most : n.threads);
}

template <class Pass>
const char* run(Pass&& pass, int threads) {
  if (!pass.allocated()) return kNoMemory;
  if (threads == 1) {
    pass.run(Worker{0, 1});
    return nullptr;
  }
#pragma omp parallel num_threads(threads)
  pass.run(Worker{omp_get_thread_num(), omp_get_num_threads()});
  return nullptr;
}

// Pass<Cell, D> for the call's dtype D, on as many threads as it is worth.
template <class Cell, template <class, class> class Pass, class Args>
const char* launch(const Args& given, void*, void*) {
  Args a = given;
  a.n.threads = workers(a.n, Cell::kGates);
  switch (a.n.dtype) {
    case DType::f64:
      return run(Pass<Cell, double>(a), a.n.threads);
    case DType::f32:
      return run(Pass<Cell, float>(a), a.n.threads);
    case DType::bf16:
      return run(Pass<Cell, bf16>(a), a.n.threads);
    case DType::f16:
      return run(Pass<Cell, f16>(a), a.n.threads);
  }
  return "unknown dtype";
}

size_t no_workspace(const SequenceSizes&, bool) { return 0; }

const SequenceKernels kKernels[] = {
#define X(...)                                                                              \
  {__VA_ARGS__::kName, launch<__VA_ARGS__, ForwardPass>, launch<__VA_ARGS__, BackwardPass>, \
   no_workspace},
    FRNN_FOR_EACH_CELL(X)
#undef X
};

const SequenceKernels* sequence_kernels(const char* cell) {
  for (const SequenceKernels& k : kKernels)
    if (std::strcmp(k.cell, cell) == 0) return &k;
  return nullptr;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
