// The two policies of the cluster kernels on the host: all threads of all CTAs of a cluster are
// fibers, and what the CTAs send each other comes late and in any order.
//
// csrc/cuda/cluster_device.cuh includes this instead of its own when FUSEDRNN_CUDA_HOST is defined.
// What makes errors of the protocol visible:
//   - who runs next, a warp or the arrival of something sent, goes by priorities that
//     cluster_order draws anew every now and then: a warp may be as far ahead of another as the
//     barriers allow, and something sent as late
//   - shared memory starts as NaN; a barrier used before it is set up is an error
//   - a deadlock is an error; so is what comes to a CTA that has ended, or is left when all have
#pragma once
#include <memory>
#include <string>

#include "cuda_host.h"

namespace fusedrnn {
namespace cuda {

using std::max;
using std::min;

namespace host {

// 0: warps ascending, what is sent comes at once; 1: warps descending, it comes when nothing else
// can happen; else the seed of random priorities.
inline uint64_t cluster_order = 0;
// A part of the protocol that is left out, to see that tests notice: "wait", "sync_cta",
// "sync_cluster".
inline std::string cluster_fault;

class Cluster {
 public:
  static constexpr size_t kStack = 32 << 10, kShared = 227 << 10;
  static Cluster& only() {
    static Cluster cluster;
    return cluster;
  }

  // Runs one cluster: CTAs first .. first + size - 1.
  const char* run(int first, int size, int threads, size_t shared,
                  const std::function<void()>& body, std::mt19937_64& random);

  // What a fiber calls.
  int rank() const { return running_->cta; }
  char* memory(int rank) { return ctas_[rank].memory.get(); }
  void sync_cta() { meet(ctas_[running_->cta].meeting, threads_); }
  void sync_cluster() { meet(everybody_, threads_ * static_cast<int>(ctas_.size())); }
  void init(uint64_t* at) { barrier(at) = {1, 0, 0}; }
  void expect(uint64_t* at, int32_t bytes);
  void wait(uint64_t* at, uint32_t parity);
  void send(int rank, size_t to, size_t at, uint64_t bytes) {
    ctas_[rank].coming.push_back({to, at, bytes});
  }
  // Gives `mine` to the warp and returns what all lanes gave.
  template <class T>
  const T* together(const T& mine);

 private:
  struct Fiber;
  struct Barrier {  // in the eight bytes of an mbarrier
    int16_t arrivals, phase;
    int32_t bytes;
  };
  struct Meeting {
    int there = 0;
    std::vector<Fiber*> waiting;
  };
  struct Warp {
    std::vector<Fiber*> ready;
    Meeting meeting;
    uint64_t round = 0;
    alignas(16) char given[2][32 * 64];
    uint64_t priority;
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    int cta, thread;
    Warp* warp;
    bool done;
  };
  struct Sent {
    size_t to, barrier;
    uint64_t bytes;
  };
  struct Cta {
    std::unique_ptr<char[]> memory{new char[kShared + 128]};
    Meeting meeting;
    std::vector<Sent> coming;
    std::vector<std::pair<uint64_t*, Fiber*>> waiting;  // for barriers
    uint64_t priority;
    int left;  // threads that have not ended
  };

