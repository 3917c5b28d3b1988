// What the options make of an LSTM's inner state: update and clip, of the new c, which was its
// gates' sum; zoneout_c, of what goes on to the next step, while h is made of c itself; dropout, of
// g.
#pragma once
#include "../cell.h"
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

template <class T>
FRNN_HD T kept(const CellOptions& options, const PerUnit<T>& p, const T& c, const T& before) {
  return options.zoneout_c > 0 ? blended(p.keep_c, c, before) : c;
}

// g as it reaches c.
template <class T>
FRNN_HD T dropped(const CellOptions& options, const PerUnit<T>& p, const T& g) {
  return options.dropout > 0 ? p.drop * g : g;
}

// With peepholes (Gers & Schmidhuber 2000) a gate's preactivation sees its unit's c.
template <class T>
FRNN_HD T peeping(const CellOptions& options, const T& a, const T& weight, const T& c) {
  return options.peephole ? a + weight * c : a;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
