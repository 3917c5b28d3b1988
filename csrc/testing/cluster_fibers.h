// A cluster's threads as fibers, and what its CTAs send each other, which comes late and in any
// order: into shared memory (send), or into global memory (publish), where some CTAs wait for it by
// looking at it. A group of the grid kernels is a cluster too, of any size.
//
// What makes errors of the protocol visible:
//   - who runs next, a warp or the arrival of something sent or published, goes by priorities that
//     cluster_order draws anew every now and then: a warp may be as far ahead of another as the
//     barriers allow, and something sent as late
//   - shared memory starts as NaN; a barrier used before it is set up is an error
//   - a deadlock is an error; so is what comes to a CTA that has ended
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
// "sync_cluster", "sync_empty", "sync_full".
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
  void publish(void* to, uint32_t word, size_t bytes) { published_.push_back({to, word, bytes}); }
  // Until so many numbers are there that others publish.
  void await(const void* at, int count, int item) {
    const Looking looking = {static_cast<const char*>(at), count, item, running_};
    if (looking.all_there()) return;
    looking_.push_back(looking);
    park();
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
  struct Published {
    void* to;
    uint32_t word;
    size_t bytes;
  };
  struct Looking {
    const char* at;
    int count, item;  // numbers, and bytes of each
    Fiber* fiber;

    bool all_there() const {
      const auto absent = [&](int i) {
        return std::all_of(at + i * item, at + (i + 1) * item, [](char c) { return c == '\xff'; });
      };
      for (int i = 0; i < count; ++i) {
        if (absent(i)) return false;
      }
      return true;
    }
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
  void deliver_published(std::mt19937_64& random);
  uint64_t draw_priority(std::mt19937_64& random) const {
    return cluster_order > 1 ? random() >> 8 : cluster_order == 1 ? 0 : ~0ull;
  }
  void resume(Warp& warp);
  void draw_priorities(std::mt19937_64& random);
  bool next(std::mt19937_64& random);

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Cta> ctas_;
  Meeting everybody_;
  std::vector<Published> published_;  // on its way
  std::vector<Looking> looking_;      // waiting for it
  uint64_t published_priority_ = 0;
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
  published_.clear(), looking_.clear();
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

inline void Cluster::deliver_published(std::mt19937_64& random) {
  const size_t which = cluster_order > 1 ? random() % published_.size() : 0;
  const Published one = published_[which];
  published_[which] = published_.back();
  published_.pop_back();
  std::memcpy(one.to, &one.word, one.bytes);
  const auto has_come = [&](const Looking& l) {
    const bool here = one.to >= l.at && one.to < l.at + l.count * l.item && l.all_there();
    if (here) wake(l.fiber);
    return here;
  };
  looking_.erase(std::remove_if(looking_.begin(), looking_.end(), has_come), looking_.end());
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
  for (Cta& cta : ctas_) cta.priority = draw_priority(random);
  published_priority_ = draw_priority(random);
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
  uint64_t highest = 0;
  std::function<void()> event;
  const auto offer = [&](bool there, uint64_t priority, auto happens) {
    if (there && (!event || priority > highest)) event = happens, highest = priority;
  };
  if (warp != nullptr) offer(true, warp->priority, [&, warp] { resume(*warp); });
  if (cta != nullptr) offer(true, cta->priority, [&, cta] { deliver(*cta, random); });
  offer(!published_.empty(), published_priority_, [&] { deliver_published(random); });
  if (!event) return false;
  event();
  return true;
}

}  // namespace host
}  // namespace cuda
}  // namespace fusedrnn
