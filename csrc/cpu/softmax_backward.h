// The softmax backward on the CPU. With G = d objective / dz as forward left it and d the gradient
// of each token's objective:
//   dx_t = d_t sum_r G[r, t] w_r
//     tasks: blocks of sorted tokens (and of columns when those are few)
//   dw_r = sum_t G[r, t] d_t x_t
//     tasks: chunks of a node's rows; each row is written once
//   db_r = sum_t G[r, t] d_t
//     as many partial sums as a panel is wide, then a tree: torch sums as exactly, and a bias
//     gradient cancels much
#pragma once
#include "softmax_common.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class D>
class SoftmaxBackwardPass {
  using A = State<D>;
  static constexpr int64_t L = kLanes<A>, B = kPanels * L, lanes = Vector<A>::lanes;

  struct Task {
    const SoftmaxVisit* visit;  // null: rows that no token met, to be cleared
    int64_t row, rows;          // of the weight matrix
    int64_t out;                // where they begin in dweight and dbias
  };

 public:
  SoftmaxBackwardPass(const SoftmaxBackward& args, const SoftmaxPlan& plan)
      : a(args),
        p(plan),
        N(p.tokens),
        H(a.n.H),
        ld(row_stride<A>(H)),
        xs(N * ld),
        ds(N),
        tasks(list_tasks(nullptr)) {}

  bool allocated() {
    if (!(xs && ds && tasks)) return false;
    count_ = list_tasks(tasks.get());
    return true;
  }
  bool failed() const { return failed_; }

  // Called by every thread of a team.
  void run() {
    Scratch<A> local(kRows * ld);
    if (!local) failed_ = true;
#pragma omp barrier
    if (failed_) return;
    if (a.dinput) input_grads(local.get());
    if (a.dweight || a.dbias) weight_grads(local.get());
  }

 private:
  const A* grad() const { return static_cast<const A*>(a.grad); }

