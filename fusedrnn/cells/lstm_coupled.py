"""LSTM with coupled gates, i = 1 - f (Greff et al. 2017: CIFG)."""

import torch
from torch import Tensor, sigmoid

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell, UnitWeight
from ._nonlinear import NONLINEARITIES, inner

_PEEPHOLES = UnitWeight(0, 1, after=False), UnitWeight(2, 1, after=True)


def cell(
    name: str,
    candidate: str = "tanh",
    update: str = "identity",
    output: str = "tanh",
    clip: float = 0.0,
    peephole: str = "",
    layer_norm: bool = False,
) -> Cell:
    """The cell with the options of csrc/cells/lstm.h."""
    act, out_act = NONLINEARITIES[candidate], NONLINEARITIES[output]
    inner_c = inner(update, clip)
    g, g_slope, a, a_slope = candidate, f"{candidate}_slope", update, f"{update}_slope"
    y_act, y_slope = output, f"{output}_slope"
    diagonal, full = peephole == "diagonal", peephole == "full"
    within, within_slope, limit = "bounded", "bounded_slope", clip

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step: c = f * c' + (1 - f) * g,  h = o * tanh(c)."""
        h, c = states
        u = recur(torch.cat((h, c), -1) if full else h)
        a_f, a_g, a_o = (a + b for a, b in zip(x, u, strict=True))
        f, g = sigmoid(a_f + own.weight[0] * c if diagonal else a_f), act(a_g)
        c = inner_c(f * c + (1 - f) * own.dropped(g))
        o = sigmoid(a_o + own.weight[1] * c if diagonal else a_o)
        return (o * out_act(own.normed(c)), c), (f, g, o)

    @jit
    def forward(x, u, s):
        f, o = sigmoid(x[0] + u[0]), sigmoid(x[2] + u[2])
        n = g(x[1] + u[1])
        c = within(a(f * s[1] + (1 - f) * n), limit)
        return (o * y_act(c), c), (f, n, o)

    @jit
    def backward(saved, s, out, dout):
        f, n, o = saved
        y = y_act(out[1])
        dc = dout[1] + dout[0] * o * y_slope(y)
        dc = dc * a_slope(out[1]) * within_slope(out[1], limit)
        df, dn = dc * (s[1] - n) * f * (1 - f), dc * (1 - f) * g_slope(n)
        return (df, dn, dout[0] * y * o * (1 - o)), (0.0, dc * f)

    return Cell(
        name=name,
        gates=("f", "g", "o"),
        states=("h", "c"),
        saved=("f", "g", "o"),
        h_grad=(0, 1, 2),
        reference=reference,
        triton=None if peephole or layer_norm else TritonCell(forward, backward),
        weights=_PEEPHOLES if diagonal else (),
        full=full,
        norms=5 if layer_norm else 0,
    )
