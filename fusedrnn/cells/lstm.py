"""LSTM as torch.nn.LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from torch import Tensor, sigmoid, tanh

from ..triton.lazy import jit
from ._base import Cell, TritonCell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One step: c = f * c' + i * g,  h = o * tanh(c)."""
    h, c = states
    u = recur(h)
    i, f, o = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1]), sigmoid(x[3] + u[3])
    g = tanh(x[2] + u[2])
    c = f * c + i * g
    return (o * tanh(c), c), (i, f, g, o)


@jit
def _forward(x, u, s):
    i, f, o = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1]), sigmoid(x[3] + u[3])
    g = tanh(x[2] + u[2])
    c = f * s[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@jit
def _backward(saved, s, out, dout):
    i, f, g, o = saved
    tc = tanh(out[1])
    dc = dout[1] + dout[0] * o * (1 - tc * tc)
    di, df = dc * g * i * (1 - i), dc * s[1] * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dout[0] * tc * o * (1 - o)
    return (di, df, dg, do), (0.0, dc * f)


CELL = Cell(
    name="lstm",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    saved=("i", "f", "g", "o"),
    h_grad=(0, 1, 2, 3),
    reference=reference,
    triton=TritonCell(_forward, _backward),
)
