// Every cell the library knows, one line each. Kernels, ops and tests are made from this list.
#pragma once
#include "cells/gru.h"
#include "cells/gru_reset_before.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

#define FRNN_FOR_EACH_CELL(X) \
  X(LSTM)                     \
  X(GRU)                      \
  X(GRUResetBefore)           \
  X(RNN<Tanh>)                \
  X(RNN<Relu>)                \
  X(RNN<Sigmoid>)
