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

struct SoftmaxMarked;

// The launches of a search that depend on the dtype. word: of each leaf; scratch: `widest` numbers
// for each CTA.
struct SoftmaxSearchLaunch {
  const char* (*search)(const SoftmaxSearch&, const int32_t* word, int64_t ctas, void* scratch,
                        void* stream);
  const char* (*marked_logits)(const SoftmaxSearch&, const SoftmaxMarked&, void* logits,
                               void* stream);
};

// softmax_whole.cu: all launches of a search.
const char* search_softmax(const SoftmaxSearch&, const SoftmaxSearchLaunch&, void* workspace,
                           void* stream);
size_t search_softmax_bytes(const SoftmaxSearch&);

template <DType kType>
struct SoftmaxLaunch {
  static const char* forward(const SoftmaxForward&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                             void* stream);
  static const char* backward(const SoftmaxBackward&, const SoftmaxTree&, const SoftmaxGpuPlan&,
                              const SoftmaxRows&, void* workspace, void* stream);
  static const char* search(const SoftmaxSearch&, const int32_t* word, int64_t ctas, void* scratch,
                            void* stream);
  static const char* marked_logits(const SoftmaxSearch&, const SoftmaxMarked&, void* logits,
                                   void* stream);
};

}  // namespace cuda
}  // namespace fusedrnn
