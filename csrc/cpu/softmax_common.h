// What both passes of the softmax share: sizes of blocks, scratch memory, tokens in sorted order.
//
// A panel is up to kLanes neighbouring tokens of one node. Its logits are [rows][width]: tokens on
// the vector's lanes, so that maxima and sums over rows are vertical and no class needs padding.
#pragma once
#include <omp.h>

#include <cmath>
#include <limits>

#include "../softmax.h"
#include "block_product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class A>
constexpr int64_t kLanes = kTileVectors * Vector<A>::lanes;
constexpr int64_t kPanels = 3;      // panels of a block: 144 tokens in AVX-512 and float
constexpr int64_t kGroup = 32;      // weight rows converted at a time in forward ...
constexpr int64_t kRows = 64;       // ... and in backward
constexpr int64_t kChunk = 512;     // weight rows of one forward task
constexpr int64_t kFeatures = 128;  // features of one product: 24 KB of tokens stay in L1

constexpr int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Floats between rows of a matrix that has at least n columns: whole cache lines, an odd number of
// them, so that rows a power of two apart do not share the cache's sets.
template <class A>
constexpr int64_t row_stride(int64_t n) {
  constexpr int64_t line = 64 / sizeof(A);
  return (ceil_to(n, line) / line | 1) * line;
}

// exp for x <= 0; what float cannot hold is 0.
inline float exp_below(float x) { return x < -87.0f ? 0.0f : exp_host(x); }
inline double exp_below(double x) { return std::exp(x); }

// Memory for one call, not cleared.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, ceil_to((size + 1) * sizeof(T), 64)))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  T* data_;
};

template <class D>
inline void load_row(const D* from, int64_t n, State<D>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

// `columns` of rows of a matrix [n, H] of data: as they lie, or, of 16 bits, converted into
// `local`, whose rows are row_stride(H) apart.
template <class D>
inline const State<D>* wide_rows(const D* from, int64_t rows, int64_t H, int64_t columns,
                                 State<D>* local, int64_t& stride) {
  if constexpr (std::is_same_v<D, State<D>>) {
    stride = H;
    return from;
  } else {
    stride = row_stride<State<D>>(H);
    for (int64_t i = 0; i < rows; ++i) load_row(from + i * H, columns, local + i * stride);
    return local;
  }
}

template <class D>
inline void store_row(const State<D>* from, int64_t n, D* to) {
  for (int64_t i = 0; i < n; ++i) store(to[i], from[i]);
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
