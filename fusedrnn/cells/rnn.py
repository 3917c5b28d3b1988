"""Elman RNN (1990), h = g(W x + b + U h' + b'): tanh and relu as torch.nn.RNN, and sigmoid."""

from collections.abc import Callable

import torch
from torch import Tensor

from ._base import Cell


def _cell(name: str, g: Callable[[Tensor], Tensor]) -> Cell:
    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
    ) -> tuple[Tensor, ...]:
        return (g(x[0] + recur(states[0])[0]),)

    return Cell(name, ("h",), ("h",), ("h",), (0,), reference)


TANH = _cell("rnn_tanh", torch.tanh)
RELU = _cell("rnn_relu", torch.relu)
SIGMOID = _cell("rnn_sigmoid", torch.sigmoid)
