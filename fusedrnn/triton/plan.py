"""Which Triton kernels run the sequence op, with which tiles, and why: no GPU, no triton needed."""

import os
from dataclasses import dataclass
from functools import cache

import torch

from ..cells import CELLS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels run in its interpreter, on the CPU."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# More units to a program would not compile without spilling: LSTM's forward kernel takes 246 of 255
# registers at 128 (sm_90, bfloat16).
WHOLE_UNITS = 128
# A backward kernel stages at most this many [rows, units] tiles beside the weights: those of this
# step for the products, those of the next on their way from memory. LSTM in bfloat16 takes 15 (24
# with lengths and given reset states), sLSTM, with four states, 21 (36).
STAGED_TILES, STAGED_TILES_OF_MANY = 16, 40


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
    record = CELLS[cell]
    if record.zoneout_c and not (record.native and len(record.states) == 2):
        return f"cell {cell!r} has zoneout of inner states, which only an LSTM's twin has"
    if projection and record.second:
        return f"cell {cell!r} multiplies its own operand with weight_hh: nothing can be projected"
    if projection and (record.zoneout_h or record.variational):
        return f"cell {cell!r} changes h before a projection, which no kernel sees"
    return None


@dataclass(frozen=True)
class Shape:
    """What the choice depends on.

    Attributes:
        cell: a name of the registry.
        dtype: that of the tensors.
        B: batch rows.
        H: hidden units.
        P: the projection's size, or None.
        directions: 1 or 2.
        precision: of float32 products: ``_precision.of_recurrence``.
    """

    cell: str
    dtype: torch.dtype
    B: int
    H: int
    P: int | None = None
    directions: int = 1
    precision: str = "ieee"

    def __str__(self) -> str:
        words = [self.cell, str(self.dtype).removeprefix("torch."), f"B={self.B} H={self.H}"]
        words += [f"P={self.P}"] * (self.P is not None) + ["both ways"] * (self.directions == 2)
        return " ".join(words + [self.precision] * (self.precision != "ieee"))


@dataclass(frozen=True)
class Plan:
    """Which kernels run, with which tiles, and why.

    Attributes:
        whole: one launch for the whole sequence, else one (or two, or three) a step.
        rows: batch rows of one program.
        units: hidden units of one program.
        depth: how much of a product is read at a time, where it does not lie on chip.
        warps: warps of one program.
        stages: how many steps of a loop are under way, counted by their loads.
        reason: why this kernel, in words.
    """

    whole: bool
    rows: int
    units: int
    depth: int
    warps: int
    stages: int
    reason: str


def plan(shape: Shape, shared: int) -> Plan:
    """Choose the kernels for a problem by rule; tune.py has those that were measured.

    One launch for the whole sequence where the tiles of W_hh, padded to a power of two, fit into
    the shared memory of one program, or where there is no product; else launches for each step.

    Args:
        shape: the problem.
        shared: bytes of shared memory that one program may have.

    Example:
        >>> import torch
        >>> plan(Shape("gru", torch.bfloat16, B=64, H=100), 227 << 10).reason
        'W_hh stays on chip: 163840 of 232448 bytes'
    """
    dtype, H = shape.dtype, shape.H
    units = max(16, 1 << (H - 1).bit_length())  # tl.dot takes tiles of 16 and more
    cell = CELLS[shape.cell]
    few = len(cell.states) <= 2 and len(cell.saved) + cell.grads <= 8
    staged = STAGED_TILES if few else STAGED_TILES_OF_MANY
    deep = 2 * units if cell.full else units
    room = (len(cell.gates) * deep + staged * 16) * units * dtype.itemsize
    if cell.independent:
        return Plan(True, 16, min(units, 64), 0, 4, 2, "units are independent: there is no product")
    if cell.norms:
        reason = "layer normalisation takes the whole rows of a product"
    elif shape.P is not None:
        reason = "h is projected"
    elif units > WHOLE_UNITS:
        reason = f"H={H} is more than the {WHOLE_UNITS} units of one program"
    elif room > shared:
        reason = f"W_hh on chip would take {room} bytes, the device has {shared}"
    else:
        reason = f"W_hh stays on chip: {room} of {shared} bytes"
        warps = 8 if units >= 64 or dtype.itemsize == 8 else 4
        if units >= 64 and dtype == torch.float32:
            warps = 16  # with 8 LSTM's forward kernel spills up to 40 registers on sm_100
        return Plan(True, 16, units, units, warps, 2, reason)
    rows = 16 if shape.B <= 16 or dtype.itemsize == 8 else 32
    depth = 16 if dtype.itemsize == 8 else 32
    warps = 8 if rows == 32 else 4  # with 4, LSTM's kernels of 32 rows spill up to 44 registers
    units = min(units, 16 if cell.full else 32)  # 32: two products spill 26 registers on sm_100
    return Plan(False, rows, units, depth, warps, 3, reason)


def rows(dtype: torch.dtype, H: int) -> Plan:
    """The tiles of launches in which a program owns whole rows, all H units of each.

    Args:
        dtype: that of the tensors.
        H: hidden units.

    Example:
        >>> import torch
        >>> rows(torch.bfloat16, H=300).units
        512
    """
    units = max(16, 1 << (H - 1).bit_length())
    count = max(1, 512 // units)
    each = 64 if dtype.itemsize == 8 else 128  # elements of a tile that a warp has: 2 or 4 a thread
    warps = min(32, max(4, count * units // each))
    return Plan(False, count, units, 0, warps, 1, "whole rows")


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have."""
    if device.type == "cpu":
        if not INTERPRETED:
            raise RuntimeError(
                "fusedrnn: Triton runs on the CPU in its interpreter only; set TRITON_INTERPRET=1 "
                "before Python starts, or move the tensors to a GPU"
            )
        return 1 << 30  # the interpreter has no end of it
    from triton.runtime import driver

    with torch.get_device_module(device).device(device):
        index = driver.active.get_current_device()
        return driver.active.utils.get_device_properties(index)["max_shared_mem"]
