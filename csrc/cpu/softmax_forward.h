// The softmax forward on the CPU. Tasks are (node, block of its tokens, chunk of its rows); each
// leaves exp(z - m) with the chunk's maximum m and sum, and once all chunks of a node are there
//   lse = M + log sum_c s_c exp(m_c - M),   log p = z_target - lse,   d log p / dz = 1[target] - p
// With label smoothing e and z-loss c, for k rows (softmax.h has the objective):
//   d objective / dz_j = (1 - e) 1[j = target] + e / k - p_j (1 + 2 c lse)
#pragma once
#include "softmax_common.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class D>
class SoftmaxForwardPass {
  using A = State<D>;
  static constexpr int64_t L = kLanes<A>, B = kPanels * L;

  struct Task {
    const SoftmaxVisit* visit;
    int64_t token, tokens;  // within the node's
    int64_t row, rows;      // within the node's
    int64_t chunks, stat;   // statistics of chunk c are at stat + (c - this chunk) * kStatStride
  };

  // A thread's own buffers.
  struct Local {
    Scratch<A> x, z, w;
    Local(int64_t H, int64_t ld) : x(H * B), z(kChunk * B), w(kGroup * ld) {}
    explicit operator bool() const { return x && z && w; }
  };

 public:
  SoftmaxForwardPass(const SoftmaxForward& args, const SoftmaxPlan& plan)
      : a(args),
        p(plan),
        N(p.tokens),
        H(a.n.H),
        ld(row_stride<A>(H)),
        e(A(a.smoothing)),
        xs(N * ld),
        log_p(p.slots),
        extra(a.objective ? p.slots : 0),
        tasks(count_tasks()),
        maxima(stats_),
        sums(stats_),
        means(a.objective ? stats_ : 0) {}

  bool allocated() {
    if (!(xs && log_p && extra && tasks && maxima && sums && means)) return false;
    list_tasks();
    return true;
  }
  bool failed() const { return failed_; }

  // Called by every thread of a team.
  void run() {
    Local local(H, ld);
    if (!local) failed_ = true;
#pragma omp barrier
    if (failed_) return;
#pragma omp for
    for (int64_t i = 0; i < N; ++i) {
      load_row(static_cast<const D*>(a.input) + p.order[i] * H, H, xs.get() + i * ld);
      std::memset(xs.get() + i * ld + H, 0, (ld - H) * sizeof(A));
    }
    const int64_t batch = 1 + count_ / (64 * omp_get_num_threads());
#pragma omp for schedule(dynamic, batch)
    for (int64_t t = 0; t < count_; ++t) first(tasks.get()[t], local);
#pragma omp for schedule(dynamic, batch)
    for (int64_t t = 0; t < count_; ++t)
      if (tasks.get()[t].chunks > 1) finish(tasks.get()[t]);
#pragma omp single
    add_up();
  }

 private:
  static int64_t chunks_of(const SoftmaxVisit& v) { return (v.rows + kChunk - 1) / kChunk; }
  static int64_t blocks_of(const SoftmaxVisit& v) { return (v.end - v.begin + B - 1) / B; }

  int64_t count_tasks() {
    for (int64_t v = 0; v < p.count; ++v) count_ += chunks_of(p.visits[v]) * blocks_of(p.visits[v]);
    stats_ = count_ * B;
    return count_;
  }

  // Chunk by chunk, so that a chunk's rows are still in cache for its next block of tokens.
  void list_tasks() {
    Task* task = tasks.get();
    for (int64_t v = 0; v < p.count; ++v) {
      const SoftmaxVisit& visit = p.visits[v];
      const int64_t chunks = chunks_of(visit), T = visit.end - visit.begin;
      for (int64_t c = 0; c < chunks; ++c)
        for (int64_t t = 0; t < T; t += B, ++task)
          *task = {&visit,
                   t,
                   least(B, T - t),
                   c * kChunk,
                   least(kChunk, visit.rows - c * kChunk),
                   chunks,
                   (task - tasks.get()) * B};
    }
  }

