// The recurrent product with weights that stay in registers: clocks of one step of one CTA.
// 128 KB of weights, 128 rows of W_hh by K = 512 in 16 bits; h is B, N batch rows.
//
//   mma_sync   8 warps of m16n8k16, each with 16 gate rows; B from shared memory
//   wgmma      2 warpgroups of m64nNk16, A from registers, B from shared memory (sm_90a)
//
// Both go through all of K and then need the sums before the next step may begin, as a recurrence
// does. The numbers are zeros: this is about time alone.
#include <cuda_bf16.h>

#include "micro.cuh"

namespace {

constexpr int kThreads = 256, kK = 512, kSteps = 2000, kTilesOfK = kK / 16;

__device__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// B lies as the lanes want it: two k-tiles of one lane side by side, one 16-byte load for both.
template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    mma_sync(const unsigned* weights, float* out, long long* clocks) {
  // Independent sums of each tile, to hide the latency of one product.
  constexpr int kTiles = kN / 8, kChains = kTiles >= 4 ? 1 : 4 / kTiles;
  extern __shared__ uint4 pairs[];  // [kTiles, kTilesOfK / 2, 32]
  unsigned a[kTilesOfK][4];
#pragma unroll
  for (int k = 0; k < kTilesOfK; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = weights[(k * 4 + i) * kThreads + threadIdx.x];
  }
  for (int i = threadIdx.x; i < kTiles * kTilesOfK / 2 * 32; i += kThreads) pairs[i] = uint4{};
  __syncthreads();
  const int lane = threadIdx.x % 32;
  float kept = 0;
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
    float sums[kTiles][kChains][4] = {};
#pragma unroll
    for (int k = 0; k < kTilesOfK; k += 2) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 two = pairs[(n * kTilesOfK / 2 + k / 2) * 32 + lane];
        mma(sums[n][k % kChains], a[k], {two.x, two.y});
        mma(sums[n][(k + 1) % kChains], a[k + 1], {two.z, two.w});
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) kept += sums[n][c][i];
      }
    }
    if (lane == 0 && kept != 0) pairs[0].x = __float_as_uint(kept);  // the next step depends on it
    __syncthreads();
  }
  if (threadIdx.x == 0) *clocks = (clock64() - start) / kSteps;
  out[threadIdx.x] = kept;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// K-major without swizzle: matrices of 8 rows by 16 bytes, 128 bytes each, neighbours in K side by
// side and neighbours in N behind all of K.
__device__ uint64_t describe(const void* p) {
  const uint64_t address = (__cvta_generic_to_shared(p) & 0x3ffff) >> 4;
  return address | uint64_t(128 >> 4) << 16 | uint64_t(kK * 16 >> 4) << 32;
}
template <int kN>
struct Sums {
  float v[kN / 2];
};
#define C4(i) "+f"(c.v[i]), "+f"(c.v[i + 1]), "+f"(c.v[i + 2]), "+f"(c.v[i + 3])
#define C16(i) C4(i), C4(i + 4), C4(i + 8), C4(i + 12)
#define AB "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
__device__ void wgmma(Sums<8>& c, const unsigned (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, "
      "1, 0;"
      : C4(0)
      : AB);
}
__device__ void wgmma(Sums<16>& c, const unsigned (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, "
      "{%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
      : C4(0), C4(4)
      : AB);
}
__device__ void wgmma(Sums<32>& c, const unsigned (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, "
      "0;"
      : C16(0)
      : AB);
}
__device__ void wgmma(Sums<64>& c, const unsigned (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, "
      "1, 1, 1, 0;"
      : C16(0), C16(16)
      : AB);
}
#endif

template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_step(const unsigned* weights, float* out, long long* clocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) __nv_bfloat16 h[];  // [N / 8, K / 8, 8, 8]
  unsigned a[kTilesOfK][4];
#pragma unroll
  for (int k = 0; k < kTilesOfK; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = weights[(k * 4 + i) * kThreads + threadIdx.x];
  }
  for (int i = threadIdx.x; i < kN * kK; i += kThreads) h[i] = __float2bfloat16(0.0f);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  float kept = 0;
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
    Sums<kN> sums = {};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < kTilesOfK; ++k) wgmma(sums, a[k], describe(h + k * 2 * 64));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) kept += sums.v[i];
    if (threadIdx.x % 32 == 0 && kept != 0) {  // the next step depends on it
      h[0] = __float2bfloat16(kept);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) *clocks = (clock64() - start) / kSteps;
  out[threadIdx.x] = kept;
#endif
}

void report(const char* name, int n, long long clocks) {
  micro::say(name, "\"rows\": %d, \"k\": %d, \"weights\": %d, \"clocks\": %lld", n, kK, 128 << 10,
             clocks);
}

struct Memory {
  unsigned* weights = micro::zeros<unsigned>(kTilesOfK * 4 * kThreads);
  float* out = micro::zeros<float>(kThreads);
  long long* clocks = micro::zeros<long long>(1);
};

template <int kN>
void measure(const Memory& m, bool hopper) {
  const int shared = kN * kK * 2;
  const auto largest = cudaFuncAttributeMaxDynamicSharedMemorySize;
  micro::check(cudaFuncSetAttribute(mma_sync<kN>, largest, shared), "mma_sync");
  const auto sync = [&] { mma_sync<kN><<<1, kThreads, shared>>>(m.weights, m.out, m.clocks); };
  micro::best_us(sync, "mma_sync");
  report("mma_sync", kN, micro::read_one(m.clocks));
  if (!hopper) return;
  micro::check(cudaFuncSetAttribute(wgmma_step<kN>, largest, shared), "wgmma");
  const auto groups = [&] { wgmma_step<kN><<<1, kThreads, shared>>>(m.weights, m.out, m.clocks); };
  micro::best_us(groups, "wgmma");
  report("wgmma", kN, micro::read_one(m.clocks));
}

}  // namespace

int main() {
  const cudaDeviceProp device = micro::device();
  if (device.major < 8) micro::stop("products", "needs sm_80 or newer");
  const Memory memory;
  const bool hopper = device.major == 9;
  measure<8>(memory, hopper);
  measure<16>(memory, hopper);
  measure<32>(memory, hopper);
  measure<64>(memory, hopper);
}
