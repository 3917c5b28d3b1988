"""One call of the sequence op on the Triton kernels: its sizes, checked, and how to launch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _precision, random
from ..cells import CELLS, Cell
from ..reference import state_dtype
from . import plan as planner
from . import tune
from .plan import Plan, Shape, limit


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it this one."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def of(t: Any, d: int) -> Any:
    """The entry of a direction in a list or a tensor; None where there is none."""
    return t[d] if t is not None and len(t) else None


@dataclass(frozen=True)
class Problem:
    """One call: its cell and sizes (N directions), and how to launch a kernel for it."""

    cell: Cell
    like: Tensor
    N: int
    T: int
    B: int
    H: int
    P: int
    precision: str
    plan: Plan

    def bind(
        self, kernel: Any, units: int = 0, reverse: bool = False, tiles: Plan | None = None
    ) -> Callable[..., None]:
        """The kernel with its grid and its constants, found by their names.

        The grid covers all rows, and ``units``; without them it covers all directions, and all
        units where they are independent. ``tiles``: others than the plan's.
        """
        import triton.language as tl

        c, p, dtype = self.cell, tiles or self.plan, self.like.dtype
        constants = {
            "G": len(c.gates),
            "S": len(c.states),
            "K": len(c.saved),
            "D": c.grads,
            "SECOND": c.second,
            "OPERAND": c.operand,
            "H_GRAD": c.h_grad,
            "VECTOR": c.product_grad,
            "V": len(c.weights),
            "NORMS": c.norms,
            "OWN": c.native,
            "INDEPENDENT": c.independent,
            "FULL": c.full,
            "CHANCES": chances(c),
            "DH_CLIP": c.dh_clip,
            "REVERSE": reverse,
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "BB": p.rows,
            "BH": p.units,
            "BK": p.depth,
            "PRECISION": self.precision,
            "UPCAST": planner.INTERPRETED and dtype == torch.bfloat16,
        }
        for name, twin in vars(c.triton).items():
            constants[name] = twin and twin.jit
        constants = {name: constants[name] for name in constants if name in kernel.arg_names}
        blocks = (-(-self.B // p.rows), -(-units // p.units) if units else self.N)
        if c.independent:
            blocks += (-(-self.H // p.units),)

        def launch(*args: object) -> None:
            kernel[blocks](*args, **constants, num_warps=p.warps, num_stages=p.stages)

        return launch

    def checked(self, name: str, t: Any, *size: int, dtype: torch.dtype | None = None) -> Any:
        """The tensor, contiguous, if its shape, dtype and device fit; of a list, each."""
        if isinstance(t, list):
            return [self.checked(name, one, *size, dtype=dtype) for one in t]
        if t is None:
            return None
        if list(t.shape) != list(size):
            raise RuntimeError(f"fusedrnn: {name} has shape {list(t.shape)}, must be {list(size)}")
        dtype, device = dtype or self.like.dtype, self.like.device
        if t.dtype != dtype or t.device != device:
            raise RuntimeError(
                f"fusedrnn: {name} is {t.dtype} on {t.device}, must be {dtype} on {device}"
            )
        return t.contiguous()

    def seeds(self, t: Tensor | None) -> Tensor | None:
        """The seeds of each direction, ``[N, 2]``; None where the cell draws nothing."""
        t = self.checked("seed", t, self.N, 2, dtype=torch.int64)
        return t if self.cell.random else None

    def steps(self, reverse: bool) -> range:
        """The times of all steps, in the order of forward."""
        return range(self.T - 1, -1, -1) if reverse else range(self.T)


def chances(cell: Cell) -> tuple[tuple | None, ...]:
    """What the kernels draw in each stream: see ``_random.py``."""
    probabilities = cell.dropout, cell.zoneout_h, cell.zoneout_c, cell.variational
    return tuple((1 - p, random.below(p), random.scale(p)) if p else None for p in probabilities)


def problem(
    cell: str,
    first: str,
    like: Tensor,
    N: int,
    weight_hh: list[Tensor],
    weight_hr: list[Tensor],
    weight_unit: list[Tensor],
) -> Problem:
    """The sizes of a call, checked; ``like`` is gx of the first direction, or y."""
    c, projected = CELLS[cell], bool(weight_hr)
    G = len(c.gates)
    if reason := limit(cell, like.dtype, projected):
        raise RuntimeError(f"fusedrnn: {reason}")
    complete("weight_hh", weight_hh, N)
    if projected:
        complete("weight_hr", weight_hr, N)
    if len(weight_unit) != (N if c.rows_of_units else 0):
        raise RuntimeError(
            f"fusedrnn: cell {cell!r} has {c.rows_of_units} weights of a unit's own: weight_unit "
            f"must hold {N if c.rows_of_units else 0} tensors, got {len(weight_unit)}"
        )
    w = weight_hh[0]
    if like.dim() != 3 or w.dim() != 2 or w.shape[0] % G:
        raise RuntimeError(
            f"fusedrnn: {first} must be [T, B, {'G*H' if first == 'gx' else 'N*P'}] and weight_hh "
            f"[G*H, P] with G = {G}, got {list(like.shape)} and {list(w.shape)}"
        )
    (T, B), H, depth = like.shape[:2], w.shape[0] // G, w.shape[1]
    P = H if c.independent else depth - H if c.full else depth
    if (P != H and not projected) or (c.independent and (depth or projected)):
        need = 0 if c.independent else 2 * H if c.full else H
        raise RuntimeError(
            f"fusedrnn: weight_hh must be [{G * H}, {need}] without a projection, got "
            f"{list(w.shape)}"
        )
    if H * depth >= 2**31:
        raise RuntimeError(
            f"fusedrnn: weight_hh has {H} x {depth} elements a gate; the Triton kernels take less "
            'than two to the 31st. Use fusedrnn.backend("cuda") or fewer units'
        )
    precision = _precision.of_recurrence(like.dtype, like.device)
    shape = Shape(cell, like.dtype, B, H, P if projected else None, N, precision)
    return Problem(c, like, N, T, B, H, P, precision, tune.choose(shape, like.device))


def complete(name: str, tensors: list[Tensor], N: int) -> None:
    if len(tensors) != N:
        raise RuntimeError(
            f"fusedrnn: {name} must hold {N} tensors, one for each direction, got {len(tensors)}"
        )


class Spans(NamedTuple):
    """Where rows end and begin anew."""

    lengths: Tensor | None
    mask: Tensor | None
    h: Tensor | None
    c: Tensor | None

    def checked(self, p: Problem) -> "Spans":
        """The same, contiguous, if all fits."""
        if (self.h is None) != (self.c is None):
            raise RuntimeError("fusedrnn: reset_h and reset_c must be given together")
        if self.mask is None and self.h is not None:
            raise RuntimeError("fusedrnn: reset_h is given without reset, the mask that says where")
        return Spans(
            p.checked("lengths", self.lengths, p.B, dtype=torch.int64),
            p.checked("reset", self.mask, p.T, p.B, dtype=torch.bool),
            p.checked("reset_h", self.h, p.N, p.B, p.P),
            p.checked("reset_c", self.c, p.N, len(p.cell.states) - 1, p.B, p.H),
        )

    def of(self, d: int) -> tuple | None:
        """``reset`` of a direction, as the kernels take it (_tiles.py)."""
        return None if self.mask is None else (self.mask, of(self.h, d), of(self.c, d))

    def first(self, state: Tensor, anew: Tensor | None, d: int) -> Tensor:
        """A copy of h0 ``[B, P]`` or c0 ``[S-1, B, H]``, wide, with what the first step resets."""
        wide = state.to(state_dtype(state.dtype), copy=True)
        if self.mask is None or d == 1:  # the reverse direction begins after all of the mask
            return wide
        rows = self.mask[0] if self.lengths is None else self.mask[0] & (self.lengths > 0)
        return torch.where(rows.unsqueeze(-1), 0 if anew is None else anew[d].to(wide.dtype), wide)
