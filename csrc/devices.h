// GPUs known by name, so that the planner can be asked about cards that are not in the machine.
//
// Counts and sizes: the vendor's whitepapers and the CUDA C++ Programming Guide (technical
// specifications per compute capability). mma16 is what mma.sync reaches, on Hopper and later less
// than the newer instructions. How many clusters of a size really fit is the driver's to say:
// `python -m benchmarks gpu-check` asks it.
#pragma once
#include <algorithm>
#include <cstdlib>

#include "plan.h"

namespace fusedrnn {

inline const std::vector<GpuDevice>& known_devices() {
  constexpr int k = 1024;
  // name, title, arch, SMs, GPCs, largest cluster, shared memory of a CTA and of an SM, threads of
  // an SM, multiply-adds a clock and SM in float32, float64 and by mma.sync, GHz
  static const std::vector<GpuDevice> devices = {
      {"a100", "NVIDIA A100", 80, 108, 0, 1, 163 * k, 164 * k, 2048, 64, 32, 1024, 1.41},
      {"h100", "NVIDIA H100", 90, 132, 8, 16, 227 * k, 228 * k, 2048, 128, 64, 1260, 1.98},
      {"h200", "NVIDIA H200", 90, 132, 8, 16, 227 * k, 228 * k, 2048, 128, 64, 1260, 1.98},
      {"b200", "NVIDIA B200", 100, 148, 8, 16, 227 * k, 228 * k, 2048, 128, 64, 1024, 1.965},
      {"l4", "NVIDIA L4", 89, 58, 0, 1, 99 * k, 100 * k, 1536, 128, 2, 512, 2.04},
      {"4090", "NVIDIA GeForce RTX 4090", 89, 128, 0, 1, 99 * k, 100 * k, 1536, 128, 2, 512, 2.52},
      {"5090", "NVIDIA GeForce RTX 5090", 120, 170, 11, 8, 99 * k, 100 * k, 1536, 128, 2, 512,
       2.41},
      {"t4", "NVIDIA T4", 75, 40, 0, 1, 64 * k, 64 * k, 1024, 64, 2, 512, 1.59},
  };
  return devices;
}

// The GPU in the machine as far as its driver tells: title, arch, SMs, shared memory and threads.
// The rest is that of the known one most like it.
inline GpuDevice like_known(const GpuDevice& seen) {
  const auto distance = [&](const GpuDevice& d) {
    const bool named = seen.title.find(d.title) != std::string::npos;
    return std::abs(d.arch - seen.arch) + (named ? 0 : 1000);
  };
  const auto& all = known_devices();
  GpuDevice d = *std::min_element(all.begin(), all.end(), [&](const auto& a, const auto& b) {
    return distance(a) < distance(b);
  });
  d.name = "here", d.title = seen.title, d.arch = seen.arch, d.sms = seen.sms;
  d.shared_per_cta = seen.shared_per_cta, d.shared_per_sm = seen.shared_per_sm;
  d.threads_per_sm = seen.threads_per_sm;
  return d;
}

}  // namespace fusedrnn
