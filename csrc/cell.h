// The Cell contract: the maths of one hidden unit at one time step, written once for CPU and GPU.
//
// A cell is a struct without state. All its functions are static, take the values of ONE unit of
// ONE batch row in a scalar type T (float or double; 16-bit tensors are computed in float), and run
// on host and device alike. Everything around them - products with W_hh, layout, lengths, threads -
// belongs to the kernels.
//
//   kName    the name that the Python registry (fusedrnn/cells) and the ops use
//   kGates   rows of W_ih and of W_hh per hidden unit, in torch.nn's gate order
//   kStates  values that travel from step to step; state 0 is h, the one that meets W_hh
//   kSaved   values that forward leaves for backward, per unit and step
//   kGrads   gradient vectors that backward leaves, per unit and step: the first kGates are those
//            of the x-preactivations (W_ih x + b_ih); h_grad(g) says which one belongs to the
//            h-preactivation (W_hh h + b_hh) of gate g. Where both are the same number (LSTM) no
//            extra vector is kept.
//   kNorms   what layer normalisation does: 0, the cell has none; 1, it normalises u; 2, also c on
//            its way to h = o * output(c), o being saved[kOutputGate]
//   kSecond  how many of the LAST gates take a second recurrent product, of the cell's own operand
//            instead of h: 0, or 1 in the reset-before GRU, whose candidate sees U (r * h).
//
//   kWeights, weights(options)
//     how many weights a unit has of its own at most, and in a call: rows of weight_unit
//     (csrc/sequence.h)
//   forward(options, p, x, u, s, out, saved)
//     options                                 what varies from call to call: csrc/cell_options.h
//     p                                       what a unit has of its own: PerUnit, below
//     x[kGates]    x-preactivations           u[kGates]   h-preactivations, b_hh included
//     s[kStates]   states before the step     out[kStates] states after it
//     saved[kSaved]                           to be written
//   backward(options, p, saved, s, out, dout, d, ds)
//     out[1..] states after the step; out[0] is not set (it may have gone through a projection)
//     dout[kStates] gradients of out          d[kGrads]   to be written
//     ds[kStates]   the part of the gradients of s that does not pass through W_hh, to be written;
//                   the kernel adds the product with W_hh to ds[0]
//
//   weight_grads(s, out, d, dw)             where kWeights > 0
//     dw[kWeights] gradients of a unit's own weights, to be written
//
// With kSecond > 0 each direction has one more function, run before the second product:
//   operand(options, x, u, s, saved)
//     u of the first kGates - kSecond gates is known; returns the operand and leaves it in
//     saved[kOperand]. forward then finds saved as left, and in u only the last kSecond entries
//     (the others are zero).
//   backward(...)
//     as above, but d of the first gates that hang on the operand is not yet known
//   backward_operand(options, saved, s, dp, d, ds)
//     dp is the operand's gradient: completes d, adds to ds
#pragma once
#include "activations.h"
#include "cell_options.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// What a unit has of its own in a step beside preactivations and states. Unset is what the options
// do not ask for.
template <class T>
struct PerUnit {
  T weight[3];  // the first Cell::weights(options)
  T drop;       // recurrent dropout: 0, or 1 / (1 - p)
  // Zoneout: the share of the new h, and of the new inner state: 0 or 1, or 1 - p.
  T keep_h, keep_c;
};

// Rows of weight_unit, vectors of saved and vectors of grads of a call. Layer normalisation adds
// the gains of each gate's u, and gain and bias of c; each gate's u before it; and the gradients of
// that, and of the normalised c with gain and bias.
template <class Cell>
struct CallSizes {
  int weights, saved, grads;
  FRNN_HD explicit CallSizes(const CellOptions& o)
      : weights(Cell::weights(o)), saved(Cell::kSaved), grads(Cell::kGrads) {
    if (!o.layer_norm || Cell::kNorms == 0) return;
    const bool inner = Cell::kNorms == 2;
    weights += Cell::kGates + (inner ? 2 : 0);
    saved += Cell::kGates;
    grads += Cell::kGates + (inner ? 1 : 0);
  }
};

// share * a + (1 - share) * b
template <class T>
FRNN_HD T blended(const T& share, const T& a, const T& b) {
  return share * a + (T(1) - share) * b;
}

// Zoneout of h is every cell's.
template <class Cell, class T, int G, int S, int K>
FRNN_HD void cell_forward(const CellOptions& options, const PerUnit<T>& p, const T (&x)[G],
                          const T (&u)[G], const T (&s)[S], T (&out)[S], T (&saved)[K]) {
  Cell::forward(options, p, x, u, s, out, saved);
  if (options.zoneout_h > 0) out[0] = blended(p.keep_h, out[0], s[0]);
}

template <class Cell, class T, int K, int S, int D>
FRNN_HD void cell_backward(const CellOptions& options, const PerUnit<T>& p, const T (&saved)[K],
                           const T (&s)[S], const T (&out)[S], T (&dout)[S], T (&d)[D],
                           T (&ds)[S]) {
  const T dh = dout[0];
  if (options.zoneout_h > 0) dout[0] = p.keep_h * dh;
  Cell::backward(options, p, saved, s, out, dout, d, ds);
  if (options.zoneout_h > 0) ds[0] += (T(1) - p.keep_h) * dh;
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
