"""The Triton backend of the sequence op: which kernels run, with which tiles, and the launches.

Importing this registers the ops' implementations; triton itself is imported by the first call. On a
CPU it needs Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported).
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..cells import CELLS, Cell
from ..reference import state_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def limit(cell: str, dtype: torch.dtype, projection: bool) -> str | None:
    """Why the Triton kernels cannot serve the sequence op on such a problem, or None: they can.

    Args:
        cell: a name of the registry.
        dtype: that of the tensors.
        projection: whether there is a ``weight_hr``.
    """
    if dtype not in DTYPES:
        return f"dtype is {dtype}; the kernels take float64, float32, bfloat16 and float16"
    if CELLS[cell].triton is None:
        return f"cell {cell!r} has no Triton twin"
    if projection and CELLS[cell].second:
        return f"cell {cell!r} multiplies its operand with weight_hh: it cannot have a projection"
    return None


@dataclass(frozen=True)
class Plan:
    """Which kernels run, with which tiles (rows, units, products' depth) and warps, and why."""

    whole: bool
    rows: int
    units: int
    depth: int
    warps: int
    reason: str


def plan(cell: Cell, dtype: torch.dtype, B: int, H: int, projection: bool, shared: int) -> Plan:
    """Choose the kernels for a problem: a pure function, which needs no GPU.

    One launch for the whole sequence where all tiles of W_hh, padded to a power of two, fit into the
    shared memory of one multiprocessor; else one launch (or two) a step.

    Args:
        cell: a record of the registry.
        dtype: that of the tensors.
        B: batch rows.
        H: hidden units.
        projection: whether there is a ``weight_hr``.
        shared: bytes of shared memory that one program may have.
    """
    units = max(16, 1 << (H - 1).bit_length())  # tl.dot takes tiles of 16 and more
    room = len(cell.gates) * units * units * dtype.itemsize + SCRATCH
    if projection:
        reason = "a projection"
    elif units > WHOLE_UNITS:
        reason = f"H={H} is more than the {WHOLE_UNITS} units of one program"
    elif room > shared:
        reason = f"W_hh takes {room} bytes of shared memory, this device has {shared}"
    else:
        reason = f"W_hh fits: {room} of {shared} bytes of shared memory"
        return Plan(True, 16, units, units, 8 if units >= 64 else 4, reason)
    rows = 16 if B <= 16 else 32
    depth = {8: 16, 4: 32, 2: 64}[dtype.itemsize]
    return Plan(False, rows, min(units, 32), min(units, depth), 4, reason)


# Registers: at 128 units a gate's [16, 128] tile is 8 registers a thread, and LSTM's kernels stay under
# 255 without spilling (tests/test_triton_compile.py); 256 units would not.
WHOLE_UNITS = 128
# Beside the weights, Triton stages h and layout changes: 4 to 9 KB in every kernel compiled so far.
SCRATCH = 12 * 1024


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have."""
    if device.type == "cpu":  # the interpreter has none to run out of
        return 1 << 30
    from triton.runtime import driver

    with _on(device):
        index = driver.active.get_current_device()
        return driver.active.utils.get_device_properties(index)["max_shared_mem"]


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it this one."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def _precision(like: Tensor) -> str:
    """How float32 products are computed: as torch's own switch for matrix products says."""
    if like.dtype != torch.float32 or not like.is_cuda or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


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

    def launch(self, kernel: Any, units: int | None, *args: object, **constants: object) -> None:
        """Run a kernel over all rows and, unless it takes the whole sequence, over ``units``."""
        import triton.language as tl

        wide, p = state_dtype(self.like.dtype), self.plan
        grid = [-(-self.B // p.rows)]
        if units is not None:
            grid.append(-(-units // p.units))
            constants["BK"] = p.depth
        kernel[tuple(grid)](
            *args,
            **constants,
            ACC=tl.float64 if wide == torch.float64 else tl.float32,
            BB=p.rows,
            BH=p.units,
            PRECISION=_precision(self.like),
            UPCAST=self.like.device.type == "cpu" and self.like.dtype == torch.bfloat16,
            num_warps=p.warps,
        )

    def constants(self, *names: str) -> dict[str, int]:
        """The cell's numbers by the kernels' names for them."""
        c = self.cell
        every = {
            "G": len(c.gates),
            "S": len(c.states),
            "K": len(c.saved),
            "D": c.grads,
            "SECOND": c.second,
            "OPERAND": c.operand,
            "VECTOR": c.h_grad,
        }
        return {name: every[name] for name in names}


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
    chosen = plan(c, like.dtype, B, H, projected, _shared_memory(like.device))
    return _Problem(c, like, T, B, H, P, reverse, chosen)


def _checked(p: _Problem, name: str, t: Tensor | None, *size: int, wide: bool = False) -> Any:
    """The tensor, contiguous, if its shape, dtype and device fit."""
    if t is None:
        return None
    if list(t.shape) != list(size):
        raise RuntimeError(
            f"fusedrnn: {name} has shape {list(t.shape)}, must be {list(size)}"
        )
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
    from . import whole

    twin = p.cell.triton
    p.launch(
        whole.whole_forward,
        None,
        *(gx, weight_hh, bias_hh, h0, c0, lengths, y, hn, cn, saved, cells, p.T, p.B, p.H),
        forward=twin.forward.jit,
        operand=twin.operand and twin.operand.jit,
        REVERSE=p.reverse,
        **p.constants("OPERAND", "G", "S", "K", "SECOND"),
    )


def _forward_steps(
    p, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, y, hn, cn, saved, cells, hidden
) -> None:
    from . import step

    T, B, H, P = p.T, p.B, p.H, p.P
    twin, wide = p.cell.triton, state_dtype(gx.dtype)
    h, h_new = h0.to(wide, copy=True), torch.empty_like(h0, dtype=wide)
    c, stash = c0.to(wide, copy=True), None
    if p.cell.second:
        stash = gx.new_empty(len(p.cell.saved), B, H, dtype=wide)
    if weight_hr is None:
        hidden = None
    elif saved is None:
        hidden = gx.new_empty(B, H)
    for t in reversed(range(T)) if p.reverse else range(T):
        if p.cell.second:
            p.launch(
                step.operand_step,
                H,
                *(gx, weight_hh, bias_hh, h, stash, t, B, H),
                operand=twin.operand.jit,
                **p.constants("G", "K", "SECOND"),
            )
        p.launch(
            step.forward_step,
            H,
            *(gx, weight_hh, bias_hh, h, h_new, c, stash, lengths, y, saved, cells, hidden),
            *(t, T, B, H, P),
            forward=twin.forward.jit,
            **p.constants("OPERAND", "G", "S", "K", "SECOND"),
        )
        if weight_hr is not None:
            p.launch(
                step.project_step,
                P,
                *(hidden, weight_hr, h, h_new, lengths, y, t, T, B, H, P),
                KEPT=saved is not None,
            )
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
    from . import whole

    twin = p.cell.triton
    p.launch(
        whole.whole_backward,
        None,
        *(dy, carry_h, carry_c, y, h0, c0, weight_hh, lengths, saved, cells, grads),
        *(p.T, p.B, p.H),
        backward=twin.backward.jit,
        backward_operand=twin.backward_operand and twin.backward_operand.jit,
        REVERSE=p.reverse,
        **p.constants("VECTOR", "G", "S", "K", "D", "SECOND"),
    )


def _backward_steps(
    p, dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, lengths, saved, cells, grads, dh
) -> None:
    from . import step

    T, B, H, P = p.T, p.B, p.H, p.P
    twin, dh, t_after = p.cell.triton, None if weight_hr is None else dh, -1
    for t in range(T) if p.reverse else reversed(range(T)):
        if weight_hr is not None:
            p.launch(
                step.backward_h,
                P,
                *(dy, carry_h, weight_hh, dh, lengths, grads, t, t_after, T, B, H, P),
                **p.constants("VECTOR", "G", "D", "SECOND"),
            )
        p.launch(
            step.backward_step,
            H,
            *(dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, dh, lengths, saved, cells),
            *(grads, t, t_after, T, B, H, P),
            backward=twin.backward.jit,
            REVERSE=p.reverse,
            **p.constants("VECTOR", "G", "S", "K", "D", "SECOND"),
        )
        if p.cell.second:
            p.launch(
                step.backward_operand_step,
                H,
                *(carry_h, carry_c, y, h0, c0, weight_hh, lengths, saved, cells, grads, t, T, B, H),
                backward_operand=twin.backward_operand.jit,
                REVERSE=p.reverse,
                **p.constants("VECTOR", "G", "S", "K", "D", "SECOND"),
            )
        t_after = t
    p.launch(
        step.backward_h,
        P,
        *(None, carry_h, weight_hh, None, lengths, grads, t_after, t_after, T, B, H, P),
        **p.constants("VECTOR", "G", "D", "SECOND"),
    )


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("sequence_forward.triton", sequence_forward, _key)
    _native.LIBRARY.impl("sequence_backward.triton", sequence_backward, _key)
