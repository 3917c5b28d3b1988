// Runs every CPU kernel over sizes across its tile borders, on buffers that are exactly as long as
// they must be, with one to three threads: what tools/sanitize.py builds with a sanitizer. It also
// compares the bits of the runs; numbers are the affair of tests/.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../cell_name.h"
#include "../cells.h"
#include "../cpu/matrix.h"
#include "../cpu/softmax_plan.h"
#include "../cpu/types.h"

namespace fusedrnn {
inline namespace FRNN_ISA {
const SequenceKernels* sequence_kernels(const char* cell);
const char* softmax_forward(const SoftmaxForward&, const SoftmaxPlan&);
const char* softmax_backward(const SoftmaxBackward&, const SoftmaxPlan&);
const char* softmax_search(const SoftmaxSearch&);
const char* log_softmax(const LogSoftmax&);
const char* run_matrix_product(const MatrixProduct&);
}  // namespace FRNN_ISA
}  // namespace fusedrnn

using namespace fusedrnn;

namespace {

std::mt19937 generator;  // begins anew with every run
#ifdef FRNN_BF16_DOT
constexpr DType kTypes[] = {DType::bf16};
#else
constexpr DType kTypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16};
#endif
int runs = 0;

size_t width(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }
DType wide(DType type) { return type == DType::f64 ? type : DType::f32; }