  static Barrier& barrier(uint64_t* at) { return *reinterpret_cast<Barrier*>(at); }
  void begin(int index);
  void park() { swapcontext(&running_->context, &scheduler_); }
  void wake(Fiber* fiber) { fiber->warp->ready.push_back(fiber); }
  void meet(Meeting& meeting, int all);
  void advance(Cta& cta, uint64_t* at);
  void deliver(Cta& cta, std::mt19937_64& random);
  void resume(Warp& warp);
  void draw_priorities(std::mt19937_64& random);
  bool next(std::mt19937_64& random);

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Cta> ctas_;
  Meeting everybody_;
  const std::function<void()>* body_ = nullptr;
  const char* wrong_ = nullptr;
  Fiber* running_ = nullptr;
  ucontext_t scheduler_;
  int first_ = 0, threads_ = 0;
};

inline const char* Cluster::run(int first, int size, int threads, size_t shared,
                                const std::function<void()>& body, std::mt19937_64& random) {
  if (shared > kShared) return "more shared memory than a CTA has";
  first_ = first, threads_ = threads, body_ = &body, wrong_ = nullptr, everybody_ = {};
  if (fibers_.size() < size_t(size) * threads) fibers_ = std::vector<Fiber>(size * threads);
  warps_ = std::vector<Warp>(size * threads / 32);
  ctas_.resize(size);
  for (Cta& cta : ctas_) {
    std::memset(cta.memory.get(), 0xff, kShared + 128);
    cta.meeting = {}, cta.left = threads;
    cta.coming.clear(), cta.waiting.clear();
  }
  for (int i = 0; i < size * threads; ++i) begin(i);
  draw_priorities(random);
  while (wrong_ == nullptr && next(random)) {
  }
  for (const Cta& cta : ctas_) {
    if (wrong_ == nullptr && cta.left > 0) wrong_ = "a deadlock: threads wait, and nothing comes";
    const char* end = cta.memory.get() + kShared + 128;
    if (wrong_ == nullptr && !std::all_of(cta.memory.get() + shared, const_cast<char*>(end),
                                          [](char c) { return c == '\xff'; })) {
      wrong_ = "a CTA wrote beyond its shared memory";
    }
  }
  return wrong_;
}

inline void Cluster::begin(int index) {
  Fiber& fiber = fibers_[index];
  fiber.cta = index / threads_, fiber.thread = index % threads_;
  fiber.warp = &warps_[index / 32], fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler_;
  makecontext(
      &fiber.context,
      [] {
        (*only().body_)();
        only().running_->done = true;
        --only().ctas_[only().running_->cta].left;
      },
      0);
  wake(&fiber);
}

inline void Cluster::meet(Meeting& meeting, int all) {
  if (++meeting.there < all) {
    meeting.waiting.push_back(running_);
    return park();
  }
  meeting.there = 0;
  for (Fiber* fiber : meeting.waiting) wake(fiber);
  meeting.waiting.clear();
}

template <class T>
const T* Cluster::together(const T& mine) {
  static_assert(sizeof(T) <= 64, "");
  Warp& warp = *running_->warp;
  T* given = reinterpret_cast<T*>(warp.given[warp.round % 2]);
  given[running_->thread % 32] = mine;
  if (warp.meeting.there == 31) ++warp.round;
  meet(warp.meeting, 32);
  return given;  // nobody writes here before all have met once more
}

inline void Cluster::expect(uint64_t* at, int32_t bytes) {
  Barrier& of = barrier(at);
  if (of.arrivals != 1) {
    wrong_ = "a barrier is armed twice in a phase, or was never set up";
    return park();
  }
  of.arrivals = 0, of.bytes += bytes;
  advance(ctas_[running_->cta], at);
}

inline void Cluster::wait(uint64_t* at, uint32_t parity) {
  while (wrong_ == nullptr && (barrier(at).phase & 1u) == parity) {
    ctas_[running_->cta].waiting.push_back({at, running_});
    park();
  }
}

// Ends the phase of a barrier if all has come.
inline void Cluster::advance(Cta& cta, uint64_t* at) {
  Barrier& of = barrier(at);
  if (of.arrivals != 0 || of.bytes != 0) return;
  of.arrivals = 1, ++of.phase;
  auto& all = cta.waiting;
  for (auto& [where, fiber] : all) {
    if (where == at) wake(fiber);
  }
  all.erase(std::remove_if(all.begin(), all.end(), [&](auto& w) { return w.first == at; }),
            all.end());
}

inline void Cluster::deliver(Cta& cta, std::mt19937_64& random) {
  const size_t which = cluster_order > 1 ? random() % cta.coming.size() : 0;
  const Sent sent = cta.coming[which];
  cta.coming[which] = cta.coming.back();
  cta.coming.pop_back();
  if (cta.left == 0) {
    wrong_ = "something is sent to a CTA that has ended";
    return;
  }
  std::memcpy(cta.memory.get() + sent.to, &sent.bytes, 8);
  auto* at = reinterpret_cast<uint64_t*>(cta.memory.get() + sent.barrier);
  barrier(at).bytes -= 8;
  advance(cta, at);
}

// All lanes of a warp that can run, each until it waits.
inline void Cluster::resume(Warp& warp) {
  std::vector<Fiber*> ready;
  ready.swap(warp.ready);
  for (Fiber* fiber : ready) {
    running_ = fiber;
    threadIdx.x = fiber->thread;
    blockIdx.x = first_ + fiber->cta;
    swapcontext(&scheduler_, &fiber->context);
    if (wrong_ != nullptr) return;
  }
}

inline void Cluster::draw_priorities(std::mt19937_64& random) {
  for (size_t i = 0; i < warps_.size(); ++i) {
    warps_[i].priority = cluster_order > 1    ? random() >> 8
                         : cluster_order == 1 ? i + 1
                                              : warps_.size() - i;
  }
  for (Cta& cta : ctas_) {
    cta.priority = cluster_order > 1 ? random() >> 8 : cluster_order == 1 ? 0 : ~0ull;
  }
}

// One more thing happens. False: nothing can.
inline bool Cluster::next(std::mt19937_64& random) {
  if (cluster_order > 1 && random() % 32 == 0) draw_priorities(random);
  Warp* warp = nullptr;
  Cta* cta = nullptr;
  for (Warp& one : warps_) {
    if (!one.ready.empty() && (warp == nullptr || one.priority > warp->priority)) warp = &one;
  }
  for (Cta& one : ctas_) {
    if (!one.coming.empty() && (cta == nullptr || one.priority > cta->priority)) cta = &one;
  }
  if (warp == nullptr && cta == nullptr) return false;
  if (warp == nullptr || (cta != nullptr && cta->priority > warp->priority)) {
    deliver(*cta, random);
  } else {
    resume(*warp);
  }
  return true;
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
  template <class Data>
  static void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Given {
      uint32_t a[4], b[2];
    };
    const Given* lanes = host::Cluster::only().together(Given{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (int e = 0; e < 4; ++e) {
      for (int k = 0; k < 16; ++k) {
        const int from = k % 8 / 2, part = k % 2, upper = k / 8;
        const uint32_t of_a = lanes[4 * g + from].a[2 * upper + e / 2];
        const uint32_t of_b = lanes[4 * (2 * q + e % 2) + from].b[upper];
        sums[e] += value<Data>(of_a, part) * value<Data>(of_b, part);
      }
    }
  }
  template <class T>
  static T swap(T mine, int bits) {
    return host::Cluster::only().together(mine)[(threadIdx.x % 32) ^ bits];
  }

 private:
  template <class Data>
  static float value(uint32_t word, int part) {
    const uint16_t bits = uint16_t(word >> (16 * part));
    Data data;
    std::memcpy(static_cast<void*>(&data), &bits, 2);
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
