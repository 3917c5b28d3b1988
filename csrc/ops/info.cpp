// What this library is: read by the doctor (`python -m fusedrnn`) and by the tests.
#include <sstream>

#include "../cells.h"
#include "../cpu/isa.h"
#include "common.h"

namespace fusedrnn {

template <class Cell>
void describe(std::ostringstream& out) {
  out << Cell::kName << ' ' << Cell::kGates << ' ' << Cell::kStates << ' ' << Cell::kSaved << ' '
      << Cell::kGrads << ' ' << Cell::kSecond;
  for (int g = 0; g < Cell::kGates; ++g) out << (g ? ',' : ' ') << Cell::h_grad(g);
  out << '\n';
}

// One line a cell: name, gates, states, saved, grads, second, h_grad of each gate.
std::string cells_table() {
  std::ostringstream out;
#define X(...) describe<__VA_ARGS__>(out);
  FRNN_FOR_EACH_CELL(X)
#undef X
  return out.str();
}

// "key=value" lines.
std::string build_info() {
  std::ostringstream out;
  out << "compiler=" << __VERSION__ << '\n';
#ifdef FUSEDRNN_CUDA
  out << "cuda_archs=" << FUSEDRNN_ARCHS << '\n';
#endif
  out << "cpu_compiled=" << compiled_isas() << '\n' << "cpu_in_use=" << isa_name(isa()) << '\n';
  return out.str();
}

}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("cells_table", TORCH_BOX(&fusedrnn::cells_table));
  m.impl("build_info", TORCH_BOX(&fusedrnn::build_info));
}