void complain(const std::string& what) {
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

// A tensor on the heap, without a byte to spare.
class Array {
 public:
  Array(DType type, int64_t count, bool random = false)
      : bytes_(count * width(type)), data_(new char[bytes_]) {
    std::memset(data_.get(), 0xff, bytes_);  // NaN in every type
    if (!random) return;
    for (int64_t i = 0; i < count; ++i) {
      const float x = float(generator()) / 4294967296.0f - 0.5f;
      if (type == DType::f64) reinterpret_cast<double*>(data_.get())[i] = x;
      if (type == DType::f32) reinterpret_cast<float*>(data_.get())[i] = x;
      if (type == DType::bf16) store(reinterpret_cast<bf16*>(data_.get())[i], x);
      if (type == DType::f16) store(reinterpret_cast<f16*>(data_.get())[i], x);
    }
  }
  void* get() const { return data_.get(); }
  bool operator==(const Array& other) const {
    return bytes_ == other.bytes_ && !std::memcmp(data_.get(), other.data_.get(), bytes_);
  }

 private:
  size_t bytes_;
  std::unique_ptr<char[]> data_;
};

struct Case {
  int64_t T, B, H, P;  // P 0: no projection
  bool lengths, both, bias;
  bool reset = false;
};

// Enough work a step for several threads, and too little; sizes on both sides of vectors, tiles,
// panels.
constexpr Case kCases[] = {
    {1, 1, 1, 0, false, false, true},      {1, 1, 200, 0, false, false, true},
    {3, 7, 7, 0, true, true, true},        {3, 33, 33, 0, false, false, false},
    {3, 9, 67, 0, true, false, true},      {2, 65, 48, 0, false, true, true},
    {4, 16, 128, 0, true, true, false},    {3, 34, 64, 32, false, false, true},
    {3, 20, 96, 33, true, true, false},    {1, 5, 130, 40, false, false, true},
    {5, 9, 67, 0, true, true, true, true}, {4, 16, 128, 32, false, true, true, true},
};

// Options that run code of their own, and a few together.
constexpr const char* kOptions[] = {
    "lstm:peephole=diagonal",
    "lstm:peephole=full",
    "lstm:peephole=full:zoneout_h=0.2:variational=0.3:dh_clip=0.5",
    "lstm:layer_norm=True",
    "lstm:layer_norm=True:zoneout_h=0.2:dropout=0.3:variational=0.3",
    "lstm:zoneout_h=0.2:zoneout_c=0.3:dropout=0.4",
    "lstm_coupled:peephole=diagonal:zoneout_h=0.2",
    "lstm_coupled:layer_norm=True",
    "gru:layer_norm=True",
    "gru:zoneout_h=0.2:dropout=0.3:variational=0.4",
    "gru_reset_before:zoneout_h=0.2:dropout=0.3",
    "rnn_tanh:independent=True:residual=True:zoneout_h=0.2",
    "rnn_relu:independent=True",
    "slstm:zoneout_h=0.2:variational=0.3",
};

// All that one forward and backward leave behind.
template <class Cell>
std::vector<Array> run_sequence(const CellOptions& options, const Case& c, DType type, int threads,
                                bool save) {
  const CallSizes<Cell> sizes(options);
  const int G = Cell::kGates, S = Cell::kStates, V = sizes.weights, K = sizes.saved;
  const int D = sizes.grads;
  const int64_t T = c.T, B = c.B, H = c.H, P = c.P ? c.P : c.H, N = c.both ? 2 : 1;
  generator.seed(3);
  std::vector<int64_t> lengths;
  for (int64_t b = 0; c.lengths && b < B; ++b) lengths.push_back(generator() % (T + 1));
  const std::unique_ptr<bool[]> reset(c.reset ? new bool[T * B] : nullptr);
  for (int64_t i = 0; c.reset && i < T * B; ++i) reset[i] = generator() % 3 == 0;
  Array y(type, T * B * N * P);
  const Array dy(type, T * B * N * P, true);
  std::vector<Array> kept, out, gradients;
  const auto random = [&](int64_t count) {
    kept.emplace_back(type, count, true);
    return kept.back().get();
  };
  const auto blank = [](std::vector<Array>& list, DType of, int64_t count) {
    list.emplace_back(of, count);
    return list.back().get();
  };
  const auto column = [&](const Array& t, int64_t d) {
    return static_cast<char*>(t.get()) + d * P * width(type);
  };
  const int64_t seed[] = {7, 8};
  SequenceForward f[2] = {};
  for (int64_t d = 0; d < N; ++d) {
    SequenceForward& a = f[d];
    a.n = {T, B, H, P, type, d == 1, N * P, threads, false, 1, options};
    a.gx = random(T * B * G * H), a.weight_hh = random(G * H * a.n.depth());
    a.weight_unit = V ? random(V * H) : nullptr, a.seed = seed;
    a.bias_hh = c.bias ? random(G * H) : nullptr, a.weight_hr = c.P ? random(P * H) : nullptr;
    a.h0 = random(B * P), a.c0 = random((S - 1) * B * H);
    a.lengths = c.lengths ? lengths.data() : nullptr, a.reset = reset.get();
    if (c.reset) a.reset_h = random(B * P), a.reset_c = random((S - 1) * B * H);
    a.y = column(y, d), a.hn = blank(out, type, B * P), a.cn = blank(out, type, (S - 1) * B * H);
    if (save) a.saved = blank(kept, type, T * B * K * H);
    if (save) a.cells = blank(kept, wide(type), T * (S - 1) * B * H);
    if (save && c.P) a.hidden = blank(kept, type, T * B * H);
  }
  const SequenceKernels* kernels = sequence_kernels(Cell::kName);
  if (const char* wrong = kernels->forward(f, int(N), nullptr, nullptr)) complain(wrong);
  ++runs;
  SequenceBackward g[2] = {};
  for (int64_t d = 0; d < N && save; ++d) {
    const SequenceForward& a = f[d];
    SequenceBackward& b = g[d];
    b.n = a.n, b.dy = column(dy, d), b.dhn = random(B * P), b.dcn = random((S - 1) * B * H);
    b.y = a.y, b.h0 = a.h0, b.c0 = a.c0, b.weight_hh = a.weight_hh, b.weight_hr = a.weight_hr;
    b.weight_unit = a.weight_unit, b.seed = a.seed;
    b.lengths = a.lengths, b.reset = a.reset, b.reset_h = a.reset_h, b.reset_c = a.reset_c;
    b.saved = a.saved, b.cells = a.cells, b.grads = blank(gradients, type, T * B * D * H);
    b.dh0 = blank(gradients, type, B * P), b.dc0 = blank(gradients, type, (S - 1) * B * H);
    if (c.reset) b.dreset_h = blank(gradients, type, B * P);
    if (c.reset) b.dreset_c = blank(gradients, type, (S - 1) * B * H);
    if (c.P) b.dh = blank(gradients, type, T * B * P);
    if (V) b.dweight_unit = blank(gradients, type, V * H);
  }
  if (save) {
    if (const char* wrong = kernels->backward(g, int(N), nullptr, nullptr)) complain(wrong);
    ++runs;
  }
  out.push_back(std::move(y));
  for (Array& gradient : gradients) out.push_back(std::move(gradient));
  return out;
}

template <class Cell>
void sequences(const CellName& cell, const char* name) {
  if (cell.kernel != Cell::kName) return;
  const CellOptions& o = cell.options;
  const bool whole_h = Cell::kSecond || o.independent || o.zoneout_h > 0 || o.variational > 0;
  const int stride = name == cell.kernel ? 1 : 2;  // with options, every other size
  for (size_t i = 0; i < std::size(kCases); i += stride)
    for (DType type : kTypes) {
      const Case& c = kCases[i];
      if (c.P && whole_h) continue;  // such cells take no projection
      const auto expected = run_sequence<Cell>(o, c, type, 1, true);
      for (int threads : {2, 3})
        if (!(run_sequence<Cell>(o, c, type, threads, true) == expected))
          complain(std::string(name) + ": the bits depend on the threads");
      for (int threads : {1, 3}) {
        const auto inferred = run_sequence<Cell>(o, c, type, threads, false);
        for (size_t k = 0; k < inferred.size(); ++k)
          if (!(inferred[k] == expected[k]))
            complain(std::string(name) + ": saving for backward changes bits");
      }
    }
}

void sequences(const char* name) {
  const CellName cell = read_cell(name);
#define X(...) sequences<__VA_ARGS__>(cell, name);
  FRNN_FOR_EACH_CELL(X)
#undef X
}

// A tree of `words` leaves whose nodes have up to `arity` branches each; 2: binary nodes of one
// row.
class Hierarchy {
 public:
  Hierarchy(int64_t words, int64_t arity) : words_(words), arity_(arity) {
    for (int64_t w = 0; w < words; ++w) leaf_rank_.push_back((w * 7 + 3) % words);
    add(0, words);
    rows_.push_back(next_row_), branches_.push_back(int64_t(leaf_.size()));
  }
  SoftmaxTree tree() const {
    return {words_,       int64_t(rows_.size()) - 1, rows_.back(), leaf_rank_.data(),
            rows_.data(), branches_.data(),          leaf_.data(), node_.data()};
  }

 private:
  // The node above leaves [begin, end), and all below it, in preorder.
  int64_t add(int64_t begin, int64_t end) {
    const int64_t index = int64_t(rows_.size());
    const int64_t n = end - begin < arity_ ? end - begin : arity_;
    rows_.push_back(next_row_), branches_.push_back(int64_t(leaf_.size()));
    next_row_ += n == 2 ? 1 : n;
    const int64_t first = int64_t(leaf_.size());
    for (int64_t i = 0; i < n; ++i)
      leaf_.push_back(begin + (end - begin) * i / n), node_.push_back(-1);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t a = begin + (end - begin) * i / n, b = begin + (end - begin) * (i + 1) / n;
      if (b - a > 1) node_[first + i] = add(a, b);
    }
    return index;
  }

  const int64_t words_, arity_;
  int64_t next_row_ = 0;
  std::vector<int64_t> leaf_rank_, rows_, branches_, leaf_, node_;
};

