// What the cluster kernels forward and backward share.
#pragma once
#include "cluster_device.cuh"
#include "resident_product.cuh"

namespace fusedrnn {
namespace cuda {

// What every CTA of a launch is told: a layer's directions, and how a cluster shares each.
template <class Problem>
struct ClusterCall {
  Problem directions[2];
  ClusterWork work;
  int groups;  // clusters of one direction
};

}  // namespace cuda
}  // namespace fusedrnn
