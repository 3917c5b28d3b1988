"""LSTM as torch.nn.LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

import torch
from torch import Tensor, sigmoid

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell, UnitWeight
from ._nonlinear import NONLINEARITIES, inner

_PEEPHOLES = (
    UnitWeight(0, 1, after=False), UnitWeight(1, 1, after=False), UnitWeight(3, 1, after=True)
)  # fmt: skip


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
    peeped, dropped, blended = "peeped", "dropped", "blended"
    normed, unnormed, of_normed = "normed", "unnormed", "of_normed"

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step: c = f * c' + i * g,  h = o * tanh(c)."""
        h, c = states
        u = recur(torch.cat((h, c), -1) if full else h)
        a_i, a_f, a_g, a_o = (a + b for a, b in zip(x, u, strict=True))
        if diagonal:
            a_i, a_f = a_i + own.weight[0] * c, a_f + own.weight[1] * c
        i, f, g = sigmoid(a_i), sigmoid(a_f), act(a_g)
        c = inner_c(f * c + i * own.dropped(g))
        o = sigmoid(a_o + own.weight[2] * c if diagonal else a_o)
        return (o * out_act(own.normed(c)), c), (i, f, g, o)

    @jit
    def forward(x, u, s, own):
        i = sigmoid(peeped(x[0] + u[0], own, 0, s[1]))
        f = sigmoid(peeped(x[1] + u[1], own, 1, s[1]))
        o = sigmoid(x[3] + u[3])
        n = g(x[2] + u[2])
        c = within(a(f * s[1] + i * dropped(n, own)), limit)
        if own[0] is not None:
            o = sigmoid(peeped(x[3] + u[3], own, 2, c))
        return (o * y_act(normed(c, own)), blended(own[2], c, s[1])), (i, f, n, o)

    @jit
    def backward(saved, s, out, dout, own):
        i, f, n, o = saved
        m, c, dc = dropped(n, own), out[1], dout[1]
        if own[2] is not None:  # c as h was made of it
            c, dc = within(a(f * s[1] + i * m), limit), own[2] * dc
        y = y_act(normed(c, own))
        dy = dout[0] * o * y_slope(y)
        dc = dc + unnormed(dy, c, own)
        if own[0] is not None:
            dc = peeped(dc, own, 2, dout[0] * y * o * (1 - o))
        dc = dc * a_slope(c) * within_slope(c, limit)
        di, df = dc * m * i * (1 - i), dc * s[1] * f * (1 - f)
        dn, do = dropped(dc * i, own) * g_slope(n), dout[0] * y * o * (1 - o)
        dc = peeped(peeped(dc * f, own, 0, di), own, 1, df)
        if own[2] is not None:
            dc += (1 - own[2]) * dout[1]
        return (di, df, dn, do) + of_normed(dy, own), (0.0, dc)

    return Cell(
        name=name,
        gates=("i", "f", "g", "o"),
        states=("h", "c"),
        saved=("i", "f", "g", "o"),
        h_grad=(0, 1, 2, 3),
        reference=reference,
        triton=TritonCell(forward, backward),
        weights=_PEEPHOLES if diagonal else (),
        full=full,
        norms=6 if layer_norm else 0,
    )
