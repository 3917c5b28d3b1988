"""The launches of one call: the tensors of each direction, and the kernels that take them."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import plan as planner
from ._call import Problem, Spans, of


class Forward(NamedTuple):
    """Tensors of one direction; those of csrc/sequence.h."""

    gx: Tensor
    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    weight_unit: Tensor | None
    seed: Tensor | None
    h0: Tensor
    c0: Tensor
    y: Tensor
    hn: Tensor
    cn: Tensor
    saved: Tensor | None
    cells: Tensor | None
    hidden: Tensor | None


class Backward(NamedTuple):
    """Tensors of one direction; those of csrc/sequence.h."""

    weight_hh: Tensor
    weight_hr: Tensor | None
    weight_unit: Tensor | None
    seed: Tensor | None
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


def forward_whole(p: Problem, layer: list[Forward], spans: Spans) -> None:
    """One launch for the whole sequence, of all directions."""
    from .whole import whole_forward

    directions = [
        (
            a.gx, a.weight_hh, a.bias_hh, a.weight_unit, a.seed, a.h0, a.c0, spans.of(d),
            a.y, a.hn, a.cn, a.saved, a.cells,
        )
        for d, a in enumerate(layer)
    ]  # fmt: skip
    one, other = directions[0], of(directions[1:], 0)
    p.bind(whole_forward)(one, other, spans.lengths, p.T, p.B, p.H, p.N * p.P)


def forward_steps(p: Problem, layer: list[Forward], spans: Spans) -> None:
    """Launches for each step, one direction after the other."""
    from . import normed, step

    T, B, H, P, Y, lengths = p.T, p.B, p.H, p.P, p.N * p.P, spans.lengths
    W, norms = p.cell.depth(P, H) if p.cell.full else None, p.cell.norms
    for d, a in enumerate(layer):
        operand = p.bind(step.operand_step, H)
        forward = p.bind(step.forward_step, H, d == 1)
        recur = p.bind(normed.recur_step, H)
        of_rows = p.bind(normed.normed_forward_step, H, d == 1, planner.rows(a.gx.dtype, H))
        project = p.bind(step.project_step, P, d == 1)
        reset = spans.of(d)
        h, c = spans.first(a.h0, spans.h, d), spans.first(a.c0, spans.c, d)
        h_new, c_new, stash, hidden = torch.empty_like(h), None, None, a.hidden
        if p.cell.full:
            c_new = torch.empty_like(c)
        if p.cell.second:
            stash = h.new_empty(len(p.cell.saved), B, H)
        v = h.new_empty(B, len(p.cell.gates) if norms else 0, H)
        if a.weight_hr is not None and hidden is None:
            hidden = a.gx.new_empty(1, B, H)
        for t in p.steps(d == 1):
            if stash is not None:
                operand(a.gx, a.weight_hh, a.bias_hh, h, stash, t, B, H)
            if norms:
                recur(h, a.weight_hh, a.seed, v, B, H, P)
                of_rows(
                    a.gx, v, a.bias_hh, a.weight_unit, a.seed, h, h_new, c, lengths, reset, a.y,
                    a.saved, a.cells, hidden, t, T, B, H, Y,
                )  # fmt: skip
            else:
                forward(
                    a.gx, a.weight_hh, a.bias_hh, a.weight_unit, a.seed, h, h_new, c, c_new, stash,
                    lengths, reset, a.y, a.saved, a.cells, hidden, t, T, B, H, P, Y, W,
                )  # fmt: skip
            if hidden is not None:
                t_hidden = 0 if a.hidden is None else t
                project(
                    hidden, a.weight_hr, h, h_new, lengths, reset, a.y, t, t_hidden, T, B, H, P, Y
                )
            h, h_new = h_new, h
            if c_new is not None:
                c, c_new = c_new, c
        a.hn.copy_(h)
        a.cn.copy_(c)


def backward_whole(p: Problem, layer: list[Backward], spans: Spans) -> None:
    """One launch for the whole sequence, of all directions."""
    from .whole import whole_backward

    directions = [
        (
            a.dy, a.carry_h, a.carry_c, (a.dreset_h, a.dreset_c), a.y, a.h0, a.c0, spans.of(d),
            a.weight_hh, a.weight_unit, a.seed, a.saved, a.cells, a.grads,
        )
        for d, a in enumerate(layer)
    ]  # fmt: skip
    one, other = directions[0], of(directions[1:], 0)
    p.bind(whole_backward)(one, other, spans.lengths, p.T, p.B, p.H, p.N * p.P)


def backward_steps(p: Problem, layer: list[Backward], spans: Spans) -> None:
    """Launches for each step, one direction after the other."""
    from . import normed, step

    T, B, H, P, Y, lengths = p.T, p.B, p.H, p.P, p.N * p.P, spans.lengths
    W, norms = p.cell.depth(P, H) if p.cell.full else None, p.cell.norms
    for d, a in enumerate(layer):
        through_h = p.bind(step.backward_h, P, d == 1)
        backward = p.bind(step.backward_step, H, d == 1)
        operand = p.bind(step.backward_operand_step, H, d == 1)
        unproject = p.bind(normed.unproject_step, H)
        of_rows = p.bind(normed.normed_backward_step, H, d == 1, planner.rows(a.y.dtype, H))
        dh_row = a.carry_h.new_empty(B, H) if norms else None
        to_row = dh_row if a.dh is None else None
        reset, dreset = spans.of(d), (a.dreset_h, a.dreset_c)
        carries = (a.carry_h, a.carry_c, dreset)
        t_after = -1
        for t in reversed(p.steps(d == 1)):
            if a.dh is not None or norms:
                through_h(
                    a.dy, a.carry_h, dreset, reset, a.weight_hh, a.seed, a.dh, to_row, lengths,
                    a.grads, t, t_after, T, B, H, P, Y, W,
                )  # fmt: skip
            if norms:
                if a.dh is not None:
                    unproject(a.dh, a.weight_hr, dh_row, t, B, H, P)
                of_rows(
                    dh_row, a.carry_h if a.dh is None else None, a.carry_c, dreset, a.y, a.h0,
                    a.c0, reset, a.weight_unit, a.seed, lengths, a.saved, a.cells, a.grads,
                    t, T, B, H, Y,
                )  # fmt: skip
            else:
                backward(
                    a.dy, *carries, a.y, a.h0, a.c0, reset, a.weight_hh, a.weight_hr,
                    a.weight_unit, a.seed, a.dh, lengths, a.saved, a.cells, a.grads,
                    t, t_after, T, B, H, P, Y, W,
                )  # fmt: skip
            if p.cell.second:
                operand(
                    *carries, a.y, a.h0, a.c0, reset, a.weight_hh, lengths, a.saved, a.cells,
                    a.grads, t, T, B, H, Y,
                )  # fmt: skip
            t_after = t
        through_h(
            None, a.carry_h, dreset, reset, a.weight_hh, a.seed, None, None, lengths, a.grads,
            t_after, t_after, T, B, H, P, Y, W,
        )  # fmt: skip
        if W is not None:
            p.bind(step.backward_h, H, d == 1)(
                None, a.carry_c, (a.dreset_c, None), reset, a.weight_hh[:, P:], None, None, None,
                lengths, a.grads, t_after, t_after, T, B, H, H, Y, W,
            )  # fmt: skip
