// The CPU sequence kernels of every cell and dtype (bfloat16 only, with FRNN_BF16_DOT). Compiled
// once per instruction set (FRNN_ISA); normed.cpp has those with layer normalisation.
#include <cstring>

#include "../cells.h"
#include "backward.h"
#include "isa.h"
#include "launch.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

const SequenceKernels* normed_kernels(const char* cell);  // normed.cpp

inline const char* run_normed(const SequenceKernels& k, const SequenceForward* args, int n) {
  return k.forward(args, n, nullptr, nullptr);
}
inline const char* run_normed(const SequenceKernels& k, const SequenceBackward* args, int n) {
  return k.backward(args, n, nullptr, nullptr);
}

template <class Cell, template <class, class> class Pass, class Args>
const char* launch(const Args* args, int directions, void*, void*) {
  if (Cell::kNorms > 0 && args[0].n.options.layer_norm)
    return run_normed(*normed_kernels(Cell::kName), args, directions);
  return run_typed<Cell, Pass>(args, directions);
}

size_t no_workspace(const SequenceSizes&, bool, bool) { return 0; }

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
