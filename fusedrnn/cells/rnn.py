"""Elman RNN (1990), h = g(W x + b + U h' + b'), with any nonlinearity g; or h = h' + g(...)."""

from torch import Tensor

from ..triton.lazy import jit
from ._base import Cell, TritonCell
from ._nonlinear import NONLINEARITIES


def cell(name: str, candidate: str = "tanh", residual: bool = False) -> Cell:
    """The cell with ``candidate`` as its g."""
    act = NONLINEARITIES[candidate]
    g, slope, carried = candidate, f"{candidate}_slope", residual

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        value = act(x[0] + recur(states[0])[0])
        return (states[0] + value if residual else value,), (value,)

    @jit
    def forward(x, u, s):
        value = g(x[0] + u[0])
        if carried:
            return (value + s[0],), (value,)
        else:
            return (value,), (value,)

    @jit
    def backward(saved, s, out, dout):
        if carried:
            return (dout[0] * slope(saved[0]),), (dout[0],)
        else:
            return (dout[0] * slope(saved[0]),), (0.0,)

    saved = ("g" if residual else "h",)
    return Cell(name, ("h",), ("h",), saved, (0,), reference, TritonCell(forward, backward))
