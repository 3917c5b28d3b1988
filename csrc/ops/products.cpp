// Products over all steps, on the CPU; and the logits of an output layer. Before forward's loop the
// x-preactivations:
//   gx = x W_ih^T + b_ih
// After backward's, gradients: products of what it left with what entered. In one op: as torch
// operators from Python they are twenty-five, and were a third of a small call instead of a fifth
// (docs/notebook-cpu.md).
//   dx = dgx W_ih    dW_ih = dgx^T x    dW_hh = du^T met    db_ih, db_hh = sums of dgx, du
// dgx and du are vectors of grads (csrc/cell.h); met is what met W_hh: h before each step.
#include <cstring>
#include <tuple>

#include "kept.h"
#include "product.h"
#include "sequence_call.h"

namespace fusedrnn {
namespace {

// One direction's.
struct Products {
  CellSizes c;
  int64_t T, B, D, H, P;
  Tensor grads;  // [N, T, B, D, H], contiguous
  int64_t from;  // where the direction begins in it

  // [T*B, n*H]: vectors a .. a + n - 1 of some steps, and their transposed.
  Tensor vectors(int64_t a, int64_t n, int64_t step, int64_t steps, bool transposed) const {
    return matrix(grads, from + step * B * D * H + a * H, steps * B, n * H, D * H, transposed);
  }
  // Of W_ih x: dgx [T, B, G*H] if it is given.
  Tensor of_x(const Maybe& dgx, bool transposed) const {
    if (!dgx) return vectors(0, c.gates, 0, T, transposed);
    return matrix(*dgx, 0, T * B, c.gates * H, c.gates * H, transposed);
  }

  // Gates in a row whose vectors are in a row are one run: use(gate, vector, how many).
  template <class Use>
  void runs(const std::array<int, CellSizes::kMostGates>& of, Use use) const {
    for (int gate = 0, n; gate < c.gates; gate += n) {
      for (n = 1; gate + n < c.gates && of[gate + n] == of[gate] + n; ++n) {
        if (gate + n == c.gates - c.second) break;
      }
      use(gate, of[gate], n);
    }
  }

