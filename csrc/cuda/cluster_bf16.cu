// The cluster kernels of every cell for bfloat16 data.
#include "../cells/rnn.h"
#include "cluster.cuh"

namespace fusedrnn {
namespace cuda {

#define X(...) template struct Clustered<__VA_ARGS__, DType::bf16>;
FRNN_FOR_EACH_CELL(X)
#undef X

#ifndef FUSEDRNN_CUDA_HOST
int cluster_room(int size, const char*& why_none) {
  ClusterWork work = {};
  work.size = size, work.warps = 8, work.shared = 128 << 10;
  ClusterLaunch launch;
  // Any cell's would do: what is asked is how many clusters of this size the card holds at once.
  why_none = launch.prepare(cluster_forward<RNN, __nv_bfloat16, 0, 1>, work, 1, nullptr);
  return launch.at_once;
}
#endif

}  // namespace cuda
}  // namespace fusedrnn
