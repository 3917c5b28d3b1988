// What the sequence ops share: the sizes of a cell, the checks of tensors, and the launch.
#pragma once
#include <array>
#include <sstream>

#include "../cell_name.h"
#include "../cells.h"
#include "common.h"

namespace fusedrnn {

using Maybe = std::optional<Tensor>;
using List = std::vector<Tensor>;
using Size = std::vector<int64_t>;

// What an op needs to know of a cell.
struct CellSizes {
  static constexpr int kMostGates = 4;
  int gates, states, saved, grads, weights;
  int second, operand;  // gates of the second product, and where its operand is among saved
  // Which vectors of grads belong to each gate's u, and to its W_hh h.
  std::array<int, kMostGates> of_u, of_product;
};

template <class Cell>
CellSizes sizes_of_cell(const CellOptions& options) {
  static_assert(Cell::kGates <= CellSizes::kMostGates, "");
  const CallSizes<Cell> sizes(options);
  const bool normed = options.layer_norm && Cell::kNorms > 0;
  int operand = 0;
  if constexpr (Cell::kSecond > 0) operand = Cell::kOperand;
  CellSizes c = {Cell::kGates,  Cell::kStates, sizes.saved, sizes.grads, sizes.weights,
                 Cell::kSecond, operand,       {},          {}};
  for (int g = 0; g < Cell::kGates; ++g) {
    c.of_u[g] = Cell::h_grad(g);
    c.of_product[g] = normed ? Cell::kGrads + g : c.of_u[g];
  }
  return c;
}

inline CellSizes sizes_of(const CellName& cell) {
#define X(...) \
  if (cell.kernel == __VA_ARGS__::kName) return sizes_of_cell<__VA_ARGS__>(cell.options);
  FRNN_FOR_EACH_CELL(X)
#undef X
  STD_TORCH_CHECK(false, "fusedrnn: no cell named '", cell.kernel, "'");
  return {};
}

inline std::string show(const Tensor& t) {
  std::ostringstream out;
  out << '[';
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << ']';
  return out.str();
}

inline bool has_size(const Tensor& t, const Size& size) {
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

}  // namespace fusedrnn
