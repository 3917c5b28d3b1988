// One exchange of h among all SMs through L2, four ways: every CTA writes its slice of h, waits
// until all have, and reads all of h. What it reads is checked.
//
//   grid_sync   cooperative groups' barrier
//   counter     one counter: red.release, then polling with ld.acquire
//   flags       one flag a CTA: st.release; each thread polls the flag of one CTA
//   words       no flag: each 8-byte word carries its step number beside four bytes of h
#include <cooperative_groups.h>

#include "micro.cuh"

namespace {

enum class Way { grid_sync, counter, flags, words };
constexpr int kThreads = 256, kSteps = 1000;

struct Args {
  uint2* words;       // [2, n]: h of two steps; y is the step in `words` alone
  unsigned* counter;  // of all CTAs
  unsigned* flags;    // [CTAs], 128 bytes apart
  unsigned* wrong;    // words that were not what was sent
  int n;              // words of h
};

__device__ void release_add(unsigned* p) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}
__device__ void release_store(unsigned* p, unsigned v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ unsigned acquire_load(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Eight bytes are read and written as one, so that a word and its step number belong together.
__device__ uint2 relaxed_load(const uint2* p) {
  unsigned long long v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return make_uint2(unsigned(v), unsigned(v >> 32));
}
__device__ void relaxed_store(uint2* p, uint2 v) {
  const unsigned long long both = (unsigned long long)v.y << 32 | v.x;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(both) : "memory");
}
__device__ void give_up_after(long long start) {
  if (clock64() - start > micro::kPatience) __trap();
}

template <Way kWay>
__global__ void __launch_bounds__(kThreads) exchange(Args a, unsigned base) {
  const int slice = (a.n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * slice;
  const int end = min(a.n, first + slice);
  unsigned wrong = 0;
  for (unsigned step = 1; step <= kSteps; ++step) {
    const unsigned now = base + step;
    uint2* h = a.words + (step & 1) * a.n;
    for (int i = first + threadIdx.x; i < end; i += kThreads) {
      relaxed_store(h + i, make_uint2(now * 31 + i, now));
    }
    const long long start = clock64();
    if (kWay == Way::grid_sync) cooperative_groups::this_grid().sync();
    if (kWay == Way::counter) {
      __syncthreads();
      if (threadIdx.x == 0) {
        release_add(a.counter);
        while (acquire_load(a.counter) < now * gridDim.x) give_up_after(start);
      }
      __syncthreads();
    }
    if (kWay == Way::flags) {
      __syncthreads();
      if (threadIdx.x == 0) release_store(a.flags + 32 * blockIdx.x, now);
      for (int i = threadIdx.x; i < int(gridDim.x); i += kThreads) {
        while (acquire_load(a.flags + 32 * i) < now) give_up_after(start);
      }
      __syncthreads();
    }
    for (int i = threadIdx.x; i < a.n; i += kThreads) {
      uint2 word = relaxed_load(h + i);
      while (kWay == Way::words && word.y != now) {
        give_up_after(start);
        word = relaxed_load(h + i);
      }
      wrong += word.x != now * 31 + i;
    }
    // In `words` a thread may be a step ahead of the others in its CTA, no more: two buffers do.
    if (kWay == Way::words) __syncthreads();
  }
  if (wrong) atomicAdd(a.wrong, wrong);
}

template <Way kWay>
void measure(const char* name, int sms, int bytes) {
  Args a;
  a.n = bytes / 4;  // what arrives of h; the step numbers beside it come on top
  a.words = micro::zeros<uint2>(2 * a.n);
  a.counter = micro::zeros<unsigned>(1);
  a.flags = micro::zeros<unsigned>(32 * sms);
  a.wrong = micro::zeros<unsigned>(1);
  unsigned base = 0;
  const auto run = [&] {
    void* arguments[] = {&a, &base};
    micro::check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(exchange<kWay>), dim3(sms),
                                             dim3(kThreads), arguments, 0, nullptr),
                 name);
    base += kSteps;
  };
  const float us = micro::best_us(run, name) / kSteps;
  micro::say(name, "\"ctas\": %d, \"bytes\": %d, \"us\": %.4f, \"wrong\": %u", sms, bytes, us,
             micro::read_one(a.wrong));
  cudaFree(a.words), cudaFree(a.counter), cudaFree(a.flags), cudaFree(a.wrong);
}

}  // namespace

int main() {
  const cudaDeviceProp device = micro::device();
  const int sms = device.multiProcessorCount;
  for (int bytes : {1024, 16 << 10, 64 << 10, 128 << 10}) {  // 16 KB: B = 16, H = 512, 16-bit
    measure<Way::grid_sync>("l2_grid_sync", sms, bytes);
    measure<Way::counter>("l2_counter", sms, bytes);
    measure<Way::flags>("l2_flags", sms, bytes);
    measure<Way::words>("l2_words", sms, bytes);
  }
}
