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
    if CELLS[cell].random:
        return f"cell {cell!r} draws random numbers in each step, which no Triton kernel does yet"
    if projection and CELLS[cell].second:
        return f"cell {cell!r} multiplies its own operand with weight_hh: nothing can be projected"
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
        precision: of float32 products: see ``precision``.
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
    the shared memory of one program; else launches for each step.

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
    room = (len(cell.gates) * units + staged * 16) * units * dtype.itemsize
    if shape.P is not None:
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
    return Plan(False, rows, min(units, 32), depth, warps, 3, reason)


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


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How float32 products are computed: as torch's own switch for matrix products says."""
    if dtype != torch.float32 or device.type != "cuda" or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
