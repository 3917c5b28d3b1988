// The cluster kernels of every cell for float32 data.
#include "cluster.cuh"

namespace fusedrnn {
namespace cuda {

#define X(...) template struct Clustered<__VA_ARGS__, DType::f32>;
FRNN_FOR_EACH_CELL(X)
#undef X

}  // namespace cuda
}  // namespace fusedrnn
