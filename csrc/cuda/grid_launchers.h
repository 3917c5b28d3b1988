// The grid kernels' launchers of one cell and dtype, instantiated in grid_<dtype>.cu.
#pragma once
#include "../grid_tile.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cuda {

// As Clustered (cluster_launchers.h): they set `refused` and launch nothing where the GPU cannot
// hold all CTAs at once, and return why; else null when all is well, or what is wrong.
template <class Cell, DType kType>
struct Gridded {
  static const char* forward(const SequenceForward*, int directions, const GridWork&, void* stream,
                             bool& refused);
  static const char* backward(const SequenceBackward*, int directions, const GridWork&,
                              void* stream, bool& refused);
};

}  // namespace cuda
}  // namespace fusedrnn
