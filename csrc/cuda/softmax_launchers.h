// The softmax launchers of one dtype. Instantiated in softmax_<dtype>.cu; gathered in softmax.cpp,
// which needs no CUDA header.
#pragma once
#include "../softmax.h"

namespace fusedrnn {
namespace cuda {

// softmax_plan.cu: fills the plan.
const char* plan_softmax(const SoftmaxTree&, const SoftmaxTargets&, const SoftmaxGpuPlan&,
                         void* workspace, void* stream);
size_t plan_softmax_bytes(int64_t N);

// Where the weight rows are in the plan, into the workspace.
const char* meet_rows(const SoftmaxRows&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                      void* workspace, void* stream);
size_t meet_rows_bytes(int64_t rows);

template <DType kType>
struct SoftmaxLaunch {
  static const char* forward(const SoftmaxForward&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                             void* stream);
  static const char* backward(const SoftmaxBackward&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                              const SoftmaxRows&, void* workspace, void* stream);
};

}  // namespace cuda
}  // namespace fusedrnn
