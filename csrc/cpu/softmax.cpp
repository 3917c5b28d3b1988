// The CPU softmax kernels of every dtype. Compiled once per instruction set (FRNN_ISA).
#include "softmax_backward.h"
#include "softmax_forward.h"
#include "softmax_search.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

constexpr const char* kNoMemory = "out of memory for the CPU softmax kernel's buffers";

template <class Pass, class... Args>
const char* run(int threads, const Args&... args) {
  Pass pass(args...);
  if (!pass.allocated()) return kNoMemory;
  if (threads == 1) {
    pass.run();  // outside of any team: one inside would start its threads anew
  } else {
#pragma omp parallel num_threads(threads)
    pass.run();
  }
  return pass.failed() ? kNoMemory : nullptr;
}

template <template <class> class Pass, class... Args>
const char* run_dtype(DType dtype, int threads, const Args&... args) {
  switch (dtype) {
    case DType::f64:
      return run<Pass<double>>(threads, args...);
    case DType::f32:
      return run<Pass<float>>(threads, args...);
    case DType::bf16:
      return run<Pass<bf16>>(threads, args...);
    case DType::f16:
      return run<Pass<f16>>(threads, args...);
  }
  return "unknown dtype";
}

const char* softmax_forward(const SoftmaxForward& args, const SoftmaxPlan& plan) {
  return run_dtype<SoftmaxForwardPass>(args.n.dtype, args.n.threads, args, plan);
}

const char* softmax_backward(const SoftmaxBackward& args, const SoftmaxPlan& plan) {
  return run_dtype<SoftmaxBackwardPass>(args.n.dtype, args.n.threads, args, plan);
}

const char* softmax_search(const SoftmaxSearch& args) {
  const int team = int(args.n.N < args.n.threads ? 1 : args.n.threads);
  return run_dtype<SoftmaxSearchPass>(args.n.dtype, team, args);
}

const char* log_softmax(const LogSoftmax& args) {
  const int team = int(args.N < args.threads ? args.N : args.threads);
  if (args.dtype == DType::f64) return run<LogSoftmaxPass<double>>(team, args);
  return run<LogSoftmaxPass<float>>(team, args);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
