// How the CTAs of a grid reach each other on the host: csrc/cuda/grid_device.cuh includes this
// instead of its own when FUSEDRNN_CUDA_HOST is defined. All threads of a group are fibers
// (cluster_fibers.h); what is published comes late, word by word, in any order.
#pragma once
#include "cluster_host.h"

namespace fusedrnn {
namespace cuda {

struct GridExchange {
  static host::Cluster& cluster() { return host::Cluster::only(); }
  static bool left_out(const char* what) { return host::cluster_fault == what; }
  static char* memory() { return cluster().memory(cluster().rank()); }
  static void sync_empty() {
    if (!left_out("sync_empty")) cluster().sync_cta();
  }
  static void sync_full() {
    if (!left_out("sync_full")) cluster().sync_cta();
  }
  static void publish(uint32_t* to, uint32_t word) { cluster().publish(to, word, 4); }
  static void publish(uint16_t* to, uint16_t word) { cluster().publish(to, word, 2); }
  static uint4 look(const uint4* at) { return *at; }
  static uint16_t look(const uint16_t* at) { return *at; }
  static uint32_t look(const uint32_t* at) { return *at; }
  static bool everyone(bool mine) {
    const bool* all = cluster().together(mine);
    return left_out("wait") || std::all_of(all, all + 32, [](bool one) { return one; });
  }
  template <class Data>
  static void pause(uint32_t&, const Data* at, int count) {
    cluster().await(at, min(count, Pack<Data>::kSize), sizeof(Data));
  }
  static void expect(const void*) {}
};

// Fills what is awaited, then runs one group after the other, in any order: none may need another.
template <class Problem, class Kernel, class Call, class Awaited>
const char* launch_grid(Kernel kernel, const Call& call, int directions,
                        const Awaited (&fill)[2][2], cudaStream_t stream, bool& refused) {
  for (int i = 0; i < 2 * directions; ++i) {
    const Awaited& f = fill[i / 2][i % 2];
    for (size_t row = 0; row < f.height; ++row) {
      std::memset(static_cast<char*>(f.at) + row * f.pitch, 0xff, f.width);
    }
  }
  return launch_clusters<Problem>(kernel, call, int64_t{call.work.groups} * directions, stream,
                                  refused);
}

}  // namespace cuda
}  // namespace fusedrnn
