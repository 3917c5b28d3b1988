// The cluster kernels' launchers of one cell and dtype, instantiated in cluster_<dtype>.cu; and
// what decides whether they serve a call (sequence.cpp).
#pragma once
#include "../plan.h"
#include "../sequence.h"

namespace fusedrnn {
namespace cuda {

// Each asks the driver first. They set `refused` and launch nothing where it cannot place such a
// cluster, and return why; else null when all is well, or what is wrong. They need no workspace.
template <class Cell, DType kType>
struct Clustered {
  static const char* forward(const SequenceForward*, int directions, const ClusterWork&,
                             void* workspace, void* stream, bool& refused);
  static const char* backward(const SequenceBackward*, int directions, const ClusterWork&,
                              void* stream, bool& refused);
};

// The GPU that is current, for the planner; null where the driver does not say.
const GpuDevice* current_gpu();

// How many clusters of so many CTAs that have an SM each the current GPU can hold now; else why
// none.
int cluster_room(int size, const char*& why_none);

}  // namespace cuda
}  // namespace fusedrnn