  void input_grads(A* local) {
#pragma omp for
    for (int64_t i = 0; i < N; ++i) std::memset(xs.get() + i * ld, 0, ld * sizeof(A));
    const int64_t vectors = (H + lanes - 1) / lanes, blocks = (N + B - 1) / B;
    const int64_t wanted = (2 * omp_get_num_threads() + blocks - 1) / (blocks ? blocks : 1);
    const int64_t most = (vectors + kTileVectors - 1) / kTileVectors;
    const int64_t step = (most + least(wanted, most) - 1) / least(wanted, most) * kTileVectors;
    const int64_t parts = (vectors + step - 1) / step;
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < blocks * parts; ++t) {
      const int64_t first = t % parts * step;
      input_block(t / parts * B, least(N, t / parts * B + B), first * lanes,
                  least(step, vectors - first), local);
    }
#pragma omp for
    for (int64_t i = 0; i < N; ++i) {
      A* row = xs.get() + i * ld;
      const A d = grad()[p.order[i]];
      for (int64_t h = 0; h < H; ++h) row[h] *= d;
      store_row(row, H, static_cast<D*>(a.dinput) + p.order[i] * H);
    }
#pragma omp for
    for (int64_t i = N; i < a.n.N; ++i)
      std::memset(static_cast<D*>(a.dinput) + p.order[i] * H, 0, H * sizeof(D));
  }

  // Sorted tokens [begin, end), columns from `column` on: all nodes they pass through, root first.
  void input_block(int64_t begin, int64_t end, int64_t column, int64_t vectors, A* w) {
    const int64_t columns = vectors * lanes, valid = least(columns, H - column);
    for (int64_t v = 0; v < p.count;) {
      const SoftmaxVisit& visit = p.visits[v];
      if (visit.begin >= end) return;
      if (visit.end <= begin) {
        v = visit.next;
        continue;
      }
      // The choice must not depend on how columns are divided: same bits for any threads.
      const int64_t tokens = least(end, visit.end) - (begin > visit.begin ? begin : visit.begin);
      for (int64_t r = 0; r < visit.rows; r += kRows) {
        const int64_t rows = least(kRows, visit.rows - r);
        const D* weight = static_cast<const D*>(a.weight) + (visit.row + r) * H + column;
        if (tokens <= kFew<A>) {
          int64_t stride;
          const A* few = wide_rows(weight, rows, H, valid, w, stride);
          panels(visit, begin, end, [&](int64_t token, int64_t count, const A* g, int64_t width) {
            add_few(count, rows, g + r * width, width, few, stride, valid,
                    xs.get() + token * ld + column, ld);
          });
          continue;
        }
        for (int64_t i = 0; i < rows; ++i) {
          load_row(weight + i * H, valid, w + i * ld);
          for (int64_t c = valid; c < columns; ++c) w[i * ld + c] = 0;
        }
        panels(visit, begin, end, [&](int64_t token, int64_t count, const A* g, int64_t width) {
          multiply(count, vectors, rows, Strided<A>{g + r * width, 1, width}, w, ld,
                   xs.get() + token * ld + column, ld);
        });
      }
      ++v;
    }
  }

  // Calls f(sorted token, tokens, their G at the node's row 0, G's row stride) for each panel of
  // the visit that has tokens in [begin, end).
  template <class F>
  void panels(const SoftmaxVisit& visit, int64_t begin, int64_t end, F f) const {
    const int64_t T = visit.end - visit.begin, last = least(end, visit.end) - visit.begin;
    for (int64_t t = begin > visit.begin ? begin - visit.begin : 0; t < last;) {
      const int64_t start = t / L * L, width = least(L, T - start),
                    stop = least(start + width, last);
      const A* g = static_cast<const A*>(a.saved) + visit.saved + start * visit.rows + (t - start);
      f(visit.begin + t, stop - t, g, width);
      t = stop;
    }
  }

  void weight_grads(A* local) {
#pragma omp for
    for (int64_t i = 0; i < N; ++i) {
      const A d = grad()[p.order[i]];
      A* row = xs.get() + i * ld;
      load_row(static_cast<const D*>(a.input) + p.order[i] * H, H, row);
      for (int64_t h = 0; h < H; ++h) row[h] *= d;
      for (int64_t h = H; h < ld; ++h) row[h] = 0;
      ds.get()[i] = d;
    }
    const int64_t batch = 1 + count_ / (64 * omp_get_num_threads());
#pragma omp for schedule(dynamic, batch)
    for (int64_t t = 0; t < count_; ++t) rows_of(tasks.get()[t], local);
#if defined(__AVX__)
    _mm_sfence();  // what was streamed is there for whoever sees that this is done
#endif
  }

  void rows_of(const Task& t, A* sum) {
    D* dweight = a.dweight ? static_cast<D*>(a.dweight) + t.out * H : nullptr;
    D* dbias = a.dbias ? static_cast<D*>(a.dbias) + t.out : nullptr;
    const bool few = t.visit && t.visit->end - t.visit->begin <= kFew<A>;
    // Into the tensor itself where rows are whole vectors, or written number by number.
    const bool whole = H % lanes == 0, direct = std::is_same_v<D, A> && (whole || few);
    if (!t.visit) {
      if (dweight && whole && std::is_same_v<D, A>)
        clear(reinterpret_cast<A*>(dweight), t.rows * H / lanes, past());
      else if (dweight)
        std::memset(dweight, 0, t.rows * H * sizeof(D));
      if (dbias) std::memset(dbias, 0, t.rows * sizeof(D));
      return;
    }
    const int64_t r = t.row - t.visit->row;
    if (dweight) {
      const int64_t vectors = (H + lanes - 1) / lanes;
      A* out = direct ? reinterpret_cast<A*>(dweight) : sum;
      const int64_t stride = direct ? H : ld;
      bool add = false;
      panels(*t.visit, 0, N, [&](int64_t token, int64_t count, const A* g, int64_t width) {
        if (few)
          return outer_few(count, t.rows, g + r * width, width, xs.get() + token * ld, ld, H, out,
                           stride, direct && whole && past());
        multiply(t.rows, vectors, count, Strided<A>{g + r * width, width, 1}, xs.get() + token * ld,
                 ld, out, stride, add);
        add = true;
      });
      if (!direct)
        for (int64_t i = 0; i < t.rows; ++i) store_row(sum + i * ld, H, dweight + i * H);
    }
    if (dbias)
      for (int64_t i = 0; i < t.rows; ++i) store(dbias[i], bias_grad(*t.visit, r + i));
  }

  // Whether the gradient is so large that it does not stay in the caches anyway.
  bool past() const {
    constexpr int64_t kLarge = int64_t(32) << 20;
    return a.n.R * H * int64_t(sizeof(D)) >= kLarge &&
           reinterpret_cast<uintptr_t>(a.dweight) % kVectorBytes == 0;
  }

  A bias_grad(const SoftmaxVisit& visit, int64_t r) const {
    if (visit.end - visit.begin <= kFew<A>) {
      A sum = 0;
      panels(visit, 0, N, [&](int64_t token, int64_t count, const A* g, int64_t width) {
        for (int64_t l = 0; l < count; ++l) sum += g[r * width + l] * ds.get()[token + l];
      });
      return sum;
    }
    A part[L] = {};
    panels(visit, 0, N, [&](int64_t token, int64_t count, const A* g, int64_t width) {
      for (int64_t l = 0; l < count; ++l) part[l] += g[r * width + l] * ds.get()[token + l];
    });
    for (int64_t n = least(L, visit.end - visit.begin); n > 1; n = (n + 1) / 2)
      for (int64_t l = 0; l < n / 2; ++l) part[l] += part[l + (n + 1) / 2];
    return part[0];
  }

  // The rows of visited nodes in order, and, unless the gradient is sparse, the gaps between them.
  // Counts only when out is null.
  int64_t list_tasks(Task* out) const {
    constexpr int64_t kClear = 1024;
    int64_t count = 0, row = 0, at = 0;
    const auto add = [&](const SoftmaxVisit* visit, int64_t end, int64_t step) {
      for (; row < end; ++count) {
        const int64_t rows = least(step, end - row);
        if (out) out[count] = {visit, row, rows, at};
        at += rows;
        row += rows;
      }
    };
    const auto skip = [&](int64_t end) { a.sparse ? void(row = end) : add(nullptr, end, kClear); };
    for (int64_t v = 0; v < p.count; ++v) {
      skip(p.visits[v].row);
      add(&p.visits[v], p.visits[v].row + p.visits[v].rows, kRows);
    }
    skip(a.n.R);
    return count;
  }

  const SoftmaxBackward& a;
  const SoftmaxPlan& p;
  const int64_t N, H, ld;
  int64_t count_ = 0;
  bool failed_ = false;
  Scratch<A> xs, ds;
  Scratch<Task> tasks;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
