// The arguments of sequence kernels from Python: sizes, and for each direction pointers by the
// names that csrc/sequence.h gives them.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../sequence.h"

namespace fusedrnn {

using Pointers = std::map<std::string, uintptr_t>;  // absent: null

// Of one direction: whether it is the reverse one, and its tensors.
using Direction = std::pair<bool, Pointers>;

struct Problem {
  int64_t T, B, H, P;
  std::string dtype;
  int64_t y_row;
  int threads = 1;

  SequenceSizes sizes(bool reverse) const {
    static const std::map<std::string, DType> names = {{"float64", DType::f64},
                                                       {"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16}};
    return {T, B, H, P, names.at(dtype), reverse, y_row, threads};
  }
};

struct Fields {
  const Pointers& pointers;

  void* operator()(const char* name) const {
    const auto found = pointers.find(name);
    return found == pointers.end() ? nullptr : reinterpret_cast<void*>(found->second);
  }
  const int64_t* lengths() const { return static_cast<const int64_t*>((*this)("lengths")); }
  const int64_t* seed() const { return static_cast<const int64_t*>((*this)("seed")); }
  const bool* reset() const { return static_cast<const bool*>((*this)("reset")); }
};

inline std::vector<SequenceForward> forward_layer(const Problem& problem,
                                                  const std::vector<Direction>& directions) {
  std::vector<SequenceForward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    layer.push_back({problem.sizes(reverse), f("gx"), f("weight_hh"), f("bias_hh"), f("weight_hr"),
                     f("weight_unit"), f.seed(), f("h0"), f("c0"), f.lengths(), f.reset(),
                     f("reset_h"), f("reset_c"), f("y"), f("hn"), f("cn"), f("saved"), f("cells"),
                     f("hidden")});
  }
  return layer;
}

inline std::vector<SequenceBackward> backward_layer(const Problem& problem,
                                                    const std::vector<Direction>& directions) {
  std::vector<SequenceBackward> layer;
  for (const auto& [reverse, pointers] : directions) {
    const Fields f{pointers};
    layer.push_back({problem.sizes(reverse),
                     f("dy"),
                     f("dhn"),
                     f("dcn"),
                     f("y"),
                     f("h0"),
                     f("c0"),
                     f("weight_hh"),
                     f("weight_hr"),
                     f("weight_unit"),
                     f.seed(),
                     f.lengths(),
                     f.reset(),
                     f("reset_h"),
                     f("reset_c"),
                     f("saved"),
                     f("cells"),
                     f("grads"),
                     f("dh0"),
                     f("dc0"),
                     f("dreset_h"),
                     f("dreset_c"),
                     f("dh")});
  }
  return layer;
}

// Of each module its own, for several may be loaded.
inline void bind_problem(pybind11::module_& m) {
  namespace py = pybind11;
  const auto make = [](int64_t T, int64_t B, int64_t H, int64_t P, std::string dtype,
                       int64_t y_row) { return Problem{T, B, H, P, std::move(dtype), y_row}; };
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init(make), py::kw_only(), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("P"),
           py::arg("dtype"), py::arg("y_row"));
}

}  // namespace fusedrnn
