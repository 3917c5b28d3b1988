// The sequence ops (schemas: fusedrnn/ops.py): check what must hold, allocate, call the kernel.
#include <tuple>

#include "kept.h"
#include "sequence_call.h"

namespace fusedrnn {
namespace {

// What both ops need to know of a call.
struct Problem {
  CellName cell;
  CellSizes c;
  int64_t N, T, B, H, P;  // N directions
  bool projected;
  bool tf32 = false;
  uint8_t at_once = 1;

  SequenceSizes sizes(int64_t direction, DType dtype) const {
    const int threads = int(torch::stable::get_num_threads());
    return {T, B, H, P, dtype, direction == 1, N * P, threads, tf32, at_once, cell.options};
  }
};

// `like`, named `name`, is gx or y.
Problem problem_of(const std::string& cell, const Tensor& like, const char* name, size_t directions,
                   const List& weight_hh, const List& weight_hr, const List& weight_unit) {
  const CellName name_of = read_cell(cell);
  const CellSizes c = sizes_of(name_of);
  STD_TORCH_CHECK(directions == 1 || directions == 2,
                  "fusedrnn: a layer has one direction or two, got ", directions, " tensors");
  STD_TORCH_CHECK(weight_hh.size() == directions, "fusedrnn: weight_hh must hold ", directions,
                  " tensors, one for each direction, got ", weight_hh.size());
  STD_TORCH_CHECK(weight_hr.empty() || weight_hr.size() == directions,
                  "fusedrnn: weight_hr must hold a tensor for each direction or none, got ",
                  weight_hr.size());
  const Tensor& w = weight_hh[0];
  STD_TORCH_CHECK(like.dim() == 3 && w.dim() == 2 && w.size(0) % c.gates == 0, "fusedrnn: ", name,
                  " must be [T, B, ...] and weight_hh [G*H, P] with G = ", c.gates, ", got ",
                  show(like), " and ", show(w));
  const int64_t H = w.size(0) / c.gates;
  const int64_t width = w.size(1) - (name_of.options.full ? H : 0);
  const bool alone = name_of.options.independent;
  STD_TORCH_CHECK(!alone || (width == 0 && weight_hr.empty()), "fusedrnn: weight_hh must be [",
                  c.gates * H, ", 0] where units are independent, without a projection, got ",
                  show(w));
  const int64_t P = alone ? H : width;
  const bool of_h = name_of.options.zoneout_h > 0 || name_of.options.variational > 0;
  STD_TORCH_CHECK(!of_h || weight_hr.empty(), "fusedrnn: cell '", cell,
                  "' changes h before a projection, which no kernel sees");
  STD_TORCH_CHECK(weight_unit.size() == (c.weights ? directions : 0), "fusedrnn: cell '", cell,
                  "' has ", c.weights, " weights of a unit's own: weight_unit must hold ",
                  c.weights ? directions : 0, " tensors, got ", weight_unit.size());
  STD_TORCH_CHECK(!weight_hr.empty() || P == H, "fusedrnn: weight_hh must be [", c.gates * H, ", ",
                  H + w.size(1) - width, "] without a projection, got ", show(w));
  const bool tf32 = like.is_cuda() && dtype_of(like) == DType::f32 && recurrence_in_tf32();
  return {name_of, c, int64_t(directions), like.size(0), like.size(1),
          H,       P, !weight_hr.empty(),  tf32};
}

uint8_t checked_at_once(int64_t at_once) {
  STD_TORCH_CHECK(at_once >= 1 && at_once <= 255, "fusedrnn: at_once is ", at_once,
                  "; it must be in 1..255");
  return uint8_t(at_once);
}

// Entry d of a tensor's first dimension, or of a list; null where there is none.
const void* part(const Tensor& t, int64_t d) {
  const int64_t bytes = t.numel() / t.size(0) * int64_t(t.element_size());
  return static_cast<const char*>(t.const_data_ptr()) + d * bytes;
}
const void* part(const Maybe& t, int64_t d) { return t ? part(*t, d) : nullptr; }
const void* part(const List& list, int64_t d) {
  return list.empty() ? nullptr : list[d].const_data_ptr();
}
// Where direction d begins in y or dy, [T, B, N*P].
void* columns(const Tensor& t, const Problem& p, int64_t d) {
  return static_cast<char*>(t.mutable_data_ptr()) + d * p.P * int64_t(t.element_size());
}
void* out(const Tensor& t, int64_t d, bool there = true) {
  return there ? const_cast<void*>(part(t, d)) : nullptr;
}

// lengths and resets, checked.
struct Spans {
  Maybe lengths, reset, reset_h, reset_c;

