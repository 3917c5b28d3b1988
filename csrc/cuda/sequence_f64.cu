// The stepwise kernels of every cell for float64 data.
#include "sequence.cuh"

namespace fusedrnn {
namespace cuda {

#define X(...) template struct Stepwise<__VA_ARGS__, DType::f64>;
FRNN_FOR_EACH_CELL(X)
#undef X

}  // namespace cuda
}  // namespace fusedrnn
