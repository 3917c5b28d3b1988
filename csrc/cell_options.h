// What may vary in a cell from call to call: data, not kernels of their own, which would all have
// to be compiled. Which of them a cell takes, and what they do there, its header says.
//
// zoneout_h, zoneout_c: the probability that a unit keeps its h, or its inner state, as it was
// (Krueger et al. 2017). dropout: the probability that what is new does not reach the state
// (Semeniuta et al. 2016). Both are drawn in every step (csrc/random.h) if the call has a seed;
// without one zoneout mixes old and new in its proportion.
//
// variational: the probability that h of a unit does not meet W_hh, in all steps of a row alike
// (Gal & Ghahramani 2016); drawn where there is a seed.
//
// full (LSTM): gates see all of the c before the step as they see h, through columns of W_hh.
//
// layer_norm: the h-preactivations of all gates, before the bias, and an LSTM's c on its way to h
// are normalised (Ba et al. 2016), by the kernels.
//
// independent (RNN): no product; a unit's h' meets a weight of its own.
//
// dh_clip is every cell's, and the kernels': in backward, what arrives at a step's h (after the
// projection), from the output and from the step after, is bounded to -dh_clip .. dh_clip.
#pragma once
#include "activations.h"

namespace fusedrnn {

constexpr double kNormEps = 1e-5;  // added to the variance

enum class Nonlinearity : int { tanh, relu, sigmoid, identity };

struct CellOptions {
  Nonlinearity candidate = Nonlinearity::tanh;
  Nonlinearity update = Nonlinearity::identity;
  Nonlinearity output = Nonlinearity::tanh;
  double clip = 0;                                                    // 0: none
  double dh_clip = 0;                                                 // 0: none
  double zoneout_h = 0, zoneout_c = 0, dropout = 0, variational = 0;  // probabilities; 0: none
  bool residual = false, independent = false;
  bool peephole = false, full = false, layer_norm = false;

  // Whether a unit has shares of its own in a step, and whether anything is random at all; drawn,
  // where there is a seed.
  FRNN_HD constexpr bool shares() const { return zoneout_h > 0 || zoneout_c > 0 || dropout > 0; }
  FRNN_HD constexpr bool random() const {
    return zoneout_h > 0 || zoneout_c > 0 || dropout > 0 || variational > 0;
  }

  // What the resident GPU kernels leave to the stepwise one.
  FRNN_HD constexpr bool stepwise_only() const {
    return random() || peephole || independent || full || layer_norm;
  }
  FRNN_HD constexpr CellOptions without_stepwise_only() const {
    CellOptions rest = *this;
    rest.zoneout_h = rest.zoneout_c = rest.dropout = rest.variational = 0;
    rest.peephole = rest.independent = rest.full = rest.layer_norm = false;
    return rest;
  }
};

}  // namespace fusedrnn
