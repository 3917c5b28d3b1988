// The sequence ops (schemas: fusedrnn/ops.py): check what must hold, allocate, call the kernel.
#include <sstream>
#include <tuple>

#include "../cell_name.h"
#include "../cells.h"
#include "../cpu/factors.h"
#include "common.h"
#include "product.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;
using List = std::vector<Tensor>;
using Size = std::vector<int64_t>;

struct CellSizes {
  int gates, states, saved, grads, weights;
};

CellSizes sizes_of(const CellName& cell) {
#define X(...)                                                                                   \
  if (cell.kernel == __VA_ARGS__::kName) {                                                       \
    const CallSizes<__VA_ARGS__> sizes(cell.options);                                            \
    return {__VA_ARGS__::kGates, __VA_ARGS__::kStates, sizes.saved, sizes.grads, sizes.weights}; \
  }
  FRNN_FOR_EACH_CELL(X)
#undef X
  STD_TORCH_CHECK(false, "fusedrnn: no cell named '", cell.kernel, "'");
  return {};
}

std::string show(const Tensor& t) {
  std::ostringstream out;
  out << '[';
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << ']';
  return out.str();
}

bool has_size(const Tensor& t, const Size& size) {
  if (t.dim() != int64_t(size.size())) return false;
  for (size_t i = 0; i < size.size(); ++i)
    if (t.size(i) != size[i]) return false;
  return true;
}

// Checks one tensor of a call against the first and returns it contiguous.
class Checked {
 public:
  Checked(const Tensor& first, const char* name) : like_(first), first_(name) {}