  void first(const Task& t, Local& local) {
    if (t.visit->rows == 1) return sigmoid_node(t, local);
    if (t.tokens <= kFew<A>)
      few_logits(t, local);
    else
      logits(t, local);
    for (int64_t at = 0; at < t.tokens; at += L)
      exponentials(t, at, least(L, t.tokens - at), local.z.get() + at * kChunk);
    if (t.chunks == 1) finish(t);
  }

  // z = W x + b, panel by panel: [rows][width], panels kChunk * L apart.
  void logits(const Task& t, Local& local) {
    const D* weight = static_cast<const D*>(a.weight) + (t.visit->row + t.row) * H;
    const D* bias = static_cast<const D*>(a.bias) + (t.visit->row + t.row);
    transpose(t, local.x.get());
    for (int64_t r = 0; r < t.rows; r += kGroup) {
      const int64_t rows = least(kGroup, t.rows - r);
      for (int64_t i = 0; i < rows; ++i) load_row(weight + (r + i) * H, H, local.w.get() + i * ld);
      for (int64_t at = 0; at < t.tokens; at += L) {
        const int64_t width = width_of(least(L, t.tokens - at));
        const A* x = local.x.get() + at * H;
        A* z = local.z.get() + at * kChunk + r * width;
        for (int64_t i = 0; i < rows; ++i) {
          const A b = a.bias ? load(bias[r + i]) : A(0);
          for (int64_t l = 0; l < width; ++l) z[i * width + l] = b;
        }
        for (int64_t h = 0; h < H; h += kFeatures)
          multiply(rows, width / Vector<A>::lanes, least(kFeatures, H - h),
                   Strided<A>{local.w.get() + h, ld, 1}, x + h * width, width, z, width);
      }
    }
  }

  // The same for one panel of few tokens.
  void few_logits(const Task& t, Local& local) {
    const D* weight = static_cast<const D*>(a.weight) + (t.visit->row + t.row) * H;
    const D* bias = static_cast<const D*>(a.bias) + (t.visit->row + t.row);
    const A* x = xs.get() + (t.visit->begin + t.token) * ld;
    const int64_t width = width_of(t.tokens);
    for (int64_t r = 0; r < t.rows; r += kGroup) {
      const int64_t rows = least(kGroup, t.rows - r);
      A* z = local.z.get() + r * width;
      for (int64_t i = 0; i < rows; ++i) {
        const A b = a.bias ? load(bias[r + i]) : A(0);
        for (int64_t l = 0; l < width; ++l) z[i * width + l] = b;
      }
      int64_t stride;
      const A* w = wide_rows(weight + r * H, rows, H, H, local.w.get(), stride);
      dot_few(t.tokens, rows, w, stride, x, ld, H, z, width);
    }
  }

  // The task's tokens as panels [H][width].
  void transpose(const Task& t, A* out) const {
    for (int64_t at = 0; at < t.tokens; at += L) {
      const int64_t valid = least(L, t.tokens - at), width = width_of(valid);
      const A* x = xs.get() + (t.visit->begin + t.token + at) * ld;
      A* panel = out + at * H;
      for (int64_t h = 0; h < H; ++h)
        for (int64_t l = 0; l < width; ++l) panel[h * width + l] = l < valid ? x[l * ld + h] : A(0);
    }
  }

  static int64_t width_of(int64_t tokens) { return ceil_to(tokens, Vector<A>::lanes); }

