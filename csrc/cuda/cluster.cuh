// The cluster kernels' host side: which instance serves a plan, whether the driver can place its
// clusters, and the launch. One launch runs a whole sequence, both directions of a layer at once.
#pragma once
#include "cluster_backward.cuh"
#include "cluster_forward.cuh"
#include "cluster_launchers.h"

namespace fusedrnn {
namespace cuda {

// What the planner knows too (plan_cluster.cpp).
template <class Cell>
constexpr bool kClusterServes = Cell::kSecond == 0 && Cell::kStates <= kClusterStates;

template <class Problem>
using ClusterKernel = void (*)(const ClusterCall<Problem>);

#ifndef FUSEDRNN_CUDA_HOST
// A launch, and how many of its clusters the GPU can hold at once: asked under the limits of the
// moment (other tenants, fewer SMs). All CTAs of a cluster run at once by definition; where there
// is room for none, nobody must wait for what never starts.
struct ClusterLaunch {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = {};
  int at_once = 0;

  static bool failed(cudaError_t error) {
    if (error != cudaSuccess) (void)cudaGetLastError();  // so that nobody reports it a second time
    return error != cudaSuccess;
  }

  // Returns why the kernel cannot be launched, or null.
  template <class Kernel>
  const char* prepare(Kernel kernel, const ClusterWork& work, int64_t clusters,
                      cudaStream_t stream) {
    const void* symbol = reinterpret_cast<const void*>(kernel);
    cudaFuncAttributes about;
    if (failed(cudaFuncGetAttributes(&about, symbol))) return "the driver has no cluster kernel";
    if (about.ptxVersion < 90 || about.ptxVersion >= 120) {
      return "the library has no code of the cluster kernel for this GPU (sm_90a, sm_100)";
    }
    if (clusters * work.size > 0x7fffffff) return "more than 2^31 - 1 CTAs in one launch";
    if (failed(cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    work.shared)) ||
        failed(cudaFuncSetAttribute(symbol, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))) {
      return "the driver does not allow so much shared memory, or clusters of this size";
    }
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(work.size);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(clusters * work.size));
    config.blockDim = dim3(static_cast<unsigned>(work.warps * 32));
    config.dynamicSmemBytes = static_cast<size_t>(work.shared);
    config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    if (failed(cudaOccupancyMaxActiveClusters(&at_once, kernel, &config)) || at_once < 1) {
      return "no such cluster fits on the GPU now";
    }
    return nullptr;
  }
};

// Nothing here waits or allocates: fit for capture in a CUDA graph.
template <class Problem>
const char* launch_clusters(ClusterKernel<Problem> kernel, const ClusterCall<Problem>& call,
                            int64_t clusters, cudaStream_t stream, bool& refused) {
  ClusterLaunch launch;
  const char* why = launch.prepare(kernel, call.work, clusters, stream);
  refused = why != nullptr;
  if (refused) return why;
  const cudaError_t error = cudaLaunchKernelEx(&launch.config, kernel, call);
  return ClusterLaunch::failed(error) ? cudaGetErrorString(error) : nullptr;
}
#endif

template <class Problem>
const char* serve(ClusterKernel<Problem> kernel, const Problem* p, int directions,
                  const ClusterWork& work, void* stream, bool& refused) {
  refused = kernel == nullptr;
  if (refused) return "there is no instance of the cluster kernel for this plan";
  const int64_t groups = ceil_div(p->n.B, work.rows);
  ClusterCall<Problem> call = {{p[0], p[directions - 1]}, work, static_cast<int>(groups)};
  return launch_clusters<Problem>(kernel, call, groups * directions,
                                  static_cast<cudaStream_t>(stream), refused);
}

template <class Cell, DType kType>
const char* Clustered<Cell, kType>::forward(const SequenceForward* p, int directions,
                                            const ClusterWork& work, void*, void* stream,
                                            bool& refused) {
  using Data = typename DataOf<kType>::type;
  static_assert(kClusterForward[0].most == 4 && kClusterForward[1].most == 2, "");
  constexpr int kItem = sizeof(Data), kMost = cluster_most(kClusterForward[0], Cell::kGates, kItem);
  constexpr int kMostOfTwelve = cluster_most(kClusterForward[1], Cell::kGates, kItem);
  ClusterKernel<SequenceForward> kernel = nullptr;
  if constexpr (kClusterServes<Cell>) {
    const int columns = work.rows / kClusterRows;
    if (work.shape == 0) {
      kernel = columns == 1   ? cluster_forward<Cell, Data, 0, 1>
               : columns == 2 ? cluster_forward<Cell, Data, 0, 2>
                              : cluster_forward<Cell, Data, 0, kMost>;
    } else if constexpr (kMostOfTwelve > 0) {
      kernel = columns == 1 ? cluster_forward<Cell, Data, 1, 1>
                            : cluster_forward<Cell, Data, 1, kMostOfTwelve>;
    }
  }
  return serve(kernel, p, directions, work, stream, refused);
}

template <class Cell, DType kType>
const char* Clustered<Cell, kType>::backward(const SequenceBackward* p, int directions,
                                             const ClusterWork& work, void* stream, bool& refused) {
  using Data = typename DataOf<kType>::type;
  static_assert(kClusterBackward[0].most == 4 && kClusterBackward[1].most == 1, "");
  constexpr int kItem = sizeof(Data),
                kMost = cluster_most(kClusterBackward[0], Cell::kGates, kItem);
  ClusterKernel<SequenceBackward> kernel = nullptr;
  if constexpr (kClusterServes<Cell>) {
    if (work.shape == 0) {
      kernel = work.rows == kClusterRows ? cluster_backward<Cell, Data, 0, 1>
                                         : cluster_backward<Cell, Data, 0, kMost>;
    } else if constexpr (cluster_most(kClusterBackward[1], Cell::kGates, kItem) > 0) {
      kernel = cluster_backward<Cell, Data, 1, 1>;
    }
  }
  return serve(kernel, p, directions, work, stream, refused);
}

}  // namespace cuda
}  // namespace fusedrnn
