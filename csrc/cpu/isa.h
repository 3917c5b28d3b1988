// Which instruction set the CPU kernels use: the best that the machine and the build have, or the
// one that the environment variable FUSEDRNN_CPU_ISA names. avx512_bf16 is avx512 with a product of
// its own for the sequence op in bfloat16.
#pragma once
#include <string>

namespace fusedrnn {

enum class Isa { portable, avx2, avx512, avx512_bf16 };  // each has all of those before

Isa isa();  // throws std::runtime_error when FUSEDRNN_CPU_ISA names one that cannot run here
const char* isa_name(Isa);
std::string compiled_isas();

}  // namespace fusedrnn
