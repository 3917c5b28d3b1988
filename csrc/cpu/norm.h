// Layer normalisation (Ba et al. 2016) of a row of n numbers: (v - mean) / sqrt(variance + eps).
#pragma once
#include <cmath>

#include "lanes.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class A>
struct Moments {
  A mean, inverse;  // inverse: 1 / sqrt(variance + eps)
};

template <class A>
inline A sum_of(const typename Vector<A>::type& v) {
  A sum = 0;
  for (int l = 0; l < Vector<A>::lanes; ++l) sum += v[l];
  return sum;
}

// f(vector) summed over a row, lane by lane and then over the lanes: the same bits whatever thread.
template <class D, class F>
inline State<D> sum_over(const D* row, int64_t n, F f) {
  using A = State<D>;
  constexpr int lanes = Vector<A>::lanes;
  typename Vector<A>::type sum{};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) sum += f(load_vector(row + i, lanes));
  A total = sum_of<A>(sum);
  for (; i < n; ++i) {
    typename Vector<A>::type one{};
    one[0] = load(row[i]);
    total += f(one)[0];
  }
  return total;
}

template <class D>
inline Moments<State<D>> moments(const D* row, int64_t n) {
  using Vec = typename Vector<State<D>>::type;
  const auto mean = sum_over(row, n, [](const Vec& v) { return v; }) / n;
  const auto variance = sum_over(row, n, [=](const Vec& v) { return (v - mean) * (v - mean); }) / n;
  return {mean, 1 / std::sqrt(variance + State<D>(kNormEps))};
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
