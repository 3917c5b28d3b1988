// The CPU sequence kernels with layer normalisation, of the cells that have it. As sequence.cpp.
#include <cstring>

#include "../cells.h"
#include "launch.h"
#include "normed_backward.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class Cell>
const char* normed_forward(const SequenceForward* args, int directions, void*, void*) {
  if constexpr (Cell::kNorms > 0) return run_typed<Cell, NormedForwardPass>(args, directions);
  return "the cell has no layer normalisation";
}

template <class Cell>
const char* normed_backward(const SequenceBackward* args, int directions, void*, void*) {
  if constexpr (Cell::kNorms > 0) return run_typed<Cell, NormedBackwardPass>(args, directions);
  return "the cell has no layer normalisation";
}

const SequenceKernels* normed_kernels(const char* cell) {
  static const SequenceKernels kernels[] = {
#define X(...) \
  {__VA_ARGS__::kName, normed_forward<__VA_ARGS__>, normed_backward<__VA_ARGS__>, nullptr},
      FRNN_FOR_EACH_CELL(X)
#undef X
  };
  for (const SequenceKernels& k : kernels)
    if (std::strcmp(k.cell, cell) == 0) return &k;
  return nullptr;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