  Tensor operator()(const Tensor& t, const char* name, const Size& size) const {
    return check(t, name, size, like_.scalar_type());
  }
  Maybe operator()(const Maybe& t, const char* name, const Size& size) const {
    if (!t.has_value()) return std::nullopt;
    return check(*t, name, size, like_.scalar_type());
  }
  Tensor check(const Tensor& t, const char* name, const Size& size, ScalarType dtype) const {
    if (!has_size(t, size)) {
      std::ostringstream need;
      for (size_t i = 0; i < size.size(); ++i) need << (i ? ", " : "") << size[i];
      STD_TORCH_CHECK(false, "fusedrnn: ", name, " has shape ", show(t), ", must be [", need.str(),
                      "]");
    }
    STD_TORCH_CHECK(t.scalar_type() == dtype, "fusedrnn: ", name, " and ", first_,
                    " do not have matching dtypes");
    STD_TORCH_CHECK(t.is_cuda() == like_.is_cuda() && t.get_device() == like_.get_device(),
                    "fusedrnn: ", name, " and ", first_, " are on different devices");
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
  // One for each direction.
  List operator()(const List& list, const char* name, const Size& size) const {
    List checked;
    for (const Tensor& t : list) checked.push_back((*this)(t, name, size));
    return checked;
  }
  Maybe check(const Maybe& t, const char* name, const Size& size, ScalarType dtype) const {
    if (!t.has_value()) return std::nullopt;
    return check(*t, name, size, dtype);
  }

 private:
  const Tensor& like_;
  const char* first_;
};

// Finds the kernel, gives it workspace and stream, and turns its complaint into an exception.
template <class Args, class Pick>
void launch(const std::string& kernel, const Tensor& like, const Args (&args)[2],
            int64_t directions, bool backward, Pick pick) {
  const SequenceKernels* kernels = nullptr;
  void* stream = nullptr;
#ifdef FUSEDRNN_CUDA
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (like.is_cuda()) {
    guard.emplace(like.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    kernels = find_cuda_sequence(kernel.c_str());
  }
#endif
  if (like.is_cpu()) kernels = find_cpu_sequence(kernel.c_str(), args[0].n.dtype);
  STD_TORCH_CHECK(kernels, "fusedrnn: no native kernel of cell '", kernel, "' for this device");
  const int64_t bytes =
      int64_t(kernels->workspace_bytes(args[0].n, backward, args[0].saved != nullptr));
  Tensor workspace = allocate(like, {directions * bytes}, ScalarType::Byte);
  void* place = workspace.mutable_data_ptr();
  const char* wrong = pick(*kernels)(args, int(directions), place, stream);
  STD_TORCH_CHECK(wrong == nullptr, "fusedrnn: ", wrong ? wrong : "");
}

// What both ops need to know of a call.
struct Problem {
  CellName cell;
  CellSizes c;
  int64_t N, T, B, H, P;  // N directions
  bool projected;
  bool tf32 = false;

  SequenceSizes sizes(int64_t direction, DType dtype) const {
    const int threads = int(torch::stable::get_num_threads());
    return {T, B, H, P, dtype, direction == 1, N * P, threads, tf32, cell.options};
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
    bool save) {
  STD_TORCH_CHECK(!gx.empty(), "fusedrnn: gx is empty; it must hold a tensor for each direction");
  const Tensor like = gx[0];
  const Problem p = problem_of(cell, like, "gx", gx.size(), weight_hh, weight_hr, weight_unit);
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
  seed = checked.check(seed, "seed", {N}, ScalarType::Long);
  const Spans spans(checked, p, lengths, reset, reset_h, reset_c);

  const bool keep_hidden = save && p.projected;
  Tensor y = allocate(like, {T, B, N * P}), hn = allocate(like, {N, B, P});
  Tensor cn = allocate(like, {N, S - 1, B, H});
  Tensor saved = allocate(like, save ? Size{N, T, B, p.c.saved, H} : Size{0});
  Tensor cells = allocate(like, save ? Size{N, T, S - 1, B, H} : Size{0}, state_dtype(like));
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sequence_backward(
    std::string cell, Maybe dy, Maybe dhn, Maybe dcn, Tensor y, Tensor h0, Tensor c0,
    List weight_hh, List weight_hr, List weight_unit, Maybe seed, Maybe lengths, Maybe reset,
    Maybe reset_h, Maybe reset_c, Tensor saved, Tensor cells) {
  STD_TORCH_CHECK(!weight_hh.empty(), "fusedrnn: weight_hh is empty; it must hold a tensor for ",
                  "each direction");
  const Tensor like = y;
  const Problem p =
      problem_of(cell, like, "y", weight_hh.size(), weight_hh, weight_hr, weight_unit);
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
  seed = checked.check(seed, "seed", {N}, ScalarType::Long);
  const Spans spans(checked, p, lengths, reset, reset_h, reset_c);
  saved = checked(saved, "saved", {N, T, B, p.c.saved, H});
  cells = checked.check(cells, "cells", {N, T, S - 1, B, H}, state_dtype(y));

  const bool anew = spans.reset_h.has_value();
  Tensor grads = allocate(y, {N, T, B, p.c.grads, H}), dh0 = allocate(y, {N, B, P});
  Tensor dc0 = allocate(y, {N, S - 1, B, H});
  Tensor dh = allocate(y, p.projected ? Size{N, T, B, P} : Size{0});
  Tensor dreset_h = allocate(y, anew ? Size{N, B, P} : Size{0});
  Tensor dreset_c = allocate(y, anew ? Size{N, S - 1, B, H} : Size{0});
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
  }
  const auto pick = [](const SequenceKernels& k) { return k.backward; };
  if (B > 0) launch(p.cell.kernel, y, args, N, true, pick);
  return {grads, dh0, dc0, dh, dreset_h, dreset_c};
}

// One step of one direction, without gradients, on the CPU: the input product too. The sequence op
// with its lists, views and what it saves costs three times as much as the step of a small layer.
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
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "fusedrnn: seed must be one int64, got ", show(seed));
  const int64_t B = like.size(0), P = like.size(1);
  const int64_t number = *static_cast<const int64_t*>(seed.const_data_ptr());
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
  m.impl("sequence_forward.native", TORCH_BOX(&fusedrnn::sequence_forward));
  m.impl("sequence_backward.native", TORCH_BOX(&fusedrnn::sequence_backward));
  m.impl("sequence_step", TORCH_BOX(&fusedrnn::sequence_step));
  m.impl("sequence_factors", TORCH_BOX(&fusedrnn::sequence_factors_like));
}

#ifdef FUSEDRNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("sequence_forward.native", TORCH_BOX(&fusedrnn::sequence_forward));
  m.impl("sequence_backward.native", TORCH_BOX(&fusedrnn::sequence_backward));
}
#endif
