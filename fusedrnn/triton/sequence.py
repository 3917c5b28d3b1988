"""The Triton backend of the sequence op: arguments checked, kernels launched, ops registered.

Importing this registers the ops' implementations; triton itself is imported by the first call.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..reference import state_dtype
from ._call import Problem, Spans, complete, of, on, problem
from .plan import limit as limit  # what ops.py asks


class _Forward(NamedTuple):
    """Tensors of one direction; those of csrc/sequence.h."""

    gx: Tensor
    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    h0: Tensor
    c0: Tensor
    y: Tensor
    hn: Tensor
    cn: Tensor
    saved: Tensor | None
    cells: Tensor | None
    hidden: Tensor | None


def sequence_forward(
    cell: str,
    gx: list[Tensor],
    weight_hh: list[Tensor],
    bias_hh: list[Tensor],
    weight_hr: list[Tensor],
    weight_unit: list[Tensor],
    seed: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    save: bool,
) -> tuple[Tensor, ...]:
    """``fusedrnn::sequence_forward.triton``; the tensors are those of csrc/sequence.h."""
    if len(gx) not in (1, 2):
        raise RuntimeError(f"fusedrnn: a layer has one direction or two, got {len(gx)} of gx")
    p = problem(cell, "gx", gx[0], len(gx), weight_hh, weight_hr)
    N, T, B, H, P = p.N, p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), len(p.cell.saved)
    if bias_hh:
        complete("bias_hh", bias_hh, N)
    gx = p.checked("gx", gx, T, B, G * H)
    weight_hh = p.checked("weight_hh", weight_hh, G * H, P)
    bias_hh = p.checked("bias_hh", bias_hh, G * H)
    weight_hr = p.checked("weight_hr", weight_hr, P, H)
    h0, c0 = p.checked("h0", h0, N, B, P), p.checked("c0", c0, N, S - 1, B, H)
    spans = Spans(lengths, reset, reset_h, reset_c).checked(p)
    new, wide = h0.new_empty, state_dtype(h0.dtype)
    y, hn, cn = new(T, B, N * P), torch.empty_like(h0), torch.empty_like(c0)
    saved = new((N, T, B, K, H) if save else 0)
    cells = new((N, T, S - 1, B, H) if save else 0, dtype=wide)
    hidden = new((N, T, B, H) if save and weight_hr else 0)
    if T == 0:
        hn.copy_(h0)
        cn.copy_(c0)
    elif B * H > 0:
        lists = (gx, weight_hh, bias_hh, weight_hr, h0, c0)
        layer = [
            _Forward(
                *(of(t, d) for t in lists), y[..., d * P :], hn[d], cn[d],
                *(of(t, d) for t in (saved, cells, hidden)),
            )
            for d in range(N)
        ]  # fmt: skip
        run = _forward_whole if p.plan.whole else _forward_steps
        with on(h0.device):
            run(p, layer, spans)
    return y, hn, cn, saved, cells, hidden


def _forward_whole(p: Problem, layer: list[_Forward], spans: Spans) -> None:
    from .whole import whole_forward

    directions = [
        (a.gx, a.weight_hh, a.bias_hh, a.h0, a.c0, spans.of(d), a.y, a.hn, a.cn, a.saved, a.cells)
        for d, a in enumerate(layer)
    ]
    one, other = directions[0], of(directions[1:], 0)
    p.bind(whole_forward)(one, other, spans.lengths, p.T, p.B, p.H, p.N * p.P)


def _forward_steps(p: Problem, layer: list[_Forward], spans: Spans) -> None:
    from . import step

    T, B, H, P, Y, lengths = p.T, p.B, p.H, p.P, p.N * p.P, spans.lengths
    for d, a in enumerate(layer):
        operand = p.bind(step.operand_step, H)
        forward = p.bind(step.forward_step, H, d == 1)
        project = p.bind(step.project_step, P, d == 1)
        reset = spans.of(d)
        h, c = spans.first(a.h0, spans.h, d), spans.first(a.c0, spans.c, d)
        h_new, stash, hidden = torch.empty_like(h), None, a.hidden
        if p.cell.second:
            stash = h.new_empty(len(p.cell.saved), B, H)
        if a.weight_hr is not None and hidden is None:
            hidden = a.gx.new_empty(1, B, H)
        for t in p.steps(d == 1):
            if stash is not None:
                operand(a.gx, a.weight_hh, a.bias_hh, h, stash, t, B, H)
            forward(
                a.gx, a.weight_hh, a.bias_hh, h, h_new, c, stash, lengths, reset, a.y, a.saved,
                a.cells, hidden, t, T, B, H, P, Y,
            )  # fmt: skip
            if hidden is not None:
                t_hidden = 0 if a.hidden is None else t
                project(
                    hidden, a.weight_hr, h, h_new, lengths, reset, a.y, t, t_hidden, T, B, H, P, Y
                )
            h, h_new = h_new, h
        a.hn.copy_(h)
        a.cn.copy_(c)


class _Backward(NamedTuple):
    """Tensors of one direction; those of csrc/sequence.h."""

    weight_hh: Tensor
    weight_hr: Tensor | None
    h0: Tensor
    c0: Tensor
    saved: Tensor
    cells: Tensor
    grads: Tensor
    dh: Tensor | None
    # Gradients of the states, in float32 for 16-bit data: what flows back is summed up here.
    carry_h: Tensor
    carry_c: Tensor
    dreset_h: Tensor | None
    dreset_c: Tensor | None
    y: Tensor
    dy: Tensor | None


def sequence_backward(
    cell: str,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    y: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: list[Tensor],
    weight_hr: list[Tensor],
    weight_unit: list[Tensor],
    seed: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    saved: Tensor,
    cells: Tensor,
) -> tuple[Tensor, ...]:
    """``fusedrnn::sequence_backward.triton``; the tensors are those of csrc/sequence.h."""
    if len(h0) not in (1, 2):
        raise RuntimeError(f"fusedrnn: a layer has one direction or two, got {len(h0)} of h0")
    p = problem(cell, "y", y, len(h0), weight_hh, weight_hr)
    N, T, B, H, P = p.N, p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), len(p.cell.saved)
    wide = state_dtype(y.dtype)
    y, dy = p.checked("y", y, T, B, N * P), p.checked("dy", dy, T, B, N * P)
    h0, dhn = p.checked("h0", h0, N, B, P), p.checked("dhn", dhn, N, B, P)
    c0, dcn = p.checked("c0", c0, N, S - 1, B, H), p.checked("dcn", dcn, N, S - 1, B, H)
    weight_hh = p.checked("weight_hh", weight_hh, G * H, P)
    weight_hr = p.checked("weight_hr", weight_hr, P, H)
    spans = Spans(lengths, reset, reset_h, reset_c).checked(p)
    saved = p.checked("saved", saved, N, T, B, K, H)
    cells = p.checked("cells", cells, N, T, S - 1, B, H, dtype=wide)
    carry_h = torch.zeros_like(h0, dtype=wide) if dhn is None else dhn.to(wide, copy=True)
    carry_c = torch.zeros_like(c0, dtype=wide) if dcn is None else dcn.to(wide, copy=True)
    grads = y.new_empty(N, T, B, p.cell.grads, H)
    dh = y.new_empty((N, T, B, P) if weight_hr else 0)
    given = reset_h is not None
    dreset = [y.new_zeros(t.shape if given else 0, dtype=wide) for t in (h0, c0)]
    if T * B * H > 0:
        lists = (weight_hh, weight_hr, h0, c0, saved, cells, grads, dh, carry_h, carry_c, *dreset)
        layer = [
            _Backward(
                *(of(t, d) for t in lists),
                *(None if t is None else t[..., d * P :] for t in (y, dy)),
            )
            for d in range(N)
        ]
        run = _backward_whole if p.plan.whole else _backward_steps
        with on(y.device):
            run(p, layer, spans)
    return grads, *(t.to(y.dtype) for t in (carry_h, carry_c)), dh, *(t.to(y.dtype) for t in dreset)


def _backward_whole(p: Problem, layer: list[_Backward], spans: Spans) -> None:
    from .whole import whole_backward

    directions = [
        (
            a.dy, a.carry_h, a.carry_c, (a.dreset_h, a.dreset_c), a.y, a.h0, a.c0, spans.of(d),
            a.weight_hh, a.saved, a.cells, a.grads,
        )
        for d, a in enumerate(layer)
    ]  # fmt: skip
    one, other = directions[0], of(directions[1:], 0)
    p.bind(whole_backward)(one, other, spans.lengths, p.T, p.B, p.H, p.N * p.P)


def _backward_steps(p: Problem, layer: list[_Backward], spans: Spans) -> None:
    from . import step

    T, B, H, P, Y, lengths = p.T, p.B, p.H, p.P, p.N * p.P, spans.lengths
    for d, a in enumerate(layer):
        through_h = p.bind(step.backward_h, P, d == 1)
        backward = p.bind(step.backward_step, H, d == 1)
        operand = p.bind(step.backward_operand_step, H, d == 1)
        reset, dreset = spans.of(d), (a.dreset_h, a.dreset_c)
        carries = (a.carry_h, a.carry_c, dreset)
        t_after = -1
        for t in reversed(p.steps(d == 1)):
            if a.dh is not None:
                through_h(
                    a.dy, a.carry_h, dreset, reset, a.weight_hh, a.dh, lengths, a.grads,
                    t, t_after, T, B, H, P, Y,
                )  # fmt: skip
            backward(
                a.dy, *carries, a.y, a.h0, a.c0, reset, a.weight_hh, a.weight_hr, a.dh, lengths,
                a.saved, a.cells, a.grads, t, t_after, T, B, H, P, Y,
            )  # fmt: skip
            if p.cell.second:
                operand(
                    *carries, a.y, a.h0, a.c0, reset, a.weight_hh, lengths, a.saved, a.cells,
                    a.grads, t, T, B, H, Y,
                )  # fmt: skip
            t_after = t
        through_h(
            None, a.carry_h, dreset, reset, a.weight_hh, None, lengths, a.grads,
            t_after, t_after, T, B, H, P, Y,
        )  # fmt: skip


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("sequence_forward.triton", sequence_forward, _key)
    _native.LIBRARY.impl("sequence_backward.triton", sequence_backward, _key)
