// The softmax kernels for float32 data.
#include "softmax.cuh"

namespace fusedrnn {
namespace cuda {

template struct SoftmaxLaunch<DType::f32>;

}  // namespace cuda
}  // namespace fusedrnn