// Training: every third token ignored, smoothing and z-loss.
std::vector<Array> run_softmax(const SoftmaxTree& tree, int64_t N, int64_t H, DType type,
                               int threads, bool sparse) {
  generator.seed(5);
  std::vector<int64_t> target;
  for (int64_t i = 0; i < N; ++i) target.push_back(i % 3 == 2 ? -1 : generator() % tree.words);
  const SoftmaxPlanner planner(tree, target.data(), N, -1);
  const Array input(type, N * H, true), weight(type, tree.rows * H, true);
  const Array bias(type, tree.rows, true), grad(wide(type), N, true);
  const Array saved(wide(type), planner.saved());
  std::vector<Array> out;
  for (int i = 0; i < 2; ++i) out.emplace_back(wide(type), N);
  const SoftmaxSizes n{N, H, tree.rows, type, threads};
  const SoftmaxForward f{n,          0.1,          0.01,         input.get(), weight.get(),
                         bias.get(), out[0].get(), out[1].get(), saved.get()};
  if (const char* wrong = softmax_forward(f, planner.plan())) complain(wrong);
  const int64_t rows = sparse ? planner.rows() : tree.rows;
  for (int64_t count : {N * H, rows * H, rows}) out.emplace_back(type, count);
  const SoftmaxBackward b{n,      grad.get(),   input.get(),  weight.get(), saved.get(),
                          sparse, out[2].get(), out[3].get(), out[4].get()};
  if (const char* wrong = softmax_backward(b, planner.plan())) complain(wrong);
  runs += 2;
  return out;
}

