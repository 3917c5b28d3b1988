// How the CTAs of a cluster reach each other on a GPU (Exchange). csrc/testing/cluster_host.h has
// the same for the host.
#pragma once
#include "resident_device.cuh"

// On other GPUs the kernels are empty. sm_120 has clusters of 8 only, and half of the shared
// memory.
#if defined(FUSEDRNN_CUDA_HOST) || !defined(__CUDA_ARCH__) || \
    (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
#define FRNN_CLUSTERS
#endif

#if defined(FRNN_CLUSTERS) && !defined(FUSEDRNN_CUDA_HOST)
namespace fusedrnn {
namespace cuda {

struct Exchange {
  using Address = uint32_t;  // in the shared memory of one CTA of the cluster

  static __device__ char* memory() { return cta_memory(); }
  static __device__ int rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
  }
  static __device__ Address address(const void* mine) {
    return static_cast<Address>(__cvta_generic_to_shared(mine));
  }
  // The same place in the CTA of that rank.
  static __device__ Address address(const void* mine, int rank) {
    Address there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(address(mine)), "r"(rank));
    return there;
  }

  static __device__ void sync_cta() { __syncthreads(); }
  // All threads of the cluster; what any of them wrote before is seen by all after.
  static __device__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  // A barrier whose phases end when one thread has called `expect` and as many bytes have come.
  static __device__ void init(uint64_t* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  static __device__ void expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
                 "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity has ended.
  static __device__ void wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again%=:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again%=;\n"
        "}" ::"r"(address(barrier)),
        "r"(parity)
        : "memory");
  }
  // Eight bytes for another CTA, which its barrier counts when they have come.
  static __device__ void send(Address to, Address barrier, uint32_t low, uint32_t high) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
            to),
        "r"(low), "r"(high), "r"(barrier)
        : "memory");
  }
};

}  // namespace cuda
}  // namespace fusedrnn
#endif