  Spans(const Checked& checked, const Problem& p, const Maybe& lengths_, const Maybe& reset_,
        const Maybe& reset_h_, const Maybe& reset_c_)
      : lengths(checked.check(lengths_, "lengths", {p.B}, ScalarType::Long)),
        reset(checked.check(reset_, "reset", {p.T, p.B}, ScalarType::Bool)),
        reset_h(checked(reset_h_, "reset_h", {p.N, p.B, p.P})),
        reset_c(checked(reset_c_, "reset_c", {p.N, p.c.states - 1, p.B, p.H})) {
    STD_TORCH_CHECK(reset_h.has_value() == reset_c.has_value(),
                    "fusedrnn: reset_h and reset_c must be given together");
    STD_TORCH_CHECK(reset.has_value() || !reset_h.has_value(),
                    "fusedrnn: reset_h is given without reset, the mask that says where");
  }

  template <class Args>
  void fill(Args& a, int64_t d) const {
    a.lengths = lengths ? static_cast<const int64_t*>(lengths->const_data_ptr()) : nullptr;
    a.reset = reset ? static_cast<const bool*>(reset->const_data_ptr()) : nullptr;
    a.reset_h = part(reset_h, d);
    a.reset_c = part(reset_c, d);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sequence_forward(
    std::string cell, List gx, List weight_hh, List bias_hh, List weight_hr, List weight_unit,
    Maybe seed, Tensor h0, Tensor c0, Maybe lengths, Maybe reset, Maybe reset_h, Maybe reset_c,
    bool save, int64_t at_once) {
  STD_TORCH_CHECK(!gx.empty(), "fusedrnn: gx is empty; it must hold a tensor for each direction");
  const Tensor like = gx[0];
  Problem p = problem_of(cell, like, "gx", gx.size(), weight_hh, weight_hr, weight_unit);
  p.at_once = checked_at_once(at_once);
  const int64_t N = p.N, T = p.T, B = p.B, H = p.H, P = p.P, GH = p.c.gates * H, S = p.c.states;
  STD_TORCH_CHECK(bias_hh.empty() || int64_t(bias_hh.size()) == N,
                  "fusedrnn: bias_hh must hold a tensor for each direction or none, got ",
                  bias_hh.size());
  const Checked checked(like, "gx");
  gx = checked(gx, "gx", {T, B, GH});
  weight_hh = checked(weight_hh, "weight_hh", {GH, p.sizes(0, DType::f32).depth()});
  bias_hh = checked(bias_hh, "bias_hh", {GH});
  weight_hr = checked(weight_hr, "weight_hr", {P, H});
  h0 = checked(h0, "h0", {N, B, P});
  c0 = checked(c0, "c0", {N, S - 1, B, H});
  weight_unit = checked(weight_unit, "weight_unit", {p.c.weights, H});
  seed = checked.check(seed, "seed", {N, 2}, ScalarType::Long);
  const Spans spans(checked, p, lengths, reset, reset_h, reset_c);

  const bool keep_hidden = save && p.projected;
  Tensor y = allocate(like, {T, B, N * P}), hn = allocate(like, {N, B, P});
  Tensor cn = allocate(like, {N, S - 1, B, H});
  Tensor saved = allocate_kept(like, save ? Size{N, T, B, p.c.saved, H} : Size{0});
  Tensor cells = allocate_kept(like, save ? Size{N, T, S - 1, B, H} : Size{0}, state_dtype(like));
  Tensor hidden = allocate(like, keep_hidden ? Size{N, T, B, H} : Size{0});
  SequenceForward args[2] = {};
  for (int64_t d = 0; d < N; ++d) {
    SequenceForward& a = args[d];
    a.n = p.sizes(d, dtype_of(like));
    a.gx = part(gx, d);
    a.weight_hh = part(weight_hh, d);
    a.bias_hh = part(bias_hh, d);
    a.weight_hr = part(weight_hr, d);
    a.weight_unit = part(weight_unit, d);
    a.seed = static_cast<const int64_t*>(part(seed, d));
    a.h0 = part(h0, d);
    a.c0 = part(c0, d);
    spans.fill(a, d);
    a.y = columns(y, p, d);
    a.hn = out(hn, d);
    a.cn = out(cn, d);
    a.saved = out(saved, d, save);
    a.cells = out(cells, d, save);
    a.hidden = out(hidden, d, keep_hidden);
  }
  const auto pick = [](const SequenceKernels& k) { return k.forward; };
  if (B > 0) launch(p.cell.kernel, like, args, N, false, pick);
  return {y, hn, cn, saved, cells, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sequence_backward(
    std::string cell, Maybe dy, Maybe dhn, Maybe dcn, Tensor y, Tensor h0, Tensor c0,
    List weight_hh, List weight_hr, List weight_unit, Maybe seed, Maybe lengths, Maybe reset,
    Maybe reset_h, Maybe reset_c, Tensor saved, Tensor cells, int64_t at_once) {
  STD_TORCH_CHECK(!weight_hh.empty(), "fusedrnn: weight_hh is empty; it must hold a tensor for ",
                  "each direction");
  const Tensor like = y;
  Problem p = problem_of(cell, like, "y", weight_hh.size(), weight_hh, weight_hr, weight_unit);
  p.at_once = checked_at_once(at_once);
  const int64_t N = p.N, T = p.T, B = p.B, H = p.H, P = p.P, GH = p.c.gates * H, S = p.c.states;
  const Checked checked(like, "y");
  y = checked(y, "y", {T, B, N * P});
  dy = checked(dy, "dy", {T, B, N * P});
  dhn = checked(dhn, "dhn", {N, B, P});
  dcn = checked(dcn, "dcn", {N, S - 1, B, H});
  h0 = checked(h0, "h0", {N, B, P});
  c0 = checked(c0, "c0", {N, S - 1, B, H});
  weight_hh = checked(weight_hh, "weight_hh", {GH, p.sizes(0, DType::f32).depth()});
  weight_hr = checked(weight_hr, "weight_hr", {P, H});
  weight_unit = checked(weight_unit, "weight_unit", {p.c.weights, H});
  seed = checked.check(seed, "seed", {N, 2}, ScalarType::Long);
  const Spans spans(checked, p, lengths, reset, reset_h, reset_c);
  saved = checked(saved, "saved", {N, T, B, p.c.saved, H});
  cells = checked.check(cells, "cells", {N, T, S - 1, B, H}, state_dtype(y));

  const bool anew = spans.reset_h.has_value();
  Tensor grads = allocate_kept(y, {N, T, B, p.c.grads, H}), dh0 = allocate(y, {N, B, P});
  Tensor dc0 = allocate(y, {N, S - 1, B, H});
  Tensor dh = allocate(y, p.projected ? Size{N, T, B, P} : Size{0});
  Tensor dreset_h = allocate(y, anew ? Size{N, B, P} : Size{0});
  Tensor dreset_c = allocate(y, anew ? Size{N, S - 1, B, H} : Size{0});
  const bool own = p.c.weights > 0 && y.is_cpu();
  Tensor dweight_unit = allocate(y, own ? Size{N, p.c.weights, H} : Size{0});
  if (own && B == 0) torch::stable::zero_(dweight_unit);
  SequenceBackward args[2] = {};
  for (int64_t d = 0; d < N; ++d) {
    SequenceBackward& a = args[d];
    a.n = p.sizes(d, dtype_of(y));
    a.dy = dy ? columns(*dy, p, d) : nullptr;
    a.dhn = part(dhn, d);
    a.dcn = part(dcn, d);
    a.y = columns(y, p, d);
    a.h0 = part(h0, d);
    a.c0 = part(c0, d);
    a.weight_hh = part(weight_hh, d);
    a.weight_hr = part(weight_hr, d);
    a.weight_unit = part(weight_unit, d);
    a.seed = static_cast<const int64_t*>(part(seed, d));
    spans.fill(a, d);
    a.saved = part(saved, d);
    a.cells = part(cells, d);
    a.grads = out(grads, d);
    a.dh0 = out(dh0, d);
    a.dc0 = out(dc0, d);
    a.dreset_h = out(dreset_h, d, anew);
    a.dreset_c = out(dreset_c, d, anew);
    a.dh = out(dh, d, p.projected);
    a.dweight_unit = out(dweight_unit, d, own);
  }
  const auto pick = [](const SequenceKernels& k) { return k.backward; };
  if (B > 0) launch(p.cell.kernel, y, args, N, true, pick);
  return {grads, dh0, dc0, dh, dreset_h, dreset_c, dweight_unit};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("sequence_forward.native", TORCH_BOX(&fusedrnn::sequence_forward));
  m.impl("sequence_backward.native", TORCH_BOX(&fusedrnn::sequence_backward));
}

#ifdef FUSEDRNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("sequence_forward.native", TORCH_BOX(&fusedrnn::sequence_forward));
  m.impl("sequence_backward.native", TORCH_BOX(&fusedrnn::sequence_backward));
}
#endif
