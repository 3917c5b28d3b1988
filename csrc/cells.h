// Every cell the library knows, one line each. Kernels, ops and tests are made from this list.
#pragma once
#include "cells/gru.h"
#include "cells/gru_reset_before.h"
#include "cells/lstm.h"
#include "cells/lstm_coupled.h"
#include "cells/rnn.h"
#include "cells/slstm.h"

#define FRNN_FOR_EACH_CELL(X) \
  X(LSTM)                     \
  X(LSTMCoupled)              \
  X(SLSTM)                    \
  X(GRU)                      \
  X(GRURelu)                  \
  X(GRUResetBefore)           \
  X(GRUResetBeforeRelu)       \
  X(RNN<Tanh>)                \
  X(RNN<Relu>)                \
  X(RNN<Sigmoid>)             \
  X(RNN<Identity>)
