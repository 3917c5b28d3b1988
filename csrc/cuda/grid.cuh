// The grid kernels' host side: which instance serves a plan, whether all its CTAs run at once, what
// is filled before, and the launch. One launch runs a whole sequence, both directions of a layer
// side by side.
#pragma once
#include "grid_launchers.h"
#include "grid_twice.cuh"

namespace fusedrnn {
namespace cuda {

template <class Problem>
using GridKernel = void (*)(const GridCall<Problem>);

// What CTAs read of each other: `height` rows of `width` bytes, `pitch` apart. In a direction it is
// one tensor or two.
struct Awaited {
  void* at;
  size_t pitch, width, height;
};
template <class Cell, class Data>
void await(Awaited (&fill)[2], const SequenceForward& p, void* workspace) {
  const SequenceSizes& n = p.n;
  const size_t item = sizeof(Data), width = size_t(n.H) * item, height = size_t(n.T * n.B);
  fill[0] = {p.y, size_t(n.y_row) * item, width, height};
  if constexpr (Cell::kSecond > 0) {
    const Operands<Cell, Data> operands(p, workspace);
    fill[1] = {operands.at, size_t(operands.row) * item, width, height};
  }
}
template <class Cell, class Data>
void await(Awaited (&fill)[2], const SequenceBackward& p, void*) {
  const SequenceSizes& n = p.n;
  const size_t width = size_t(Cell::kGrads * n.H) * sizeof(Data);
  fill[0] = {p.grads, width, width, size_t(n.T * n.B)};
}

#ifndef FUSEDRNN_CUDA_HOST
// The launch is cooperative: all CTAs run at once, or the driver refuses. It is asked before under
// the limits of the moment (other tenants, fewer SMs), so that nothing is filled in vain.
struct GridLaunch {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = {};

  static bool failed(cudaError_t error) {
    if (error != cudaSuccess) (void)cudaGetLastError();  // so that nobody reports it a second time
    return error != cudaSuccess;
  }

  // Returns why the kernel cannot be launched, or null.
  template <class Kernel>
  const char* prepare(Kernel kernel, const GridWork& work, int64_t ctas, cudaStream_t stream) {
    const void* symbol = reinterpret_cast<const void*>(kernel);
    cudaFuncAttributes about;
    if (failed(cudaFuncGetAttributes(&about, symbol))) return "the driver has no grid kernel";
    if (about.ptxVersion < 80) return "the library has no code of the grid kernel for this GPU";
    if (failed(cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    work.shared))) {
      return "the driver does not allow so much shared memory";
    }
    int device = 0, sms = 0, cooperative = 0, each = 0;
    if (failed(cudaGetDevice(&device)) ||
        failed(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) ||
        failed(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device)) ||
        failed(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, work.warps * 32,
                                                             size_t(work.shared)))) {
      return "the driver does not say how many CTAs run at once";
    }
    if (cooperative == 0 || int64_t{each} * sms < ctas)
      return "not all its CTAs fit on the GPU now";
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.gridDim = dim3(static_cast<unsigned>(ctas));
    config.blockDim = dim3(static_cast<unsigned>(work.warps * 32));
    config.dynamicSmemBytes = static_cast<size_t>(work.shared);
    config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    return nullptr;
  }
};

// Nothing here waits or allocates: fit for capture in a CUDA graph.
template <class Problem>
const char* launch_grid(GridKernel<Problem> kernel, const GridCall<Problem>& call, int directions,
                        const Awaited (&fill)[2][2], cudaStream_t stream, bool& refused) {
  GridLaunch launch;
  const int64_t ctas = int64_t{call.work.size} * call.work.groups * directions;
  const char* why = launch.prepare(kernel, call.work, ctas, stream);
  refused = why != nullptr;
  if (refused) return why;
  for (int i = 0; i < 2 * directions; ++i) {
    const Awaited& f = fill[i / 2][i % 2];
    if (f.width == 0 || f.height == 0) continue;
    const cudaError_t error =
        cudaMemset2DAsync(f.at, f.pitch, kAbsent & 0xff, f.width, f.height, stream);
    if (GridLaunch::failed(error)) return cudaGetErrorString(error);
  }
  const cudaError_t error = cudaLaunchKernelEx(&launch.config, kernel, call);
  refused = error == cudaErrorCooperativeLaunchTooLarge;
  return GridLaunch::failed(error) ? cudaGetErrorString(error) : nullptr;
}
#endif

template <class Cell, DType kType, class Problem>
const char* serve_grid(GridKernel<Problem> kernel, const Problem* p, int directions,
                       const GridWork& work, void* workspace, void* stream, bool& refused) {
  using Data = typename DataOf<kType>::type;
  GridCall<Problem> call = {{p[0], p[directions - 1]}, work, {}};
  Awaited fill[2][2] = {};
  for (int d = 0; d < directions; ++d) {
    if (workspace != nullptr) {
      const size_t before = d * Gridded<Cell, kType>::workspace_bytes(p[d].n);
      call.operands[d] = static_cast<char*>(workspace) + before;
    }
    await<Cell, Data>(fill[d], p[d], call.operands[d]);
  }
  return launch_grid<Problem>(kernel, call, directions, fill, static_cast<cudaStream_t>(stream),
                              refused);
}

template <class Cell, DType kType>
const char* Gridded<Cell, kType>::forward(const SequenceForward* p, int directions,
                                          const GridWork& work, void* workspace, void* stream,
                                          bool& refused) {
  using Data = typename DataOf<kType>::type;
  return serve_grid<Cell, kType>(grid_forward<Cell, Data>, p, directions, work, workspace, stream,
                                 refused);
}

template <class Cell, DType kType>
const char* Gridded<Cell, kType>::backward(const SequenceBackward* p, int directions,
                                           const GridWork& work, void* stream, bool& refused) {
  using Data = typename DataOf<kType>::type;
  return serve_grid<Cell, kType>(grid_backward<Cell, Data>, p, directions, work, nullptr, stream,
                                 refused);
}

}  // namespace cuda
}  // namespace fusedrnn
