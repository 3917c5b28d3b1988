"""The sequence op in plain PyTorch: the oracle of the tests and the backend of last resort.

Differentiable to any order by autograd; everything else in the package must agree with it.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from . import random
from ._call import Reset, Weights
from .cells import Cell, PerUnit

Result = tuple[Tensor, ...]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and accumulation: float32 for 16-bit data, else that of the data."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def sequence(
    cell: Cell,
    x: Tensor,
    weights: tuple[Weights, ...],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None = None,
    reset: Reset | None = None,
    trace: bool = False,
    seed: Tensor | None = None,
) -> Result:
    """One layer over a whole sequence. See ``ops.sequence`` for the arguments.

    ``seed`` ``[N, 2]`` is where a cell with random options draws from; None: it takes the means.
    """
    results = []
    with torch.autocast(x.device.type, enabled=False):  # dtypes are the caller's choice
        for d, w in enumerate(weights):
            gx = x[d] if w.weight_ih is None else _inputs(x, w)
            anew = reset and reset.of(d)
            of = None if seed is None else seed[d]
            results.append(_direction(cell, gx, w, h0[d], c0[d], lengths, anew, d == 1, trace, of))
    y, *rest = zip(*results, strict=True)
    return torch.cat(y, -1), *map(torch.stack, rest)


def _inputs(x: Tensor, w: Weights) -> Tensor:
    """The x-preactivations of all steps."""
    if w.weight_ln_ih is None:
        return linear(x, w.weight_ih, w.bias_ih)
    return layer_norm(linear(x, w.weight_ih), (len(w.weight_ih),), w.weight_ln_ih, w.bias_ih)


class _Limited(torch.autograd.Function):
    """h as it is; its gradient bounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, limit: float) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: object, dh: Tensor) -> tuple[Tensor, None]:
        return dh.clamp(-ctx.limit, ctx.limit), None

    @staticmethod
    def jvp(ctx: object, h: Tensor, _: None) -> Tensor:
        return h.view_as(h)


def _drawn(seed: Tensor | None, t: int, like: Tensor, stream: int, p: float) -> Tensor | float:
    """The share of what is new: 0 or 1 for each unit, or the mean."""
    if seed is None:
        return 1 - p
    return random.kept(seed[0], t, *like.shape, stream, p).to(like.dtype)


def _normed(gain: Tensor, bias: Tensor, c: Tensor) -> Tensor:
    return layer_norm(c, c.shape[-1:], gain, bias)


def _direction(
    cell: Cell,
    gx: Tensor,
    w: Weights,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: Reset | None,
    reverse: bool,
    trace: bool,
    seed: Tensor | None,
) -> Result:
    dtype, wide = gx.dtype, state_dtype(gx.dtype)
    T, gates = len(gx), len(cell.gates)
    weight_hh = w.weight_hh if w.weight_ch is None else torch.cat((w.weight_hh, w.weight_ch), 1)
    W = weight_hh.to(wide).unflatten(0, (gates, len(weight_hh) // gates))  # [G, H, P]
    bias = None if w.bias_hh is None else w.bias_hh.to(wide).unflatten(0, (gates, -1))  # [G, H]

    rows = () if w.weight_unit is None else w.weight_unit.to(wide).unbind(0)
    first_norm = len(cell.weights)
    weight, gains = rows[:first_norm], rows[first_norm:][: gates if cell.norms else 0]
    norm = None
    if inner_norm := rows[first_norm + gates :]:
        norm = partial(_normed, *inner_norm)

    meeting = None
    if cell.variational and seed is not None:
        meeting = random.meeting(seed, h0.to(wide), cell.variational)

    def recur(v: Tensor, first: int = 0, last: int = gates) -> tuple[Tensor, ...]:
        if cell.independent:
            return (0 if bias is None else bias[0],)
        if meeting is not None:
            P = meeting.shape[1]
            v = torch.cat((v[:, :P] * meeting, v[:, P:]), 1) if cell.full else v * meeting
        v = v.to(dtype).to(wide)  # what meets the weights is rounded to the data's dtype
        b = None if bias is None else bias[first:last].flatten()
        if gains:
            u = layer_norm(linear(v, W.flatten(0, 1)), (gates * W.shape[1],), torch.cat(gains), b)
            return u.chunk(gates, -1)
        return linear(v, W[first:last].flatten(0, 1), b).chunk(last - first, -1)

    def select(rows: Tensor, a: tuple, b: tuple) -> tuple[Tensor, ...]:
        return tuple(torch.where(rows, i, j) for i, j in zip(a, b, strict=True))

    states = (h0.to(wide), *c0.to(wide).unbind(0))
    anew: tuple = (0,) * len(states)
    if reset is not None and reset.h is not None:
        anew = (reset.h.to(wide), *reset.c.to(wide).unbind(0))
    y: list[Tensor] = [h0] * T
    kept: list[tuple[Tensor, Tensor]] = [(h0, h0)] * T
    for t in reversed(range(T)) if reverse else range(T):
        cut = None if reset is None else reset.before(t, lengths, reverse)
        if cut is not None:
            states = select(cut, anew, states)
        x = gx[t].to(wide).chunk(gates, -1)
        draw, drop, p = partial(_drawn, seed, t, x[0]), None, cell.dropout
        if p and seed is not None:
            drop = random.factor(draw(random.DROP, p), p, wide)
        new, saved = cell.reference(x, states, recur, PerUnit(weight, drop, norm))
        if cell.zoneout_c:
            share = draw(random.KEEP_C, cell.zoneout_c)
            inner = zip(new[1:], states[1:], strict=True)
            new = (new[0], *(share * a + (1 - share) * b for a, b in inner))
        if cell.zoneout_h:
            share = draw(random.KEEP_H, cell.zoneout_h)
            new = (share * new[0] + (1 - share) * states[0], *new[1:])
        if w.weight_hr is not None:
            new = (linear(new[0].to(dtype).to(wide), w.weight_hr.to(wide)), *new[1:])
        if cell.dh_clip:
            new = (_Limited.apply(new[0], cell.dh_clip), *new[1:])
        out = new[0]
        if lengths is not None:
            alive = (t < lengths).unsqueeze(-1)  # [B, 1]
            out = torch.where(alive, out, 0)
            saved = select(alive, saved, (0,) * len(saved))
            new = select(alive, new, states)
        states = new
        y[t] = out.to(dtype)
        if trace:
            inner = [s if lengths is None else torch.where(alive, s, 0) for s in states[1:]]
            kept[t] = torch.stack(saved, 1).to(dtype), torch.stack(inner) if inner else c0.to(wide)
    inner = torch.stack(states[1:]) if len(states) > 1 else c0.to(wide)
    results = torch.stack(y), states[0].to(dtype), inner.to(dtype)
    if not trace:
        return results
    return *results, *(torch.stack(each).detach() for each in zip(*kept, strict=True))
