"""LSTM as torch.nn.LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from torch import Tensor, sigmoid, tanh

from ._base import Cell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
) -> tuple[Tensor, ...]:
    """C = f * c' + i * g,  h = o * tanh(c)."""
    h, c = states
    u = recur(h)
    i, f, o = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1]), sigmoid(x[3] + u[3])
    g = tanh(x[2] + u[2])
    c = f * c + i * g
    return o * tanh(c), c


CELL = Cell(
    name="lstm",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    saved=("i", "f", "g", "o"),
    h_grad=(0, 1, 2, 3),
    reference=reference,
)
