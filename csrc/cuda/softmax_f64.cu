// The softmax kernels for float64 data.
#include "softmax.cuh"

namespace fusedrnn {
namespace cuda {

template struct SoftmaxLaunch<DType::f64>;

}  // namespace cuda
}  // namespace fusedrnn