// Scoring: all words and back, the five best words, a word drawn at random.
std::vector<Array> run_scores(const Hierarchy& hierarchy, int64_t N, int64_t H, DType type,
                              int threads) {
  generator.seed(6);
  const SoftmaxTree tree = hierarchy.tree();
  const int64_t first = tree.node_rows[1], k = tree.words < 5 ? tree.words : 5;
  std::vector<int32_t> word(tree.words);
  for (int64_t w = 0; w < tree.words; ++w) word[tree.leaf_rank[w]] = int32_t(w);
  int64_t widest = 0;
  for (int64_t m = 0; m < tree.nodes; ++m)
    widest = std::max(widest, tree.node_rows[m + 1] - tree.node_rows[m]);
  const Array input(type, N * H, true), weight(type, tree.rows * H, true);
  const Array bias(type, tree.rows, true), root(wide(type), N * first, true);
  const Array logits(wide(type), N * tree.rows, true), grad(wide(type), N * tree.words, true);
  std::vector<double> uniform;
  for (int64_t i = 0; i < N; ++i) uniform.push_back(double(generator()) / 4294967296.0);
  std::vector<Array> out;
  const auto blank = [&](DType of, int64_t count) {
    out.emplace_back(of, count);
    return out.back().get();
  };
  const auto must = [](const char* wrong) {
    if (wrong) complain(wrong);
    ++runs;
  };
  LogSoftmax whole{N, wide(type), threads, tree, word.data(), logits.get(), nullptr, nullptr};
  whole.out = blank(wide(type), N * tree.words);
  must(log_softmax(whole));
  whole.grad = grad.get(), whole.out = blank(wide(type), N * tree.rows);
  must(log_softmax(whole));
  SoftmaxSearch search{};
  search.n = {N, H, tree.rows, type, threads}, search.tree = tree, search.word = word.data();
  search.widest = widest, search.input = input.get(), search.weight = weight.get();
  search.bias = bias.get(), search.root = root.get(), search.scale = 1.0;
  search.budget = tree.rows;
  for (bool draw : {false, true}) {
    search.uniform = draw ? uniform.data() : nullptr, search.k = draw ? 1 : k;
    search.log_prob = blank(wide(type), N * search.k);
    search.words = static_cast<int64_t*>(blank(DType::f64, N * search.k));
    search.rows = static_cast<int64_t*>(blank(DType::f64, N));
    must(softmax_search(search));
  }
  return out;
}

void softmaxes() {
  for (int64_t arity : {2, 3, 20, 500})
    for (int64_t words : {2, 41, 300}) {
      const Hierarchy hierarchy(words, arity);
      const auto same = [](const auto& run) {
        const auto expected = run(1);
        for (int threads : {2, 3})
          if (!(run(threads) == expected)) complain("softmax: the bits depend on the threads");
      };
      for (int64_t N : {1, 150})
        for (int64_t H : {1, 40, 65})
          for (DType type : kTypes) {
            for (bool sparse : {false, true})
              same([&](int t) { return run_softmax(hierarchy.tree(), N, H, type, t, sparse); });
            same([&](int t) { return run_scores(hierarchy, N, H, type, t); });
          }
    }
}

std::vector<Array> run_matrices(DType type, int64_t M, int64_t N, int64_t K, int form,
                                int threads) {
  generator.seed(8);
  const bool turn_a = form & 1, turn_b = form & 2, add = form & 4;
  const Array a(type, M * K, true), b(type, K * N, true), bias(type, N, true);
  std::vector<Array> out;
  out.emplace_back(type, M * N, true);
  const MatrixProduct product{.dtype = type,
                              .threads = threads,
                              .M = M,
                              .N = N,
                              .K = K,
                              .a = a.get(),
                              .a_row = turn_a ? M : K,
                              .a_transposed = turn_a,
                              .b = b.get(),
                              .b_row = turn_b ? K : N,
                              .b_transposed = turn_b,
                              .bias = add ? nullptr : bias.get(),
                              .c = out[0].get(),
                              .c_row = N,
                              .add = add};
  if (const char* wrong = run_matrix_product(product)) complain(wrong);
  ++runs;
  return out;
}

// Sizes around vectors, tiles, the rows of a chunk, and both parts of K.
void matrices() {
  constexpr int64_t kSizes[][3] = {
      {8, 1, 8}, {9, 17, 11}, {97, 66, 513}, {200, 130, 60}, {21, 33, 2060}};
  for (const auto& [M, N, K] : kSizes)
    for (DType type : {DType::f64, DType::f32})
      for (int form = 0; form < 8; ++form) {
        const auto expected = run_matrices(type, M, N, K, form, 1);
        for (int threads : {2, 3})
          if (!(run_matrices(type, M, N, K, form, threads) == expected))
            complain("matrices: the bits depend on the threads");
      }
}

}  // namespace

int main() {
#define X(...) sequences(__VA_ARGS__::kName);
  FRNN_FOR_EACH_CELL(X)
#undef X
  for (const char* name : kOptions) sequences(name);
  std::printf("%d sequence kernel runs", runs);
#ifndef FRNN_BF16_DOT  // such an instruction set has none of these of its own
  runs = 0;
  softmaxes();
  std::printf(", %d softmax kernel runs", runs);
  runs = 0;
  matrices();
  std::printf(", %d products of matrices", runs);
#endif
  std::printf("\n");
}
