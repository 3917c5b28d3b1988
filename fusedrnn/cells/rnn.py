"""Elman RNN (1990), h = g(W x + b + U h' + b'), with any nonlinearity g; or h = h' + g(...).

With ``independent`` it is IndRNN (Li et al. 2018): a weight for each unit instead of U.
"""

from torch import Tensor

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell, UnitWeight
from ._nonlinear import NONLINEARITIES


def cell(
    name: str, candidate: str = "tanh", residual: bool = False, independent: bool = False
) -> Cell:
    """The cell with ``candidate`` as its g."""
    act = NONLINEARITIES[candidate]
    g, slope, carried = candidate, f"{candidate}_slope", residual
    peeped, dropped = "peeped", "dropped"

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        (h,) = states
        a = x[0] + recur(h)[0]
        value = act(a + own.weight[0] * h if independent else a)
        return (h + own.dropped(value) if residual else value,), (value,)

    @jit
    def forward(x, u, s, own):
        value = g(peeped(x[0] + u[0], own, 0, s[0]))
        if carried:
            return (dropped(value, own) + s[0],), (value,)
        else:
            return (value,), (value,)

    @jit
    def backward(saved, s, out, dout, own):
        d = dout[0] * slope(saved[0])
        if carried:
            d = dropped(d, own)
            return (d,), (peeped(dout[0], own, 0, d),)
        else:
            return (d,), (peeped(0.0, own, 0, d),)

    saved = ("g" if residual else "h",)
    return Cell(
        name=name,
        gates=("h",),
        states=("h",),
        saved=saved,
        h_grad=(0,),
        reference=reference,
        triton=TritonCell(forward, backward),
        weights=(UnitWeight(0, 0, after=False),) if independent else (),
        independent=independent,
    )
