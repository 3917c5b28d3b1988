// The stepwise launchers of one cell and dtype. Instantiated in sequence_<dtype>.cu, one file a
// dtype so that the four compile side by side; gathered in sequence.cpp, which needs no CUDA
// header.
#pragma once
#include "../cells.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cuda {

template <class Cell, DType kType>
struct Stepwise {
  static const char* forward(const SequenceForward*, int directions, void* workspace, void* stream);
  static const char* backward(const SequenceBackward*, int directions, void* workspace,
                              void* stream);
  static size_t workspace_bytes(const SequenceSizes&, bool backward);
};

}  // namespace cuda
}  // namespace fusedrnn
