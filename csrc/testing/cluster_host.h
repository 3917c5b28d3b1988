// The two policies of the cluster kernels on the host: csrc/cuda/resident_device.cuh includes this
// instead of its own when FUSEDRNN_CUDA_HOST is defined. All threads of a cluster are fibers
// (cluster_fibers.h).
#pragma once
#include <cmath>

#include "cluster_fibers.h"

namespace fusedrnn {
namespace cuda {

namespace host {

// How a product's terms are added to a sum. False: one after the other, rounded to nearest. True:
// as tensor cores were seen to do at worst (Fasi et al. 2021): all terms are cut off where the
// largest one's 24 bits end, added exactly, and the sum is cut off to a float.
inline bool sums_are_cut = false;

// x without the bits below the 24th of `largest`.
inline double cut_off(float x, float largest) {
  if (largest == 0 || !std::isfinite(largest)) return x;
  const double grid = std::ldexp(1.0, std::ilogb(largest) - 23);
  return std::trunc(x / grid) * grid;
}
template <size_t n>
float added(float sum, const float (&terms)[n]) {
  if (!sums_are_cut) {
    for (float term : terms) sum += term;
    return sum;
  }
  float largest = std::fabs(sum);
  for (float term : terms) largest = std::fmax(largest, std::fabs(term));
  double total = 0;
  for (float term : terms) total += cut_off(term, largest);
  total += cut_off(sum, largest);
  const float near = static_cast<float>(total);
  return std::fabs(near) > std::fabs(total) ? std::nextafter(near, 0.0f) : near;
}

}  // namespace host

// Clusters in any order, one after the other: none may need another.
template <class Problem, class Kernel, class Call>
const char* launch_clusters(Kernel kernel, const Call& call, int64_t clusters, cudaStream_t,
                            bool& refused) {
  refused = false;
  const auto& work = call.work;
  std::mt19937_64 random(host::cluster_order);
  std::vector<int64_t> turn(clusters);
  std::iota(turn.begin(), turn.end(), 0);
  if (host::cluster_order > 0) std::shuffle(turn.begin(), turn.end(), random);
  const std::function<void()> body = [&] { kernel(call); };
  for (int64_t cluster : turn) {
    const char* wrong = host::Cluster::only().run(int(cluster) * work.size, work.size,
                                                  work.warps * 32, work.shared, body, random);
    if (wrong != nullptr) return wrong;
  }
  return nullptr;
}

struct Mma {
  // As the instruction defines it: lane 4 g + q has rows g and g + 8 of a and column g of b in
  // k = 2 q, 2 q + 1, 2 q + 8 and 2 q + 9, and gets the sums of these rows, columns 2 q, 2 q + 1.
  // In tf32 it has k = q and q + 4.
  template <class Data>
  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Given {
      uint32_t a[4], b[2];
    };
    constexpr int kWord = 4 / sizeof(Data);  // numbers in a word
    const Given* lanes = host::Cluster::only().together(Given{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (int e = 0; e < 4; ++e) {
      float products[8 * kWord];
      for (int k = 0; k < 8 * kWord; ++k) {
        const int from = k / kWord % 4, part = k % kWord, upper = k / (4 * kWord);
        const uint32_t of_a = lanes[4 * g + from].a[2 * upper + e / 2];
        const uint32_t of_b = lanes[4 * (2 * q + e % 2) + from].b[upper];
        products[k] = value<Data>(of_a, part) * value<Data>(of_b, part);  // exact
      }
      sums[e] = host::added(sums[e], products);
    }
  }
  // As cvt.rna.tf32.f32 does.
  static uint32_t rounded(uint32_t word) {
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    return nan ? 0x7fffffffu : word + 0x1000u;
  }
  template <class T>
  static T swap(T mine, int bits) {
    return host::Cluster::only().together(mine)[(threadIdx.x % 32) ^ bits];
  }

 private:
  template <class Data>
  static float value(uint32_t word, int part) {
    Data data;
    if constexpr (sizeof(Data) == 4) {
      word &= kTf32;
      std::memcpy(&data, &word, 4);
    } else {
      const uint16_t bits = uint16_t(word >> (16 * part));
      std::memcpy(static_cast<void*>(&data), &bits, 2);
    }
    return widen(data);
  }
};

struct Exchange {
  // Of a CTA's shared memory: rank and offset.
  using Address = uint64_t;
  static constexpr int kRank = 32;

  static host::Cluster& cluster() { return host::Cluster::only(); }
  static char* memory() { return cluster().memory(cluster().rank()); }
  static int rank() { return cluster().rank(); }
  static Address address(const void* mine, int rank) {
    return Address(rank) << kRank | Address(static_cast<const char*>(mine) - memory());
  }
  static bool left_out(const char* what) { return host::cluster_fault == what; }
  static void sync_cta() {
    if (!left_out("sync_cta")) cluster().sync_cta();
  }
  static void sync_cluster() {
    if (!left_out("sync_cluster")) cluster().sync_cluster();
  }
  static void init(uint64_t* barrier) { cluster().init(barrier); }
  static void expect(uint64_t* barrier, uint32_t bytes) { cluster().expect(barrier, bytes); }
  static void wait(uint64_t* barrier, uint32_t parity) {
    if (!left_out("wait")) cluster().wait(barrier, parity);
  }
  static void send(Address to, Address barrier, uint32_t low, uint32_t high) {
    const auto offset = [](Address a) { return size_t(a & ((Address(1) << kRank) - 1)); };
    cluster().send(int(to >> kRank), offset(to), offset(barrier), uint64_t(high) << 32 | low);
  }
};

}  // namespace cuda
}  // namespace fusedrnn
