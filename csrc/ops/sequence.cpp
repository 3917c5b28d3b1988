// The sequence ops (schemas: fusedrnn/ops.py): check what must hold, allocate, call the kernel.
#include <sstream>
#include <tuple>

#include "../cells.h"
#include "common.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;
using Size = std::vector<int64_t>;

struct CellSizes {
  int gates, states, saved, grads;
};

CellSizes sizes_of(const std::string& cell) {
#define X(...)                    \
  if (cell == __VA_ARGS__::kName) \
    return {__VA_ARGS__::kGates, __VA_ARGS__::kStates, __VA_ARGS__::kSaved, __VA_ARGS__::kGrads};
  FRNN_FOR_EACH_CELL(X)
#undef X
  STD_TORCH_CHECK(false, "fusedrnn: no cell named '", cell, "'");
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
  Maybe lengths(const Maybe& t, int64_t B) const {
    if (!t.has_value()) return std::nullopt;
    return check(*t, "lengths", {B}, ScalarType::Long);
  }

 private:
  const Tensor& like_;
  const char* first_;
};

const int64_t* longs(const Maybe& t) {
  return t.has_value() ? static_cast<const int64_t*>(t->const_data_ptr()) : nullptr;
}

// Finds the kernel, gives it workspace and stream, and turns its complaint into an exception.
template <class Args, class Pick>
void launch(const std::string& cell, const Tensor& like, const Args& args, bool backward,
            Pick pick) {
  const SequenceKernels* kernels = nullptr;
  void* stream = nullptr;
#ifdef FUSEDRNN_CUDA
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (like.is_cuda()) {
    guard.emplace(like.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    kernels = find_cuda_sequence(cell.c_str());
  }
#endif
  if (like.is_cpu()) kernels = find_cpu_sequence(cell.c_str());
  STD_TORCH_CHECK(kernels, "fusedrnn: no native kernel of cell '", cell, "' for this device");
  const int64_t bytes = int64_t(kernels->workspace_bytes(args.n, backward));
  Tensor workspace = allocate(like, {bytes}, ScalarType::Byte);
  const char* wrong = pick(*kernels)(args, workspace.mutable_data_ptr(), stream);
  STD_TORCH_CHECK(wrong == nullptr, "fusedrnn: ", wrong ? wrong : "");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sequence_forward(
    std::string cell, Tensor gx, Tensor weight_hh, Maybe bias_hh, Maybe weight_hr, Tensor h0,
    Tensor c0, Maybe lengths, bool reverse, bool save) {
  const CellSizes c = sizes_of(cell);
  STD_TORCH_CHECK(gx.dim() == 3 && weight_hh.dim() == 2 && weight_hh.size(0) % c.gates == 0,
                  "fusedrnn: gx must be [T, B, G*H] and weight_hh [G*H, P] with G = ", c.gates,
                  ", got ", show(gx), " and ", show(weight_hh));
  const int64_t T = gx.size(0), B = gx.size(1), P = weight_hh.size(1);
  const int64_t H = weight_hh.size(0) / c.gates, S = c.states;
  STD_TORCH_CHECK(weight_hr.has_value() || P == H, "fusedrnn: weight_hh must be [", c.gates * H,
                  ", ", H, "] without a projection, got ", show(weight_hh));
  const Checked checked(gx, "gx");
  gx = checked(gx, "gx", {T, B, c.gates * H});
  weight_hh = checked(weight_hh, "weight_hh", {c.gates * H, P});
  bias_hh = checked(bias_hh, "bias_hh", {c.gates * H});
  weight_hr = checked(weight_hr, "weight_hr", {P, H});
  h0 = checked(h0, "h0", {B, P});
  c0 = checked(c0, "c0", {S - 1, B, H});
  lengths = checked.lengths(lengths, B);

  const bool keep_hidden = save && weight_hr.has_value();
  Tensor y = allocate(gx, {T, B, P}), hn = allocate(gx, {B, P}), cn = allocate(gx, {S - 1, B, H});
  Tensor saved = allocate(gx, save ? Size{T, B, c.saved, H} : Size{0});
  Tensor cells = allocate(gx, save ? Size{T, S - 1, B, H} : Size{0}, state_dtype(gx));
  Tensor hidden = allocate(gx, keep_hidden ? Size{T, B, H} : Size{0});
  const SequenceForward args{
      {T, B, H, P, dtype_of(gx), reverse, int(torch::stable::get_num_threads())},
      gx.const_data_ptr(),
      weight_hh.const_data_ptr(),
      data(bias_hh),
      data(weight_hr),
      h0.const_data_ptr(),
      c0.const_data_ptr(),
      longs(lengths),
      y.mutable_data_ptr(),
      hn.mutable_data_ptr(),
      cn.mutable_data_ptr(),
      save ? saved.mutable_data_ptr() : nullptr,
      save ? cells.mutable_data_ptr() : nullptr,
      keep_hidden ? hidden.mutable_data_ptr() : nullptr};
  if (B > 0) launch(cell, gx, args, false, [](const SequenceKernels& k) { return k.forward; });
  return {y, hn, cn, saved, cells, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sequence_backward(
    std::string cell, Maybe dy, Maybe dhn, Maybe dcn, Tensor y, Tensor h0, Tensor c0,
    Tensor weight_hh, Maybe weight_hr, Maybe lengths, bool reverse, Tensor saved, Tensor cells) {
  const CellSizes c = sizes_of(cell);
  STD_TORCH_CHECK(y.dim() == 3 && weight_hh.dim() == 2 && weight_hh.size(0) % c.gates == 0,
                  "fusedrnn: y must be [T, B, P] and weight_hh [G*H, P] with G = ", c.gates,
                  ", got ", show(y), " and ", show(weight_hh));
  const int64_t T = y.size(0), B = y.size(1), P = y.size(2);
  const int64_t H = weight_hh.size(0) / c.gates, S = c.states;
  STD_TORCH_CHECK(weight_hr.has_value() || P == H, "fusedrnn: weight_hh must be [", c.gates * H,
                  ", ", H, "] without a projection, got ", show(weight_hh));
  const Checked checked(y, "y");
  y = checked(y, "y", {T, B, P});
  dy = checked(dy, "dy", {T, B, P});
  dhn = checked(dhn, "dhn", {B, P});
  dcn = checked(dcn, "dcn", {S - 1, B, H});
  h0 = checked(h0, "h0", {B, P});
  c0 = checked(c0, "c0", {S - 1, B, H});
  weight_hh = checked(weight_hh, "weight_hh", {c.gates * H, P});
  weight_hr = checked(weight_hr, "weight_hr", {P, H});
  lengths = checked.lengths(lengths, B);
  saved = checked(saved, "saved", {T, B, c.saved, H});
  cells = checked.check(cells, "cells", {T, S - 1, B, H}, state_dtype(y));

  Tensor grads = allocate(y, {T, B, c.grads, H}), dh0 = allocate(y, {B, P});
  Tensor dc0 = allocate(y, {S - 1, B, H});
  Tensor dh = allocate(y, weight_hr.has_value() ? Size{T, B, P} : Size{0});
  const SequenceBackward args{
      {T, B, H, P, dtype_of(y), reverse, int(torch::stable::get_num_threads())},
      data(dy),
      data(dhn),
      data(dcn),
      y.const_data_ptr(),
      h0.const_data_ptr(),
      c0.const_data_ptr(),
      weight_hh.const_data_ptr(),
      data(weight_hr),
      longs(lengths),
      saved.const_data_ptr(),
      cells.const_data_ptr(),
      grads.mutable_data_ptr(),
      dh0.mutable_data_ptr(),
      dc0.mutable_data_ptr(),
      weight_hr.has_value() ? dh.mutable_data_ptr() : nullptr};
  if (B > 0) launch(cell, y, args, true, [](const SequenceKernels& k) { return k.backward; });
  return {grads, dh0, dc0, dh};
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
