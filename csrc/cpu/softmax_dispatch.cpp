// The softmax kernels of the instruction set in use.
#include "../softmax.h"
#include "isa.h"

namespace fusedrnn {

#define FRNN_DECLARE(ISA)                                                   \
  namespace ISA {                                                           \
  const char* softmax_forward(const SoftmaxForward&, const SoftmaxPlan&);   \
  const char* softmax_backward(const SoftmaxBackward&, const SoftmaxPlan&); \
  }
FRNN_DECLARE(portable)
#ifdef FUSEDRNN_HAS_avx2
FRNN_DECLARE(avx2)
FRNN_DECLARE(avx512)
#endif
#undef FRNN_DECLARE

namespace {

template <class Args, class Kernel>
const char* run(const Args& args, const SoftmaxPlan& plan, Kernel portable, Kernel avx2,
                Kernel avx512) {
  const Isa which = isa();
  const Kernel kernel = which == Isa::avx512 ? avx512 : which == Isa::avx2 ? avx2 : portable;
  return kernel(args, plan);
}

}  // namespace

#ifdef FUSEDRNN_HAS_avx2
#define FRNN_EACH_ISA(NAME) portable::NAME, avx2::NAME, avx512::NAME
#else
#define FRNN_EACH_ISA(NAME) portable::NAME, portable::NAME, portable::NAME
#endif

const char* cpu_softmax_forward(const SoftmaxForward& args, const SoftmaxPlan& plan) {
  return run(args, plan, FRNN_EACH_ISA(softmax_forward));
}

const char* cpu_softmax_backward(const SoftmaxBackward& args, const SoftmaxPlan& plan) {
  return run(args, plan, FRNN_EACH_ISA(softmax_backward));
}

}  // namespace fusedrnn
