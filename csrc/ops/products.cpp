// Gradients that are sums over all steps, on the CPU: products of what backward's loop left with
// what entered. In one op, for as torch operators from Python they are twenty-five, which took a
// third of a small call (docs/notebook-cpu.md).
//   dx = dgx W_ih    dW_ih = dgx^T x    dW_hh = du^T met    db_ih, db_hh = sums of dgx, du
// dgx and du are vectors of grads (csrc/cell.h); met is what met W_hh: h before each step.
#include <array>
#include <cstring>
#include <tuple>

#include "../cell_name.h"
#include "../cells.h"
#include "common.h"
#include "product.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;
using List = std::vector<Tensor>;

// Which vectors of grads belong to a cell's gates.
struct GradVectors {
  static constexpr int kMost = 4;
  int gates, second, operand;
  std::array<int, kMost> bias, product;  // of each gate's u, and of its W_hh h
};

template <class Cell>
constexpr int operand_of() {
  if constexpr (Cell::kSecond > 0) return Cell::kOperand;
  return 0;
}

GradVectors vectors_of(const CellName& name) {
#define X(...)                                                                 \
  if (name.kernel == __VA_ARGS__::kName) {                                     \
    using Cell = __VA_ARGS__;                                                  \
    static_assert(Cell::kGates <= GradVectors::kMost, "");                     \
    const bool normed = name.options.layer_norm && Cell::kNorms > 0;           \
    GradVectors v = {Cell::kGates, Cell::kSecond, operand_of<Cell>(), {}, {}}; \
    for (int g = 0; g < Cell::kGates; ++g) {                                   \
      v.bias[g] = Cell::h_grad(g);                                             \
      v.product[g] = normed ? Cell::kGrads + g : v.bias[g];                    \
    }                                                                          \
    return v;                                                                  \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  STD_TORCH_CHECK(false, "fusedrnn: no cell named '", name.kernel, "'");
  return {};
}

Tensor packed(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// One direction's.
struct Products {
  GradVectors v;
  int64_t T, B, D, H, P;
  Tensor grads;  // [N, T, B, D, H], contiguous
  int64_t from;  // where the direction begins in it

  // [T*B, n*H]: vectors a .. a + n - 1 of some steps, and their transposed.
  Tensor vectors(int64_t a, int64_t n, int64_t step, int64_t steps, bool transposed) const {
    return matrix(grads, from + step * B * D * H + a * H, steps * B, n * H, D * H, transposed);
  }
  Tensor of_x(bool transposed) const { return vectors(0, v.gates, 0, T, transposed); }

  // Gates in a row whose vectors are in a row are one run: use(gate, vector, how many).
  template <class Use>
  void runs(const std::array<int, GradVectors::kMost>& of, Use use) const {
    for (int gate = 0, n; gate < v.gates; gate += n) {
      for (n = 1; gate + n < v.gates && of[gate + n] == of[gate] + n; ++n) {
        if (gate + n == v.gates - v.second) break;
      }
      use(gate, of[gate], n);
    }
  }

  // `met` [T, B, P], or else y and h0: of all steps but the first it is y of the step before.
  Tensor weight_hh(const Maybe& met, const Tensor& y, const Tensor& h0, int64_t direction,
                   const Tensor& saved) const {
    const int64_t N = h0.size(0), K = saved.size(3);
    const Tensor out = allocate(grads, {v.gates * H, P});
    runs(v.product, [&](int gate, int vector, int n) {
      const Tensor rows = matrix(out, gate * H * P, n * H, P, P);
      const auto du = [&](int64_t step, int64_t steps) {
        return vectors(vector, n, step, steps, true);
      };
      if (gate >= v.gates - v.second) {  // those met the cell's own operand
        const int64_t at = (direction * T * B * K + v.operand) * H;
        multiply(rows, du(0, T), matrix(saved, at, T * B, H, K * H));
      } else if (met) {
        multiply(rows, du(0, T), matrix(*met, 0, T * B, P, P));
      } else {
        const bool reverse = direction == 1;
        const int64_t first = reverse ? T - 1 : 0, later = reverse ? 0 : 1;
        multiply(rows, du(first, 1), matrix(h0, direction * B * P, B, P, P));
        const int64_t at = (1 - later) * B * N * P + direction * P;
        if (T > 1) multiply(rows, du(later, T - 1), matrix(y, at, (T - 1) * B, P, N * P), rows);
      }
    });
    return out;
  }

  // Of b_ih and b_hh: [G*H] each.
  std::array<Tensor, 2> biases() const {
    const int64_t rows_only[] = {0};
    const Tensor total = torch::stable::sum(vectors(0, D, 0, T, false), {{rows_only, 1}});
    const int64_t unit = H * int64_t(grads.element_size());
    const char* sums = static_cast<const char*>(total.const_data_ptr());
    const Tensor of_x = allocate(grads, {v.gates * H}), of_h = allocate(grads, {v.gates * H});
    std::memcpy(of_x.mutable_data_ptr(), sums, v.gates * unit);
    char* to = static_cast<char*>(of_h.mutable_data_ptr());
    for (int g = 0; g < v.gates; ++g) std::memcpy(to + g * unit, sums + v.bias[g] * unit, unit);
    return {of_x, of_h};
  }
};

std::tuple<Tensor, List, List, List, List> sequence_products(
    std::string cell, Tensor grads, Maybe x, List weight_ih, Tensor y, Tensor h0, Tensor saved,
    List met, bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_biases) {
  const GradVectors v = vectors_of(read_cell(cell));
  STD_TORCH_CHECK(grads.dim() == 5 && h0.dim() == 3 && saved.dim() == 5 && y.dim() == 3,
                  "fusedrnn: grads and saved must have 5 dimensions, y and h0 3");
  const int64_t N = grads.size(0), T = grads.size(1), B = grads.size(2), D = grads.size(3);
  const int64_t H = grads.size(4), P = h0.size(2), width = v.gates * H;
  STD_TORCH_CHECK(
      h0.size(0) == N && h0.size(1) == B && y.size(0) == T && y.size(1) == B &&
          y.size(2) == N * P && saved.size(0) == N && saved.size(1) == T && saved.size(2) == B &&
          saved.size(4) == H && D > v.product[v.gates - 1] && saved.size(3) > v.operand,
      "fusedrnn: grads, y, h0 and saved are not those of one call of cell '", cell, "'");
  STD_TORCH_CHECK(met.empty() || int64_t(met.size()) == N,
                  "fusedrnn: met must hold a tensor for each direction or none, got ", met.size());
  STD_TORCH_CHECK(!x || int64_t(weight_ih.size()) == N,
                  "fusedrnn: weight_ih must hold a tensor for each direction, got ",
                  weight_ih.size());
  for (Tensor& m : met) {
    STD_TORCH_CHECK(m.dim() == 3 && m.size(0) == T && m.size(1) == B && m.size(2) == P,
                    "fusedrnn: met must hold tensors of [T, B, P]");
    m = packed(m);
  }
  const int64_t I = x ? x->size(2) : 0;
  if (x) {
    STD_TORCH_CHECK(x->dim() == 3 && x->size(0) == T && x->size(1) == B,
                    "fusedrnn: x must be [T, B, I] of the same call");
    x = packed(*x);
  }
  grads = packed(grads), y = packed(y), h0 = packed(h0), saved = packed(saved);

  need_x = need_x && x.has_value();
  const Tensor dx =
      allocate(grads, need_x ? std::vector<int64_t>{T, B, I} : std::vector<int64_t>{0});
  const Tensor all_dx = need_x ? matrix(dx, 0, T * B, I, I) : dx;
  List dweight_ih, dweight_hh, dbias_ih, dbias_hh;
  for (int64_t d = 0; d < N; ++d) {
    const Products p = {v, T, B, D, H, P, grads, d * T * B * D * H};
    if (x) {
      const Tensor& w = weight_ih[d];
      STD_TORCH_CHECK(w.dim() == 2 && w.size(0) == width && w.size(1) == I,
                      "fusedrnn: weight_ih must hold tensors of [G*H, I]");
      if (need_x) multiply(all_dx, p.of_x(false), w, d > 0 ? Maybe(all_dx) : Maybe());
      if (need_weight_ih) {
        dweight_ih.push_back(allocate(grads, {width, I}));
        multiply(dweight_ih.back(), p.of_x(true), matrix(*x, 0, T * B, I, I));
      }
    }
    if (need_weight_hh) {
      const Maybe own = met.empty() ? Maybe() : Maybe(met[d]);
      dweight_hh.push_back(p.weight_hh(own, y, h0, d, saved));
    }
    if (need_biases) {
      const std::array<Tensor, 2> sums = p.biases();
      dbias_ih.push_back(sums[0]), dbias_hh.push_back(sums[1]);
    }
  }
  return {dx, dweight_ih, dweight_hh, dbias_ih, dbias_hh};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("sequence_products", TORCH_BOX(&fusedrnn::sequence_products));
}
