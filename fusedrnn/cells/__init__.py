"""The registry: every cell, one line each. A new cell needs a line here and one in csrc/cells.h."""

from . import gru, gru_reset_before, lstm, lstm_coupled, rnn, slstm
from ._base import Cell

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        lstm.CELL,
        lstm_coupled.CELL,
        slstm.CELL,
        gru.TANH,
        gru.RELU,
        gru_reset_before.TANH,
        gru_reset_before.RELU,
        rnn.TANH,
        rnn.RELU,
        rnn.SIGMOID,
        rnn.IDENTITY,
    )
}
