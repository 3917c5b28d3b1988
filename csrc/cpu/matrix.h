// Products of whole matrices: the input product of all steps, and the sums over all steps that are
// the gradients of x and of the weights. They use the recurrence's panels and tiles: torch's BLAS
// runs AVX2 kernels on an AMD processor and takes up to 1.7 times as long (docs/notebook-cpu.md).
#pragma once
#include <cstdint>

#include "../sequence.h"

namespace fusedrnn {

// C = A B + bias, or C += A B: [M, K] times [K, N]. Rows of each lie `*_row` elements apart. A may
// lie transposed, as [K, M], and so may B, as [N, K] with rows next to each other.
struct MatrixProduct {
  DType dtype;  // f64 or f32
  int threads;
  int64_t M, N, K;
  const void* a;
  int64_t a_row;
  bool a_transposed;
  const void* b;
  int64_t b_row;
  bool b_transposed;
  const void* bias;  // [N], or null
  void* c;
  int64_t c_row;
  bool add;
};

// Whether there is a kernel for this machine and dtype; elsewhere torch's BLAS serves.
bool has_matrix_product(DType);

// null when all is well, else what is wrong.
const char* matrix_product(const MatrixProduct&);

}  // namespace fusedrnn
