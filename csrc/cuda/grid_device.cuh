// How the CTAs of a grid reach each other on a GPU (GridExchange). csrc/testing/grid_host.h has the
// same for the host.
//
// What one CTA computes and others wait for is the very tensor that the call returns: y in forward
// (and what enters a second product: grid_twice.cuh), grads in backward. Before the launch all of
// it is filled with kAbsent, a NaN that no rounding makes; each word is written once; who needs it
// reads until it is another. A word is thus its own flag:
//   - no fence and no acquire or release is needed, since nothing is concluded of one word from
//     another. Words are written with st.relaxed.gpu and read with ld.relaxed.gpu, at the same size
//     (a vector is as many words): in PTX's memory model such accesses never race, and what is read
//     is kAbsent or the value.
//   - nothing is used twice, so that no reader can find what was meant for another step; and each
//     replay of a CUDA graph begins with the fill, which is a node of the graph.
#pragma once
#include "resident_device.cuh"
#ifdef FUSEDRNN_CUDA_HOST
#include "../testing/grid_host.h"
#endif

namespace fusedrnn {
namespace cuda {

// Two of them in a word of 32 bits. Rounding to bfloat16 and float16 turns every NaN into 0x7fff. A
// number of float32 is a word, and kAbsentPair another NaN than arithmetic makes.
constexpr uint16_t kAbsent = 0xffff;
constexpr uint32_t kAbsentPair = 0xffffffff;

#if defined(FRNN_RESIDENT) && !defined(FUSEDRNN_CUDA_HOST)
struct GridExchange {
  static __device__ char* memory() { return cta_memory(); }
  // The threads of a CTA, before they write what others may still read (`empty`), and before they
  // read what others wrote (`full`).
  static __device__ void sync_empty() { __syncthreads(); }
  static __device__ void sync_full() { __syncthreads(); }

  static __device__ void publish(uint32_t* to, uint32_t word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
  }
  static __device__ void publish(uint16_t* to, uint16_t word) {
    asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(to), "h"(word) : "memory");
  }
  // Four words of 32 bits.
  static __device__ uint4 look(const uint4* at) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
  }
  static __device__ uint16_t look(const uint16_t* at) {
    uint16_t v;
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
    return v;
  }
  static __device__ uint32_t look(const uint32_t* at) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
  }
  // Whether all lanes of a warp have what they need.
  static __device__ bool everyone(bool mine) { return __all_sync(0xffffffffu, mine); }
  // Between two looks at so many numbers. With assertions on, what never comes ends the kernel.
  template <class Data>
  static __device__ void pause(uint32_t& looks, const Data*, int) {
#ifndef NDEBUG
    if (++looks == 1u << 26) __trap();  // a minute or so
#else
    (void)looks;
#endif
  }
  // Brings a line to L2 that will be needed there.
  static __device__ void expect(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
  }
};
#endif

}  // namespace cuda
}  // namespace fusedrnn