  // `met` [T, B, P], or else y and h0: of all steps but the first it is y of the step before.
  Tensor weight_hh(const Maybe& met, const Tensor& y, const Tensor& h0, int64_t direction,
                   const Tensor& saved) const {
    const int64_t N = h0.size(0), K = saved.size(3);
    const Tensor out = allocate(grads, {c.gates * H, P});
    runs(c.of_product, [&](int gate, int vector, int n) {
      const Tensor rows = matrix(out, gate * H * P, n * H, P, P);
      const auto du = [&](int64_t step, int64_t steps) {
        return vectors(vector, n, step, steps, true);
      };
      if (gate >= c.gates - c.second) {  // those met the cell's own operand
        const int64_t at = (direction * T * B * K + c.operand) * H;
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
    const Tensor of_x = allocate(grads, {c.gates * H}), of_h = allocate(grads, {c.gates * H});
    std::memcpy(of_x.mutable_data_ptr(), sums, c.gates * unit);
    char* to = static_cast<char*>(of_h.mutable_data_ptr());
    for (int g = 0; g < c.gates; ++g) std::memcpy(to + g * unit, sums + c.of_u[g] * unit, unit);
    return {of_x, of_h};
  }
};

// Logits of some words: out = x W^T + bias. Rows of out may lie apart.
void word_logits(Tensor x, Tensor weight, Maybe bias, Tensor out) {
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && has_size(out, {x.size(0), weight.size(0)}),
                  "fusedrnn: out must be [N, V] for x [N, H] and weight [V, H], got ", show(out),
                  ", ", show(x), " and ", show(weight));
  STD_TORCH_CHECK(out.is_cpu() && out.scalar_type() == x.scalar_type() && out.stride(1) == 1,
                  "fusedrnn: out must be on the CPU, of x's dtype, its columns side by side");
  const int64_t N = x.size(0), V = weight.size(0), H = x.size(1);
  const Checked checked(x, "x");
  const Tensor rows = checked(x, "x", {N, H}), w = checked(weight, "weight", {V, H});
  multiply(out, rows, matrix(w, 0, V, H, H, true), checked(bias, "bias", {V}));
}

List sequence_inputs(Tensor x, List weight_ih, List bias_ih) {
  STD_TORCH_CHECK(x.dim() == 3, "fusedrnn: x must be [T, B, I], got ", show(x));
  STD_TORCH_CHECK(bias_ih.empty() || bias_ih.size() == weight_ih.size(),
                  "fusedrnn: bias_ih must hold a tensor for each direction or none, got ",
                  bias_ih.size());
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2);
  const Checked checked(x, "x");
  const Tensor rows = checked(x, "x", {T, B, I});
  List found;
  for (size_t d = 0; d < weight_ih.size(); ++d) {
    const int64_t width = weight_ih[d].size(0);
    const Tensor w = checked(weight_ih[d], "weight_ih", {width, I});
    const Maybe bias = bias_ih.empty() ? Maybe() : checked(Maybe(bias_ih[d]), "bias_ih", {width});
    found.push_back(allocate_kept(x, {T, B, width}));
    multiply(matrix(found.back(), 0, T * B, width, width), matrix(rows, 0, T * B, I, I),
             matrix(w, 0, width, I, I, true), bias);
  }
  return found;
}

std::tuple<Tensor, List, List, List, List> sequence_products(
    std::string cell, Tensor grads, Maybe x, List weight_ih, Tensor y, Tensor h0, Tensor saved,
    List met, List dgx, bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_biases) {
  const CellSizes c = sizes_of(read_cell(cell));
  STD_TORCH_CHECK(grads.dim() == 5 && h0.dim() == 3, "fusedrnn: grads must be [N, T, B, D, H] and ",
                  "h0 [N, B, P], got ", show(grads), " and ", show(h0));
  const int64_t N = grads.size(0), T = grads.size(1), B = grads.size(2), H = grads.size(4);
  const int64_t P = h0.size(2), I = x ? x->size(x->dim() - 1) : 0, width = c.gates * H;
  STD_TORCH_CHECK(met.empty() || int64_t(met.size()) == N,
                  "fusedrnn: met must hold a tensor for each direction or none, got ", met.size());
  STD_TORCH_CHECK(dgx.empty() || int64_t(dgx.size()) == N,
                  "fusedrnn: dgx must hold a tensor for each direction or none, got ", dgx.size());
  STD_TORCH_CHECK(!x || int64_t(weight_ih.size()) == N,
                  "fusedrnn: weight_ih must hold a tensor for each direction, got ",
                  weight_ih.size());
  const Tensor like = grads;
  const Checked checked(like, "grads");
  grads = checked(grads, "grads", {N, T, B, c.grads, H});
  x = checked(x, "x", {T, B, I});
  weight_ih = checked(weight_ih, "weight_ih", {width, I});
  y = checked(y, "y", {T, B, N * P});
  h0 = checked(h0, "h0", {N, B, P});
  saved = checked(saved, "saved", {N, T, B, c.saved, H});
  met = checked(met, "met", {T, B, P});
  dgx = checked(dgx, "dgx", {T, B, width});

  need_x = need_x && x.has_value();
  const Tensor dx = allocate(grads, need_x ? Size{T, B, I} : Size{0});
  const Tensor all_dx = need_x ? matrix(dx, 0, T * B, I, I) : dx;
  List dweight_ih, dweight_hh, dbias_ih, dbias_hh;
  for (int64_t d = 0; d < N; ++d) {
    const Products p = {c, T, B, c.grads, H, P, grads, d * T * B * c.grads * H};
    const Maybe normed = dgx.empty() ? Maybe() : Maybe(dgx[d]);
    if (x) {
      const Tensor& w = weight_ih[d];
      if (need_x) multiply(all_dx, p.of_x(normed, false), w, d > 0 ? Maybe(all_dx) : Maybe());
      if (need_weight_ih) {
        dweight_ih.push_back(allocate(grads, {width, I}));
        multiply(dweight_ih.back(), p.of_x(normed, true), matrix(*x, 0, T * B, I, I));
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
  m.impl("word_logits", TORCH_BOX(&fusedrnn::word_logits));
  m.impl("sequence_inputs", TORCH_BOX(&fusedrnn::sequence_inputs));
  m.impl("sequence_products", TORCH_BOX(&fusedrnn::sequence_products));
}
