// What both directions of time share: lengths, and the states on their way in and out of a
// sequence.
#pragma once
#include "../plan.h"
#include "device.cuh"

namespace fusedrnn {
namespace cuda {

// Whether row b takes part in step t.
__device__ inline bool alive(const int64_t* lengths, int64_t b, int64_t t) {
  return lengths == nullptr || t < lengths[b];
}

// Hands out the workspace in pieces; with a null base it only counts.
struct Pieces {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
};

// to = from, or zero when from is null; copy, if wanted, gets the same in the data's type.
template <class Data>
__global__ void __launch_bounds__(256)
    load_state(int64_t n, const Data* from, Wide<Data>* to, Data* copy) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  const Data v = from == nullptr ? Data(0.0f) : from[i];
  to[i] = widen(v);
  if (copy != nullptr) copy[i] = v;
}

template <class Data>
__global__ void __launch_bounds__(256) store_state(int64_t n, const Wide<Data>* from, Data* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < n) round_to(to[i], from[i]);
}

template <class Data>
const char* launch_load(int64_t n, const void* from, Wide<Data>* to, Data* copy, cudaStream_t s) {
  if (n == 0) return nullptr;
  return launch(load_state<Data>, ceil_div(n, 256), 256, s, n, static_cast<const Data*>(from), to,
                copy);
}

template <class Data>
const char* launch_store(int64_t n, const Wide<Data>* from, void* to, cudaStream_t s) {
  if (n == 0) return nullptr;
  return launch(store_state<Data>, ceil_div(n, 256), 256, s, n, from, static_cast<Data*>(to));
}

}  // namespace cuda
}  // namespace fusedrnn