  // One panel: keep the target's logit, turn z into exp(z - m), and note m and the sum.
  void exponentials(const Task& t, int64_t at, int64_t valid, A* z) {
    const int64_t width = width_of(valid), slot = t.visit->slot + t.token + at;
    A m[L], shift[L], s[L], mean[L] = {};
    for (int64_t l = 0; l < width; ++l) m[l] = -std::numeric_limits<A>::infinity(), s[l] = 0;
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t l = 0; l < width; ++l) m[l] = z[r * width + l] > m[l] ? z[r * width + l] : m[l];
    for (int64_t l = 0; l < valid; ++l) {
      const int64_t r = p.branch[slot + l] - t.row;
      if (r >= 0 && r < t.rows) log_p.get()[slot + l] = z[r * width + l];
    }
    // A chunk may be all -infinity (words masked by their bias) while another is not.
    for (int64_t l = 0; l < width; ++l)
      shift[l] = m[l] == -std::numeric_limits<A>::infinity() ? A(0) : m[l];
    if (a.objective)  // of z - m, that it does not drown at large logits
      for (int64_t r = 0; r < t.rows; ++r)
        for (int64_t l = 0; l < width; ++l)
          mean[l] += (z[r * width + l] - shift[l]) / t.visit->rows;
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t l = 0; l < width; ++l) {
        const A power = exp_below(z[r * width + l] - shift[l]);
        z[r * width + l] = power;
        s[l] += power;
      }
    std::memcpy(maxima.get() + t.stat + at, m, valid * sizeof(A));
    std::memcpy(sums.get() + t.stat + at, s, valid * sizeof(A));
    if (a.objective) std::memcpy(means.get() + t.stat + at, mean, valid * sizeof(A));
    if (!a.saved) return;
    A* out = saved_panel(t, at, valid);
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t l = 0; l < valid; ++l) out[r * valid + l] = z[r * width + l];
  }

  // Where rows of this chunk of a panel begin in saved: panels are [all rows][valid].
  A* saved_panel(const Task& t, int64_t at, int64_t valid) const {
    return static_cast<A*>(a.saved) + t.visit->saved + (t.token + at) * t.visit->rows +
           t.row * valid;
  }

  // All chunks of the node are there: normalise this one.
  void finish(const Task& t) {
    const int64_t blocks = blocks_of(*t.visit), chunk = t.row / kChunk;
    const int64_t stat = t.stat - chunk * blocks * B, slot = t.visit->slot + t.token;
    for (int64_t at = 0; at < t.tokens; at += L) {
      const int64_t valid = least(L, t.tokens - at);
      A scale[L];
      for (int64_t l = 0; l < valid; ++l) {
        A M = -std::numeric_limits<A>::infinity(), S = 0;
        for (int64_t c = 0; c < t.chunks; ++c) {
          const A m = maxima.get()[stat + c * blocks * B + at + l];
          M = m > M ? m : M;
        }
        for (int64_t c = 0; c < t.chunks; ++c) {
          const int64_t i = stat + c * blocks * B + at + l;
          if (sums.get()[i] != 0) S += sums.get()[i] * std::exp(maxima.get()[i] - M);
        }
        const A log_S = std::log(S), lse = M + log_S;
        scale[l] = -std::exp(maxima.get()[t.stat + at + l] - M) / S * (1 + 2 * A(a.z_loss) * lse);
        const int64_t r = p.branch[slot + at + l] - t.row;
        if (r < 0 || r >= t.rows) continue;
        // (z - M) - log S, not z - (M + log S): the second rounds log S away at large logits.
        A& log_prob = log_p.get()[slot + at + l];
        log_prob = (log_prob - M) - log_S;
        if (!a.objective) continue;
        A& more = extra.get()[slot + at + l];
        more = -A(a.z_loss) * lse * lse;
        if (e != 0) more += e * ((mean_logit(t, stat + at + l, blocks, M) - log_S) - log_prob);
      }
      if (a.saved) normalise(t, at, valid, scale);
    }
  }

  // The mean of z - M over all rows of a node, from those of its chunks.
  A mean_logit(const Task& t, int64_t stat, int64_t blocks, A M) const {
    A sum = 0;
    for (int64_t c = 0; c < t.chunks; ++c) {
      const int64_t i = stat + c * blocks * B, rows = least(kChunk, t.visit->rows - c * kChunk);
      const A m = maxima.get()[i];
      const A shift = m == -std::numeric_limits<A>::infinity() ? A(0) : m;
      sum += means.get()[i] + (shift - M) * rows / t.visit->rows;
    }
    return sum;
  }

  // exp(z - m) -> d objective / dz
  void normalise(const Task& t, int64_t at, int64_t valid, const A* scale) {
    A* g = saved_panel(t, at, valid);
    const A share = e / t.visit->rows;
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t l = 0; l < valid; ++l) g[r * valid + l] = g[r * valid + l] * scale[l] + share;
    for (int64_t l = 0; l < valid; ++l) {
      const int64_t r = p.branch[t.visit->slot + t.token + at + l] - t.row;
      if (r >= 0 && r < t.rows) g[r * valid + l] += A(1) - e;
    }
  }

  // A node of one row: s = w.x + b, +s for branch 0 and -s for branch 1;
  // as many tokens at a time as fill a vector.
  void sigmoid_node(const Task& t, Local& local) {
    int64_t stride;
    const A* w = wide_rows(static_cast<const D*>(a.weight) + t.visit->row * H, 1, H, H,
                           local.w.get(), stride);
    const A bias = a.bias ? load(static_cast<const D*>(a.bias)[t.visit->row]) : A(0);
    constexpr int64_t lanes = Vector<A>::lanes;
    for (int64_t at = t.token; at < t.token + t.tokens; at += lanes) {
      const int64_t n = least(lanes, t.token + t.tokens - at), slot = t.visit->slot + at;
      A sign[lanes] = {}, v[lanes] = {}, log_prob[lanes], grad[lanes];
      for (int64_t i = 0; i < n; ++i) {
        sign[i] = p.branch[slot + i] ? A(-1) : A(1);
        v[i] = sign[i] * (dot(xs.get() + (t.visit->begin + at + i) * ld, w, H) + bias);
      }
      for (int64_t l = 0; l < lanes; ++l) {
        log_prob[l] = log_sigmoid(v[l]);
        const A power = exp_below(v[l] < 0 ? v[l] : -v[l]);
        grad[l] = sign[l] * ((v[l] < 0 ? A(1) : power) / (A(1) + power) - e / 2);
      }
      std::memcpy(log_p.get() + slot, log_prob, n * sizeof(A));
      // The mean of log sigmoid(v) and log sigmoid(-v) is the first less v / 2.
      for (int64_t i = 0; i < n && a.objective; ++i) extra.get()[slot + i] = -e / 2 * v[i];
      if (a.saved) std::memcpy(static_cast<A*>(a.saved) + t.visit->saved + at, grad, n * sizeof(A));
    }
  }

  // log p of each token, in the order of its path, and then the objective.
  void add_up() {
    A* total = xs.get();  // no longer needed
    std::memset(total, 0, N * sizeof(A));
    add_up(log_p.get(), total, static_cast<A*>(a.output));
    if (a.objective) add_up(extra.get(), total, static_cast<A*>(a.objective));
  }

  void add_up(const A* part, A* total, A* out) const {
    for (int64_t v = 0; v < p.count; ++v) {
      const SoftmaxVisit& visit = p.visits[v];
      for (int64_t i = visit.begin; i < visit.end; ++i)
        total[i] += part[visit.slot + i - visit.begin];
    }
    for (int64_t i = 0; i < a.n.N; ++i) out[p.order[i]] = i < N ? total[i] : A(0);
  }

  const SoftmaxForward& a;
  const SoftmaxPlan& p;
  const int64_t N, H, ld;
  const A e;
  int64_t count_ = 0, stats_ = 0;
  bool failed_ = false;
  Scratch<A> xs, log_p, extra;  // extra: what each pair adds to the objective beside log p
  Scratch<Task> tasks;
  Scratch<A> maxima, sums, means;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
