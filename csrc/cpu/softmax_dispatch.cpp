// The softmax kernels of the instruction set in use.
#include "../softmax.h"
#include "isa.h"

namespace fusedrnn {

#define FRNN_DECLARE(ISA)                                                   \
  namespace ISA {                                                           \
  const char* softmax_forward(const SoftmaxForward&, const SoftmaxPlan&);   \
  const char* softmax_backward(const SoftmaxBackward&, const SoftmaxPlan&); \
  const char* softmax_search(const SoftmaxSearch&);                         \
  const char* log_softmax(const LogSoftmax&);                               \
  }
FRNN_DECLARE(portable)
#ifdef FUSEDRNN_HAS_avx2
FRNN_DECLARE(avx2)
FRNN_DECLARE(avx512)
#endif
#undef FRNN_DECLARE

namespace {

template <class Kernel>
Kernel in_use(Kernel portable, Kernel avx2, Kernel avx512) {
  const Isa which = isa();
  return which >= Isa::avx512 ? avx512 : which == Isa::avx2 ? avx2 : portable;
}

}  // namespace

#ifdef FUSEDRNN_HAS_avx2
#define FRNN_EACH_ISA(NAME) portable::NAME, avx2::NAME, avx512::NAME
#else
#define FRNN_EACH_ISA(NAME) portable::NAME, portable::NAME, portable::NAME
#endif

const char* cpu_softmax_forward(const SoftmaxForward& args, const SoftmaxPlan& plan) {
  return in_use(FRNN_EACH_ISA(softmax_forward))(args, plan);
}

const char* cpu_softmax_backward(const SoftmaxBackward& args, const SoftmaxPlan& plan) {
  return in_use(FRNN_EACH_ISA(softmax_backward))(args, plan);
}

const char* cpu_softmax_search(const SoftmaxSearch& args) {
  return in_use(FRNN_EACH_ISA(softmax_search))(args);
}

const char* cpu_log_softmax(const LogSoftmax& args) {
  return in_use(FRNN_EACH_ISA(log_softmax))(args);
}

}  // namespace fusedrnn
