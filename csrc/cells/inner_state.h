// What the options update and clip make of an LSTM's new c, which was its gates' sum.
#pragma once
#include "nonlinearity.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class T>
FRNN_HD T updated(const CellOptions& options, const T& sum) {
  const T c = apply(options.update, sum);
  return options.clip > 0 ? bounded(c, options.clip) : c;
}

// dc/dsum, from c: none where c was bounded.
template <class T>
FRNN_HD T update_slope(const CellOptions& options, const T& c) {
  const T d = slope(options.update, c);
  return options.clip > 0 ? d * bounded_slope(c, options.clip) : d;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
