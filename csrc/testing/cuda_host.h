// CUDA kernels on the host: every CUDA thread is a fiber, __syncthreads hands over to the next one.
//
// csrc/cuda/device.cuh includes this instead of the CUDA headers when FUSEDRNN_CUDA_HOST is
// defined, so that index arithmetic and the use of barriers are tested on any machine. What makes
// errors visible:
//   - the order of threads between two barriers, and of CTAs in a launch, is chosen by host::order:
//     results that depend on it betray a missing barrier or CTAs that need each other
//   - shared memory starts as NaN in every CTA
//   - a barrier that only some threads of a CTA reach is an error
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../cpu/types.h"

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;
struct uint4 {
  uint32_t x, y, z, w;
};
struct __half : fusedrnn::f16 {
  __half() = default;
  explicit __half(float v) { fusedrnn::store(*this, v); }
};
struct __nv_bfloat16 : fusedrnn::bf16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) { fusedrnn::store(*this, v); }
};
inline float __half2float(__half v) { return fusedrnn::load(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return fusedrnn::load(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }

struct HostIndex {
  unsigned x, y;
};
inline HostIndex threadIdx, blockIdx;

namespace fusedrnn {
namespace cuda {
namespace host {

// 0: ascending, 1: descending, else the seed of a random order, a new one after every barrier.
inline uint64_t order = 0;
inline int64_t launches = 0;

// One CTA: its fibers and its shared memory.
class Cta {
 public:
  static constexpr size_t kStack = 64 << 10,
                          kShared = 48 << 10;  // static shared memory ends at 48 KB
  static Cta& only() {
    static Cta cta;
    return cta;
  }

  const char* run(int threads, const std::function<void()>& body, std::mt19937_64& random) {
    body_ = &body;
    std::memset(shared_, 0xff, kShared);
    std::memset(votes_, 0, sizeof(votes_));
    fibers_.resize(std::max<size_t>(fibers_.size(), threads));
    for (int i = 0; i < threads; ++i) fibers_[i].done = false, fibers_[i].turn = 0;
    for (int done = 0; done < threads;) {
      for (int i : permutation(threads, random)) {
        running_ = &fibers_[i];
        threadIdx.x = i;
        running_->begun ? hand_over(scheduler_, running_->at) : begin();
      }
      done = std::count_if(fibers_.begin(), fibers_.begin() + threads,
                           [](const Fiber& f) { return f.done; });
      if (done != 0 && done != threads) {
        fibers_.clear();  // they are in the middle of a CTA
        return "only some threads of a CTA reach a barrier";
      }
    }
    return nullptr;
  }
  void barrier() { hand_over(running_->at, scheduler_); }
  // Whether any thread says so. Three places by turns: a thread may be one turn ahead of another,
  // which has still to clear the place of the turn before.
  bool any(bool mine) {
    const int turn = running_->turn++ % 3;
    votes_[turn] |= mine;
    barrier();
    votes_[(turn + 2) % 3] = false;
    return votes_[turn];
  }
  void* shared() { return shared_; }

  static std::vector<int64_t> permutation(int64_t n, std::mt19937_64& random) {
    std::vector<int64_t> p(n);
    std::iota(p.begin(), p.end(), 0);
    if (order == 1) std::reverse(p.begin(), p.end());
    if (order > 1) std::shuffle(p.begin(), p.end(), random);
    return p;
  }

 private:
  // Where a fiber goes on. Not ucontext's, whose every switch asks the kernel for the signal mask.
  using Point = void* [5];
  struct Fiber {
    std::unique_ptr<char[]> stack{new char[kStack]};
    Point at;
    bool begun = false, done;  // it has run; this CTA's thread is through
    unsigned turn;             // of its votes
  };

  [[gnu::noinline]] static void jump(Point& to) { __builtin_longjmp(to, 1); }
  [[gnu::noinline]] static void hand_over(Point& from, Point& to) {
    if (__builtin_setjmp(from) == 0) jump(to);
  }
  // A fiber outlives its thread: it is then a thread of the next CTA.
  static void live() {
    for (Cta& cta = only();; hand_over(cta.running_->at, cta.scheduler_)) {
      (*cta.body_)();
      cta.running_->done = true;
    }
  }
  [[gnu::noinline]] void begin() {
    running_->begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = running_->stack.get();
    context.uc_stack.ss_size = kStack;
    makecontext(&context, live, 0);
    if (__builtin_setjmp(scheduler_) == 0) setcontext(&context);
  }

  const std::function<void()>* body_ = nullptr;
  alignas(16) char shared_[kShared];
  bool votes_[3];
  std::vector<Fiber> fibers_;
  Fiber* running_ = nullptr;
  Point scheduler_;
};

}  // namespace host

template <class T>
T& shared_memory() {
  static_assert(sizeof(T) <= host::Cta::kShared, "more than the static shared memory of a CTA");
  return *static_cast<T*>(host::Cta::only().shared());
}

template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t ctas, int directions, int threads, cudaStream_t,
                   const A&... args) {
  std::mt19937_64 random(host::order + host::launches++);
  const std::function<void()> body = [&] { kernel(args...); };
  for (int64_t cta : host::Cta::permutation(ctas * directions, random)) {
    blockIdx.x = static_cast<unsigned>(cta % ctas);
    blockIdx.y = static_cast<unsigned>(cta / ctas);
    if (const char* wrong = host::Cta::only().run(threads, body, random)) return wrong;
  }
  return nullptr;
}

}  // namespace cuda
}  // namespace fusedrnn

inline void __syncthreads() { fusedrnn::cuda::host::Cta::only().barrier(); }
inline int __syncthreads_or(int mine) { return fusedrnn::cuda::host::Cta::only().any(mine != 0); }
