// One direction of one recurrent layer over a whole sequence: what ops hand to the kernels. A layer
// with two directions is two of these, run by one call: their kernels may run side by side.
//
// Sizes: T steps, B batch rows, H hidden units, P the width of h as W_hh sees it (H, or the
// projection's size), G = Cell::kGates, S = Cell::kStates; K vectors of saved, D of grads and V
// rows of weight_unit: CallSizes (csrc/cell.h). All tensors are contiguous, but that rows of y and
// dy are y_row elements apart, since both directions lie in one tensor. "data" is the tensors'
// dtype; "state" is float for 16-bit data, else data. h of a step is its state 0 after the
// projection, if there is one; the other states are "inner".
//
// lengths: row b takes part in steps t < lengths[b] only. Elsewhere it keeps its state, its y is
// zero, and its gradients are zero. A reverse sequence starts each row at its own end.
//
// weight_unit: weights of each unit's own. Where the options say that
// units are independent, weight_hh is [G*H, 0]: there is no product.
// With full peepholes it is [G*H, P + H]: what meets it is h, and then c.
//
// seed: where it is given, a cell with random options draws (csrc/random.h); else it takes means.
// The first number is the steps', the second that of what holds for all of them: of a sequence that
// is run in pieces only the first changes (fusedrnn/random.py, later).
//
// reset: where reset[t, b] is set, nothing flows between steps t - 1 and t of row b: forward, step
// t begins with the reset state (zero, if none is given); in reverse, step t - 1 does. At t = 0
// that is instead of h0; at and after a row's end it means nothing.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cell_options.h"

namespace fusedrnn {

enum class DType : int { f64, f32, bf16, f16 };
inline int item_size(DType d) { return d == DType::f64 ? 8 : d == DType::f32 ? 4 : 2; }

struct SequenceSizes {
  int64_t T, B, H, P;
  DType dtype;
  bool reverse;
  int64_t y_row;        // elements from one row of y or dy to the next
  int threads;          // CPU only: how many may be used
  bool tf32 = false;    // CUDA only: whether products of float32 may be rounded to tf32
  uint8_t at_once = 1;  // CUDA only: calls like this one that are to run side by side
  CellOptions options = {};

  // How many numbers of a row meet W_hh.
  FRNN_HD int64_t depth() const { return options.independent ? 0 : options.full ? P + H : P; }
};

struct SequenceForward {
  SequenceSizes n;
  const void* gx;           // [T, B, G*H]   data: W_ih x + b_ih
  const void* weight_hh;    // [G*H, P]      data
  const void* bias_hh;      // [G*H]         data, or null
  const void* weight_hr;    // [P, H]        data, or null: no projection
  const void* weight_unit;  // [V, H]        data, or null: V is 0
  const int64_t* seed;      // [2], or null
  const void* h0;           // [B, P]        data
  const void* c0;           // [S-1, B, H]   data
  const int64_t* lengths;   // [B], or null: all T
  const bool* reset;        // [T, B], or null: nowhere
  const void* reset_h;      // [B, P]        data, or null: zero
  const void* reset_c;      // [S-1, B, H]   data, or null: zero
  void* y;                  // [T, B, P]     data
  void* hn;                 // [B, P]        data
  void* cn;                 // [S-1, B, H]   data
  void* saved;              // [T, B, K, H]  data, or null: nothing is saved for backward
  void* cells;              // [T, S-1, B, H] state, or null likewise
  void* hidden;             // [T, B, H]     data: h before the projection, or null
};

struct SequenceBackward {
  SequenceSizes n;
  const void* dy;   // [T, B, P]     data, or null: zero
  const void* dhn;  // [B, P]        data, or null: zero
  const void* dcn;  // [S-1, B, H]   data, or null: zero
  const void* y;    // as in forward, from here ...
  const void* h0;
  const void* c0;
  const void* weight_hh;
  const void* weight_hr;
  const void* weight_unit;
  const int64_t* seed;
  const int64_t* lengths;
  const bool* reset;
  const void* reset_h;
  const void* reset_c;
  const void* saved;
  const void* cells;  // ... to here
  void* grads;        // [T, B, D, H]  data: see Cell
  void* dh0;          // [B, P]        data
  void* dc0;          // [S-1, B, H]   data
  void* dreset_h;     // [B, P]        data, or null: not wanted
  void* dreset_c;     // [S-1, B, H]   data, or null likewise
  void* dh;  // [T, B, P]     data: total gradient of each step's h; null without projection
  void* dweight_unit;  // [V, H]       data, or null: not wanted; by CPU kernels only
};

// Launchers: one pair for each cell, found by its kernel's name. They take the layer's directions,
// one or two, of the same sizes, and return null when all is well, else what is wrong.
// workspace_bytes is for one direction; the second's workspace follows the first's. `save`: whether
// forward has saved and cells.
struct SequenceKernels {
  const char* cell;
  const char* (*forward)(const SequenceForward*, int directions, void* workspace, void* stream);
  const char* (*backward)(const SequenceBackward*, int directions, void* workspace, void* stream);
  size_t (*workspace_bytes)(const SequenceSizes&, bool backward, bool save);
};

// null: no such cell
const SequenceKernels* find_cpu_sequence(const char* cell, DType);
const SequenceKernels* find_cuda_sequence(const char* cell);

}  // namespace fusedrnn
