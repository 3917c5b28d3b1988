// Picks the instruction set of the CPU kernels, once per process.
#include <cstdlib>
#include <stdexcept>

#include "../sequence.h"
#include "isa.h"
#include "matrix.h"

namespace fusedrnn {

#define FRNN_DECLARE(ISA)                                    \
  namespace ISA {                                            \
  const SequenceKernels* sequence_kernels(const char* cell); \
  }
FRNN_DECLARE(portable)
#ifdef FUSEDRNN_HAS_avx2
FRNN_DECLARE(avx2)
FRNN_DECLARE(avx512)
FRNN_DECLARE(avx512_bf16)
#endif
#undef FRNN_DECLARE
#ifdef FUSEDRNN_HAS_avx2
namespace avx512 {
const char* run_matrix_product(const MatrixProduct&);
}
#endif

namespace {

// The levels are those of the x86-64 psABI that CMakeLists.txt compiles for: v3 and v4.
bool runs_here(Isa which) {
#ifdef FUSEDRNN_HAS_avx2
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const bool bf16 = v4 && __builtin_cpu_supports("avx512bf16");
  const bool has[] = {true, v3, v4, bf16};
  return has[int(which)];
#else
  return which == Isa::portable;
#endif
}

Isa choose() {
  const char* asked = std::getenv("FUSEDRNN_CPU_ISA");
  for (Isa which : {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::portable}) {
    if (asked ? std::string(asked) != isa_name(which) : !runs_here(which)) continue;
    if (runs_here(which)) return which;
    throw std::runtime_error("FUSEDRNN_CPU_ISA=" + std::string(asked) +
                             " cannot run on this machine or is not in this build; compiled: " +
                             compiled_isas() + "; unset it to let the library choose");
  }
  throw std::runtime_error("FUSEDRNN_CPU_ISA=" + std::string(asked) +
                           " is unknown; it must be portable, avx2, avx512 or avx512_bf16");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa which) {
  constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16"};
  return names[int(which)];
}

std::string compiled_isas() {
#ifdef FUSEDRNN_HAS_avx2
  return "portable, avx2, avx512, avx512_bf16";
#else
  return "portable";
#endif
}

const SequenceKernels* find_cpu_sequence(const char* cell, [[maybe_unused]] DType dtype) {
#ifdef FUSEDRNN_HAS_avx2
  if (isa() == Isa::avx512_bf16 && dtype == DType::bf16) return avx512_bf16::sequence_kernels(cell);
  if (isa() >= Isa::avx512) return avx512::sequence_kernels(cell);
  if (isa() == Isa::avx2) return avx2::sequence_kernels(cell);
#endif
  return portable::sequence_kernels(cell);
}

bool has_matrix_product([[maybe_unused]] DType dtype) {
#ifdef FUSEDRNN_HAS_avx2
  return isa() >= Isa::avx512 && (dtype == DType::f32 || dtype == DType::f64);
#else
  return false;
#endif
}

const char* matrix_product([[maybe_unused]] const MatrixProduct& product) {
#ifdef FUSEDRNN_HAS_avx2
  return avx512::run_matrix_product(product);
#else
  return "this build has no product of matrices";
#endif
}

}  // namespace fusedrnn
