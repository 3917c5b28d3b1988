// The list of cells: everything that exists per cell is made from it.
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
  X(GRUResetBefore)           \
  X(RNN)
