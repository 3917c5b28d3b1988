// The CPU softmax kernels of every dtype. Compiled once per instruction set (FRNN_ISA).
#include "softmax_backward.h"
#include "softmax_forward.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

constexpr const char* kNoMemory = "out of memory for the CPU softmax kernel's buffers";

template <class Pass, class Args>
const char* run(const Args& args, const SoftmaxPlan& plan) {
  Pass pass(args, plan);
  if (!pass.allocated()) return kNoMemory;
#pragma omp parallel num_threads(args.n.threads)
  pass.run();
  return pass.failed() ? kNoMemory : nullptr;
}

const char* softmax_forward(const SoftmaxForward& args, const SoftmaxPlan& plan) {
  switch (args.n.dtype) {
    case DType::f64:
      return run<SoftmaxForwardPass<double>>(args, plan);
    case DType::f32:
      return run<SoftmaxForwardPass<float>>(args, plan);
    case DType::bf16:
      return run<SoftmaxForwardPass<bf16>>(args, plan);
    case DType::f16:
      return run<SoftmaxForwardPass<f16>>(args, plan);
  }
  return "unknown dtype";
}

const char* softmax_backward(const SoftmaxBackward& args, const SoftmaxPlan& plan) {
  switch (args.n.dtype) {
    case DType::f64:
      return run<SoftmaxBackwardPass<double>>(args, plan);
    case DType::f32:
      return run<SoftmaxBackwardPass<float>>(args, plan);
    case DType::bf16:
      return run<SoftmaxBackwardPass<bf16>>(args, plan);
    case DType::f16:
      return run<SoftmaxBackwardPass<f16>>(args, plan);
  }
  return "unknown dtype";
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
