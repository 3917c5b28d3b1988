// The sequence ops (schemas: fusedrnn/ops.py): check what must hold, allocate, call the kernel.
#include <sstream>
#include <tuple>

#include "../cells.h"
#include "common.h"

namespace fusedrnn {
namespace {

using Maybe = std::optional<Tensor>;
using List = std::vector<Tensor>;
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

// What both ops need to know of a call.
struct Problem {
  CellSizes c;
  int64_t N, T, B, H, P;  // N directions
  bool projected;
};

// `like`, named `name`, is gx or y.
Problem problem_of(const std::string& cell, const Tensor& like, const char* name, size_t directions,
                   const List& weight_hh, const List& weight_hr) {
  const CellSizes c = sizes_of(cell);
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
  const int64_t H = w.size(0) / c.gates, P = w.size(1);
  STD_TORCH_CHECK(!weight_hr.empty() || P == H, "fusedrnn: weight_hh must be [", c.gates * H, ", ",
                  H, "] without a projection, got ", show(w));
  return {c, int64_t(directions), like.size(0), like.size(1), H, P, !weight_hr.empty()};
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
  void fill(Args& a, int d) const {
    a.lengths = lengths ? static_cast<const int64_t*>(lengths->const_data_ptr()) : nullptr;
    a.reset = reset ? static_cast<const bool*>(reset->const_data_ptr()) : nullptr;
    a.reset_h = part(reset_h, d);
    a.reset_c = part(reset_c, d);
  }

  // Entry d of a tensor's first dimension; null where there is no tensor or nothing in it.
  static const void* part(const Tensor& t, int d) {
    const int64_t bytes = t.numel() / t.size(0) * t.element_size();
    return static_cast<const char*>(t.const_data_ptr()) + d * bytes;
  }
  static const void* part(const Maybe& t, int d) { return t ? part(*t, d) : nullptr; }
};

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
