"""What the option of a nonlinearity says, for a cell's reference and for its twin."""

from collections.abc import Callable

import torch
from torch import Tensor


def _identity(x: Tensor) -> Tensor:
    return x


NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": _identity,
}


def inner(update: str, clip: float) -> Callable[[Tensor], Tensor]:
    """What becomes of an LSTM's new c, which was its gates' sum (csrc/cells/inner_state.h)."""
    g = NONLINEARITIES[update]
    return (lambda c: g(c).clamp(-clip, clip)) if clip > 0 else g
