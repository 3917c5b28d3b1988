// The grid kernels' launchers of one cell and dtype, instantiated in grid_<dtype>.cu.
#pragma once
#include "../grid_tile.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cuda {

// As Clustered (cluster_launchers.h): they set `refused` and launch nothing where the GPU cannot
// hold all CTAs at once, and return why; else null when all is well, or what is wrong. Forward
// needs workspace_bytes for each direction where it saves nothing.
template <class Cell, DType kType>
struct Gridded {
  static const char* forward(const SequenceForward*, int directions, const GridWork&,
                             void* workspace, void* stream, bool& refused);
  static const char* backward(const SequenceBackward*, int directions, const GridWork&,
                              void* stream, bool& refused);
  // The operands of a second product, in all steps: of n.dtype, whatever kType.
  static size_t workspace_bytes(const SequenceSizes& n) {
    return Cell::kSecond > 0 ? size_t(n.T * n.B * n.H * item_size(n.dtype) + 255) / 256 * 256 : 0;
  }
};

}  // namespace cuda
}  // namespace fusedrnn
