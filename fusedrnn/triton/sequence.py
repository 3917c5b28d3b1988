"""The Triton backend of the sequence op: arguments checked, kernels launched, ops registered.

Importing this registers the ops' implementations; triton itself is imported by the first call.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..cells import CELLS, Cell
from ..reference import state_dtype
from . import plan as planner
from .plan import Plan, limit


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it this one."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


@dataclass(frozen=True)
class _Problem:
    """One call: its cell and sizes, and how to launch a kernel for it."""

    cell: Cell
    like: Tensor
    T: int
    B: int
    H: int
    P: int
    reverse: bool
    plan: Plan

    def bind(self, kernel: Any, units: int | None = None) -> Callable[..., None]:
        """The kernel with its grid and its constants, found by their names.

        The grid covers all rows and, unless the kernel takes the whole sequence, ``units``.
        """
        import triton.language as tl

        c, p, dtype = self.cell, self.plan, self.like.dtype
        constants = {
            "G": len(c.gates),
            "S": len(c.states),
            "K": len(c.saved),
            "D": c.grads,
            "SECOND": c.second,
            "OPERAND": c.operand,
            "VECTOR": c.h_grad,
            "REVERSE": self.reverse,
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "BB": p.rows,
            "BH": p.units,
            "BK": p.depth,
            "PRECISION": planner.precision(dtype, self.like.device),
            "UPCAST": planner.INTERPRETED and dtype == torch.bfloat16,
        }
        for name, twin in vars(c.triton).items():
            constants[name] = twin and twin.jit
        constants = {name: constants[name] for name in constants if name in kernel.arg_names}
        blocks = (
            (-(-self.B // p.rows),)
            if units is None
            else (-(-self.B // p.rows), -(-units // p.units))
        )

        def launch(*args: object) -> None:
            kernel[blocks](*args, **constants, num_warps=p.warps, num_stages=p.stages)

        return launch


def _problem(
    cell: str, first: str, like: Tensor, weight_hh: Tensor, weight_hr: Tensor | None, reverse: bool
) -> _Problem:
    """The sizes of a call, checked; ``like`` is gx or y."""
    c = CELLS[cell]
    G, projected = len(c.gates), weight_hr is not None
    if reason := limit(cell, like.dtype, projected):
        raise RuntimeError(f"fusedrnn: {reason}")
    if like.dim() != 3 or weight_hh.dim() != 2 or weight_hh.shape[0] % G:
        raise RuntimeError(
            f"fusedrnn: {first} must be [T, B, {'G*H' if first == 'gx' else 'P'}] and weight_hh "
            f"[G*H, P] with G = {G}, got {list(like.shape)} and {list(weight_hh.shape)}"
        )
    (T, B), H, P = like.shape[:2], weight_hh.shape[0] // G, weight_hh.shape[1]
    if P != H and not projected:
        raise RuntimeError(
            f"fusedrnn: weight_hh must be [{G * H}, {H}] without a projection, "
            f"got {list(weight_hh.shape)}"
        )
    if H * P >= 2**31:
        raise RuntimeError(
            f"fusedrnn: weight_hh has {H} x {P} elements a gate; the Triton kernels take less than "
            'two to the 31st. Use fusedrnn.backend("cuda") or fewer units'
        )
    shared = planner.shared_memory(like.device)
    chosen = planner.plan(c, like.dtype, B, H, projected, shared)
    return _Problem(c, like, T, B, H, P, reverse, chosen)


def _checked(p: _Problem, name: str, t: Tensor | None, *size: int, wide: bool = False) -> Any:
    """The tensor, contiguous, if its shape, dtype and device fit."""
    if t is None:
        return None
    if list(t.shape) != list(size):
        raise RuntimeError(f"fusedrnn: {name} has shape {list(t.shape)}, must be {list(size)}")
    dtype = state_dtype(p.like.dtype) if wide else p.like.dtype
    dtype = torch.int64 if name == "lengths" else dtype
    if t.dtype != dtype or t.device != p.like.device:
        raise RuntimeError(
            f"fusedrnn: {name} is {t.dtype} on {t.device}, must be {dtype} on {p.like.device}"
        )
    return t.contiguous()


def sequence_forward(
    cell: str,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    """``fusedrnn::sequence_forward.triton``; the tensors are those of csrc/sequence.h."""
    p = _problem(cell, "gx", gx, weight_hh, weight_hr, reverse)
    T, B, H, P = p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), len(p.cell.saved)
    gx = _checked(p, "gx", gx, T, B, G * H)
    weight_hh = _checked(p, "weight_hh", weight_hh, G * H, P)
    bias_hh = _checked(p, "bias_hh", bias_hh, G * H)
    weight_hr = _checked(p, "weight_hr", weight_hr, P, H)
    h0, c0 = _checked(p, "h0", h0, B, P), _checked(p, "c0", c0, S - 1, B, H)
    lengths = _checked(p, "lengths", lengths, B)
    new, wide = gx.new_empty, state_dtype(gx.dtype)
    y, hn, cn = new(T, B, P), new(B, P), new(S - 1, B, H)
    saved = new((T, B, K, H) if save else 0)
    cells = new((T, S - 1, B, H) if save else 0, dtype=wide)
    hidden = new((T, B, H) if save and weight_hr is not None else 0)
    kept = (saved, cells) if save else (None, None)
    if T == 0:
        hn.copy_(h0)
        cn.copy_(c0)
    elif B * H > 0:
        run = _forward_whole if p.plan.whole else _forward_steps
        with _on(gx.device):
            run(p, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, y, hn, cn, *kept, hidden)
    return y, hn, cn, saved, cells, hidden


def _forward_whole(
    p, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, y, hn, cn, saved, cells, hidden
) -> None:
    from .whole import whole_forward

    forward = p.bind(whole_forward)
    forward(gx, weight_hh, bias_hh, h0, c0, lengths, y, hn, cn, saved, cells, p.T, p.B, p.H)


def _forward_steps(
    p, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, y, hn, cn, saved, cells, hidden
) -> None:
    from . import step

    T, B, H, P = p.T, p.B, p.H, p.P
    operand, forward = p.bind(step.operand_step, H), p.bind(step.forward_step, H)
    project = p.bind(step.project_step, P)
    wide = state_dtype(gx.dtype)
    h, h_new = h0.to(wide, copy=True), torch.empty_like(h0, dtype=wide)
    c, stash = c0.to(wide, copy=True), None
    if p.cell.second:
        stash = gx.new_empty(len(p.cell.saved), B, H, dtype=wide)
    if weight_hr is None:
        hidden = None
    elif saved is None:
        hidden = gx.new_empty(1, B, H)
    for t in reversed(range(T)) if p.reverse else range(T):
        if stash is not None:
            operand(gx, weight_hh, bias_hh, h, stash, t, B, H)
        forward(
            *(gx, weight_hh, bias_hh, h, h_new, c, stash, lengths, y, saved, cells, hidden),
            *(t, T, B, H, P),
        )
        if hidden is not None:
            t_hidden = 0 if saved is None else t
            project(hidden, weight_hr, h, h_new, lengths, y, t, t_hidden, T, B, H, P)
        h, h_new = h_new, h
    hn.copy_(h)
    cn.copy_(c)


def sequence_backward(
    cell: str,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    y: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    saved: Tensor,
    cells: Tensor,
) -> tuple[Tensor, ...]:
    """``fusedrnn::sequence_backward.triton``; the tensors are those of csrc/sequence.h."""
    p = _problem(cell, "y", y, weight_hh, weight_hr, reverse)
    T, B, H, P = p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), len(p.cell.saved)
    y, dy = _checked(p, "y", y, T, B, P), _checked(p, "dy", dy, T, B, P)
    h0, dhn = _checked(p, "h0", h0, B, P), _checked(p, "dhn", dhn, B, P)
    c0, dcn = _checked(p, "c0", c0, S - 1, B, H), _checked(p, "dcn", dcn, S - 1, B, H)
    weight_hh = _checked(p, "weight_hh", weight_hh, G * H, P)
    weight_hr = _checked(p, "weight_hr", weight_hr, P, H)
    lengths = _checked(p, "lengths", lengths, B)
    saved = _checked(p, "saved", saved, T, B, K, H)
    cells = _checked(p, "cells", cells, T, S - 1, B, H, wide=True)
    wide = state_dtype(y.dtype)
    # Gradients of the states, in float32 for 16-bit data; what flows back is accumulated here.
    carry_h = torch.zeros_like(h0, dtype=wide) if dhn is None else dhn.to(wide, copy=True)
    carry_c = torch.zeros_like(c0, dtype=wide) if dcn is None else dcn.to(wide, copy=True)
    grads = y.new_empty(T, B, p.cell.grads, H)
    dh = y.new_empty(0 if weight_hr is None else (T, B, P))
    if T * B * H > 0:
        run = _backward_whole if p.plan.whole else _backward_steps
        with _on(y.device):
            run(
                *(p, dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, lengths),
                *(saved, cells, grads, dh),
            )
    return grads, carry_h.to(y.dtype), carry_c.to(y.dtype), dh


def _backward_whole(
    p, dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, lengths, saved, cells, grads, dh
) -> None:
    from .whole import whole_backward

    backward = p.bind(whole_backward)
    backward(
        *(dy, carry_h, carry_c, y, h0, c0, weight_hh, lengths, saved, cells, grads),
        *(p.T, p.B, p.H),
    )


def _backward_steps(
    p, dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, lengths, saved, cells, grads, dh
) -> None:
    from . import step

    T, B, H, P = p.T, p.B, p.H, p.P
    through_h, backward = p.bind(step.backward_h, P), p.bind(step.backward_step, H)
    operand = p.bind(step.backward_operand_step, H)
    if weight_hr is None:
        dh = None
    t_after = -1
    for t in range(T) if p.reverse else reversed(range(T)):
        if dh is not None:
            through_h(dy, carry_h, weight_hh, dh, lengths, grads, t, t_after, T, B, H, P)
        backward(
            *(dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, dh, lengths, saved, cells),
            *(grads, t, t_after, T, B, H, P),
        )
        if p.cell.second:
            operand(
                *(carry_h, carry_c, y, h0, c0, weight_hh, lengths, saved, cells, grads),
                *(t, T, B, H),
            )
        t_after = t
    through_h(None, carry_h, weight_hh, None, lengths, grads, t_after, t_after, T, B, H, P)


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("sequence_forward.triton", sequence_forward, _key)
    _native.LIBRARY.impl("sequence_backward.triton", sequence_backward, _key)
