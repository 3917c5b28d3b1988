// One step of one direction without gradients, on the CPU, the input product too: the sequence op
// with its lists, views and what it saves makes a small cell's step take nearly twice as long
// (docs/notebook-cpu.md). And what h of a sequence is multiplied by where it meets W_hh.
#include <tuple>

#include "../cpu/factors.h"
#include "product.h"
#include "sequence_call.h"

namespace fusedrnn {
namespace {

std::tuple<Tensor, Tensor> sequence_step(std::string cell, Tensor x, Tensor h, Maybe c,
                                         Tensor weight_ih, Tensor weight_hh, Maybe bias_ih,
                                         Maybe bias_hh) {
  const CellName name = read_cell(cell);
  const CellSizes sizes = sizes_of(name);
  STD_TORCH_CHECK(sizes.states == (c ? 2 : 1) && sizes.weights == 0, "fusedrnn: cell '", cell,
                  "' has ", sizes.states, " states and ", sizes.weights,
                  " weights of a unit's own; a step takes h, and one more state as c");
  STD_TORCH_CHECK(x.dim() == 2 && h.dim() == 2, "fusedrnn: x and h must be [B, I] and [B, H], got ",
                  show(x), " and ", show(h));
  const int64_t B = x.size(0), I = x.size(1), H = h.size(1), GH = sizes.gates * H;
  const Checked checked(x, "x");
  x = checked(x, "x", {B, I});
  h = checked(h, "h", {B, H});
  c = checked(c, "c", {B, H});
  weight_ih = checked(weight_ih, "weight_ih", {GH, I});
  weight_hh = checked(weight_hh, "weight_hh", {GH, H});
  bias_ih = checked(bias_ih, "bias_ih", {GH});
  bias_hh = checked(bias_hh, "bias_hh", {GH});

  const Tensor gx = allocate(x, {B, GH}), y = allocate(x, {B, H});
  const Tensor hn = allocate(x, {B, H}), cn = allocate(x, c ? Size{B, H} : Size{0});
  const Tensor w = matrix(weight_ih, 0, GH, I, I, true);
  multiply(gx, x, w, bias_ih);
  SequenceForward args[2] = {};
  SequenceForward& a = args[0];
  a.n = {.T = 1,
         .B = B,
         .H = H,
         .P = H,
         .dtype = dtype_of(x),
         .reverse = false,
         .y_row = H,
         .threads = int(torch::stable::get_num_threads()),
         .options = name.options};
  a.gx = gx.const_data_ptr();
  a.weight_hh = weight_hh.const_data_ptr();
  a.bias_hh = data(bias_hh);
  a.h0 = h.const_data_ptr();
  a.c0 = data(c);
  a.y = y.mutable_data_ptr();
  a.hn = hn.mutable_data_ptr();
  a.cn = cn.mutable_data_ptr();
  const auto pick = [](const SequenceKernels& k) { return k.forward; };
  if (B > 0) launch(name.kernel, x, args, 1, false, pick);
  return {hn, cn};
}

Tensor sequence_factors_like(Tensor seed, Tensor like, double p) {
  STD_TORCH_CHECK(like.dim() == 2, "fusedrnn: like must be [B, P], got ", show(like));
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 2,
                  "fusedrnn: seed must be two int64, got ", show(seed));
  const int64_t B = like.size(0), P = like.size(1);
  const int64_t number = static_cast<const int64_t*>(seed.const_data_ptr())[1];
  const Tensor factors = allocate(like, {B, P});
  const auto draw = [&](auto* to) { sequence_factors(number, B, P, p, to); };
  void* to = factors.mutable_data_ptr();
  switch (dtype_of(like)) {
    case DType::f64:
      draw(static_cast<double*>(to));
      break;
    case DType::f32:
      draw(static_cast<float*>(to));
      break;
    case DType::bf16:
      draw(static_cast<bf16*>(to));
      break;
    case DType::f16:
      draw(static_cast<f16*>(to));
      break;
  }
  return factors;
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("sequence_step", TORCH_BOX(&fusedrnn::sequence_step));
  m.impl("sequence_factors", TORCH_BOX(&fusedrnn::sequence_factors_like));
}
