// One exchange of h inside a thread-block cluster, two ways, and how many clusters fit at once.
// Every CTA sends its slice of h to all CTAs of its cluster; what arrives is checked.
//
//   cluster_barrier   plain stores into the other CTAs' shared memory, then barrier.cluster
//   st_async          st.async, which counts bytes on the receiver's mbarrier: no barrier at all
#include "micro.cuh"

namespace {

constexpr int kThreads = 256, kSteps = 2000;
constexpr int kWords = 1024;  // of 8 bytes: h of 8 rows of 512 units in 16 bits

struct Shared {
  uint64_t h[2][kWords];
  uint64_t arrived[2];  // mbarriers
};

#if __CUDA_ARCH__ >= 900
__device__ unsigned address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
__device__ unsigned rank_in_cluster() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// The same address in another CTA of the cluster.
__device__ unsigned at_rank(unsigned p, unsigned rank) {
  unsigned mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(p), "r"(rank));
  return mapped;
}
__device__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ void arm(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ void wait(unsigned barrier, unsigned parity) {
  const long long start = clock64();
  unsigned done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (clock64() - start > micro::kPatience) __trap();
  }
}
#endif

template <bool kAsync>
__global__ void __launch_bounds__(kThreads) exchange(unsigned* wrong_words, long long* clocks) {
#if __CUDA_ARCH__ >= 900
  __shared__ Shared shared;
  const unsigned size = cluster_size(), rank = rank_in_cluster(), slice = kWords / size;
  const unsigned bytes = kWords * sizeof(uint64_t);
  if (kAsync && threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&shared.arrived[i])));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < 2; ++i) arm(address(&shared.arrived[i]), bytes);
  }
  cluster_barrier();
  unsigned wrong = 0;
  const long long start = clock64();
  for (unsigned step = 0; step < kSteps; ++step) {
    const unsigned buffer = step & 1;
    const unsigned barrier = address(&shared.arrived[buffer]);
    for (unsigned i = threadIdx.x; i < slice * size; i += kThreads) {
      // Neighbours in a warp write neighbours in one CTA.
      const unsigned to = i / slice, word = rank * slice + i % slice;
      const unsigned there = at_rank(address(&shared.h[buffer][word]), to);
      const uint64_t value = uint64_t(step) << 32 | word;
      if (kAsync) {
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                there),
            "l"(value), "r"(at_rank(barrier, to))
            : "memory");
      } else {
        asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(there), "l"(value) : "memory");
      }
    }
    if (kAsync) {
      wait(barrier, step >> 1 & 1);
      // For the step after next. Nothing of it is lost if it comes first: the phase ends with this
      // arrival at the earliest.
      if (threadIdx.x == 0) arm(barrier, bytes);
    } else {
      cluster_barrier();
    }
    // Each thread reads words that others sent; two buffers suffice, for nobody sends the step
    // after next before it has all of the next one, which each thread sends after these reads.
    for (unsigned i = threadIdx.x; i < kWords; i += kThreads) {
      const uint64_t got = *reinterpret_cast<volatile uint64_t*>(&shared.h[buffer][i]);
      wrong += got != (uint64_t(step) << 32 | i);
    }
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) *clocks = (clock64() - start) / kSteps;
  cluster_barrier();
  if (wrong) atomicAdd(wrong_words, wrong);
#endif
}

cudaLaunchConfig_t config(int ctas, int size, cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = size, attribute->val.clusterDim.y = 1,
  attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(ctas), config.blockDim = dim3(kThreads);
  config.attrs = attribute, config.numAttrs = 1;
  return config;
}

template <bool kAsync>
void measure(const char* name, int size, int clusters) {
  cudaLaunchAttribute attribute[1];
  const cudaLaunchConfig_t launch = config(size * clusters, size, attribute);
  micro::check(
      cudaFuncSetAttribute(exchange<kAsync>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
      name);
  unsigned* wrong = micro::zeros<unsigned>(1);
  long long* clocks = micro::zeros<long long>(1);
  const auto run = [&] {
    micro::check(cudaLaunchKernelEx(&launch, exchange<kAsync>, wrong, clocks), name);
  };
  const float us = micro::best_us(run, name) / kSteps;
  micro::say(name,
             "\"cluster\": %d, \"clusters\": %d, \"bytes\": %d, \"us\": %.4f, \"clocks\": %lld, "
             "\"wrong\": %u",
             size, clusters, kWords * 8, us, micro::read_one(clocks), micro::read_one(wrong));
  cudaFree(wrong), cudaFree(clocks);
}

__global__ void holder() {}

// How many clusters of a size fit at once when each CTA takes this much shared memory.
void occupancy(int size, int shared) {
  cudaLaunchAttribute attribute[1];
  cudaLaunchConfig_t launch = config(size, size, attribute);
  launch.dynamicSmemBytes = shared;
  cudaFuncSetAttribute(holder, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaFuncSetAttribute(holder, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  int fit = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&fit, holder, &launch);
  (void)cudaGetLastError();
  micro::say("clusters_at_once",
             "\"cluster\": %d, \"shared\": %d, \"clusters\": %d, \"said\": \"%s\"", size, shared,
             fit, cudaGetErrorString(error));
}

}  // namespace

int main() {
  const cudaDeviceProp device = micro::device();
  if (device.major < 9) micro::stop("clusters", "needs sm_90 or newer");
  for (int size : {1, 2, 4, 8, 16}) {
    for (int shared : {0, 96 << 10, int(device.sharedMemPerBlockOptin)}) occupancy(size, shared);
  }
  for (int size : {2, 4, 8, 16}) {
    if (device.major != 9 && device.major != 10 && size > 8) continue;
    for (int clusters : {1, 4}) {
      measure<false>("cluster_barrier", size, clusters);
      measure<true>("st_async", size, clusters);
    }
  }
}
