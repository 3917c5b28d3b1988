// The softmax kernels for bfloat16 data.
#include "softmax.cuh"

namespace fusedrnn {
namespace cuda {

template struct SoftmaxLaunch<DType::bf16>;

}  // namespace cuda
}  // namespace fusedrnn
