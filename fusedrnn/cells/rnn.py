"""Elman RNN (1990), h = g(W x + b + U h' + b'), with any nonlinearity g."""

from torch import Tensor

from ..triton.lazy import jit
from ._base import Cell, TritonCell
from ._nonlinear import NONLINEARITIES


def cell(name: str, candidate: str = "tanh") -> Cell:
    """The cell with ``candidate`` as its g."""
    act = NONLINEARITIES[candidate]
    g, slope = candidate, f"{candidate}_slope"

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        h = act(x[0] + recur(states[0])[0])
        return (h,), (h,)

    @jit
    def forward(x, u, s):
        h = g(x[0] + u[0])
        return (h,), (h,)

    @jit
    def backward(saved, s, out, dout):
        return (dout[0] * slope(saved[0]),), (0.0,)

    return Cell(name, ("h",), ("h",), ("h",), (0,), reference, TritonCell(forward, backward))
