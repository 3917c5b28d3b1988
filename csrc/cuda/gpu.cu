// The current GPU, as the planner describes one.
#include <cuda_runtime.h>

#include <map>
#include <mutex>

#include "../devices.h"
#include "cluster_launchers.h"

namespace fusedrnn {
namespace cuda {

const GpuDevice* current_gpu() {
  static std::mutex mutex;
  static std::map<int, GpuDevice> known;
  int index = 0;
  cudaDeviceProp seen;
  if (cudaGetDevice(&index) != cudaSuccess) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return &found->second;
  if (cudaGetDeviceProperties(&seen, index) != cudaSuccess) return nullptr;
  GpuDevice d = {};
  d.title = seen.name, d.arch = 10 * seen.major + seen.minor, d.sms = seen.multiProcessorCount;
  d.shared_per_cta = static_cast<int>(seen.sharedMemPerBlockOptin);
  d.shared_per_sm = static_cast<int>(seen.sharedMemPerMultiprocessor);
  d.threads_per_sm = seen.maxThreadsPerMultiProcessor;
  return &(known[index] = like_known(d));
}

}  // namespace cuda
}  // namespace fusedrnn
