// The softmax kernels for float16 data.
#include "softmax.cuh"

namespace fusedrnn {
namespace cuda {

template struct SoftmaxLaunch<DType::f16>;

}  // namespace cuda
}  // namespace fusedrnn
