// The part of libgomp that the CPU kernels use, made of std::thread and mutexes: ThreadSanitizer
// sees through these, but not through libgomp's futexes, and would call every barrier a race.
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// A construct that a team meets: a loop whose iterations are handed out, or a single.
struct Construct {
  long next = 0, end = 0, step = 1, chunk = 1;
};

struct Team {
  explicit Team(int n) : size(n) {}
  const int size;
  std::mutex mutex;
  std::condition_variable all_here;
  int waiting = 0;
  long barriers = 0;
  std::map<long, Construct> constructs;  // by how many the thread has met before
};

thread_local Team alone(1);  // a thread outside of any team
thread_local Team* team = &alone;
thread_local int thread_index = 0;
thread_local long met = 0;
thread_local Construct* loop = nullptr;

bool take(long* begin, long* end) {
  const std::lock_guard<std::mutex> lock(team->mutex);
  if (loop->next >= loop->end) return false;
  *begin = loop->next;
  loop->next += loop->chunk * loop->step;
  *end = loop->next < loop->end ? loop->next : loop->end;
  return true;
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return thread_index; }
int omp_get_num_threads() { return team->size; }

void GOMP_barrier() {
  std::unique_lock<std::mutex> lock(team->mutex);
  const long mine = team->barriers;
  if (++team->waiting == team->size) {
    team->waiting = 0;
    ++team->barriers;
    team->all_here.notify_all();
  } else {
    team->all_here.wait(lock, [&] { return team->barriers != mine; });
  }
}

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team made(threads ? int(threads) : 1);
  std::vector<std::thread> others;
  const auto work = [&](int index) {
    // A team may be made within a team: its threads then go on with what they were at.
    Team* const outer = team;
    const int outer_index = thread_index;
    const long outer_met = met;
    Construct* const outer_loop = loop;
    team = &made, thread_index = index, met = 0;
    body(data);
    team = outer, thread_index = outer_index, met = outer_met, loop = outer_loop;
  };
  for (int i = 1; i < made.size; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) { return take(begin, end); }

bool GOMP_loop_nonmonotonic_dynamic_start(long from, long to, long step, long chunk, long* begin,
                                          long* end) {
  {
    const std::lock_guard<std::mutex> lock(team->mutex);
    loop = &team->constructs.try_emplace(met++, Construct{from, to, step, chunk}).first->second;
  }
  return take(begin, end);
}

void GOMP_loop_end() { GOMP_barrier(); }

bool GOMP_single_start() {
  const std::lock_guard<std::mutex> lock(team->mutex);
  return team->constructs.try_emplace(met++).second;
}

}  // extern "C"
