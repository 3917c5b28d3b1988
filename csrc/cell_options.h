// What may vary in a cell from call to call: data, not kernels of their own, which would all have
// to be compiled. Which of them a cell takes, and what they do there, its header says.
//
// dh_clip is every cell's, and the kernels': in backward, what arrives at a step's h (after the
// projection), from the output and from the step after, is bounded to -dh_clip .. dh_clip.
#pragma once

namespace fusedrnn {

enum class Nonlinearity : int { tanh, relu, sigmoid, identity };

struct CellOptions {
  Nonlinearity candidate = Nonlinearity::tanh;
  Nonlinearity update = Nonlinearity::identity;
  Nonlinearity output = Nonlinearity::tanh;
  double clip = 0;     // 0: none
  double dh_clip = 0;  // 0: none
  bool residual = false;
};

}  // namespace fusedrnn
