"""LSTM with coupled gates, i = 1 - f (Greff et al. 2017: CIFG)."""

from torch import Tensor, sigmoid, tanh

from ..triton.lazy import jit
from ._base import Cell, TritonCell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One step: c = f * c' + (1 - f) * g,  h = o * tanh(c)."""
    h, c = states
    u = recur(h)
    f, g, o = sigmoid(x[0] + u[0]), tanh(x[1] + u[1]), sigmoid(x[2] + u[2])
    c = f * c + (1 - f) * g
    return (o * tanh(c), c), (f, g, o)


@jit
def _forward(x, u, s):
    f, g, o = sigmoid(x[0] + u[0]), tanh(x[1] + u[1]), sigmoid(x[2] + u[2])
    c = f * s[1] + (1 - f) * g
    return (o * tanh(c), c), (f, g, o)


@jit
def _backward(saved, s, out, dout):
    f, g, o = saved
    tc = tanh(out[1])
    dc = dout[1] + dout[0] * o * (1 - tc * tc)
    df, dg = dc * (s[1] - g) * f * (1 - f), dc * (1 - f) * (1 - g * g)
    return (df, dg, dout[0] * tc * o * (1 - o)), (0.0, dc * f)


CELL = Cell(
    name="lstm_coupled",
    gates=("f", "g", "o"),
    states=("h", "c"),
    saved=("f", "g", "o"),
    h_grad=(0, 1, 2),
    reference=reference,
    triton=TritonCell(_forward, _backward),
)
