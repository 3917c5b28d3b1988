"""Which GPU kernel serves a sequence, with which tiles, and why: the planner, for any card.

The planner itself is C++ (csrc/plan.h), from which the CUDA kernels take their tiles; this reads
its answers. It needs no GPU: cards known by name are data. ``python -m fusedrnn plan`` prints it.
"""

from dataclasses import astuple, dataclass, fields
from functools import cache

import torch

from . import _native
from .cells import CELLS

_native.LIBRARY.define("gpu_devices() -> str")
_native.LIBRARY.define("cluster_room(int size) -> str")
_native.LIBRARY.define(
    "gpu_like(str title, int arch, int sms, int shared_per_cta, int shared_per_sm, "
    "int threads_per_sm) -> str"
)
_native.LIBRARY.define(
    "sequence_plans(str cell, str dtype, int T, int B, int H, int P, bool projection, "
    "bool backward, int directions, int at_once, str precision, str device) -> str"
)

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PRECISIONS = ("tf32", "ieee")
"""What products of float32 may be on a GPU: see fusedrnn/_precision.py."""
HERE = "here"
"""The name of the GPU in this machine."""


@dataclass(frozen=True)
class Device:
    """What a plan depends on, of one GPU.

    Attributes:
        name: as ``device=`` takes it.
        title: the vendor's name.
        arch: compute capability, 10 * major + minor.
        sms: streaming multiprocessors.
        gpcs: groups of SMs, which no thread-block cluster crosses; 0: the card has no clusters.
        max_cluster: CTAs of a cluster at most.
        shared_per_cta: bytes of shared memory, opted in.
        shared_per_sm: bytes of shared memory.
        threads_per_sm: threads that an SM holds.
        fma32: multiply-adds a clock and SM in float32.
        fma64: the same in float64.
        mma16: the same by mma.sync on 16-bit data.
        ghz: boost clock.
    """

    name: str
    title: str
    arch: int
    sms: int
    gpcs: int
    max_cluster: int
    shared_per_cta: int
    shared_per_sm: int
    threads_per_sm: int
    fma32: int
    fma64: int
    mma16: int
    ghz: float


@dataclass(frozen=True)
class Plan:
    """How one kernel would serve a problem on a device.

    Attributes:
        kernel: ``"stepwise"``, ``"grid"`` or ``"cluster"``; see csrc/plan.h.
        obstacle: why it cannot serve the problem on the device, or empty: it can.
        rows: batch rows of one pass of a CTA.
        units: hidden units of a CTA.
        depth: how much of the product a CTA takes at a time; 0: W_hh is resident.
        cluster: CTAs of a thread-block cluster.
        ctas: of one launch.
        threads: of a CTA.
        registers: of a thread, at most.
        shared: bytes of shared memory of a CTA.
        ctas_per_sm: that fit at once.
        at_once: such launches that the device holds side by side: of stacked layers, for one.
        resident_bytes: of W_hh, held by a CTA for the whole sequence.
        launches: of the whole sequence, without those that bring states in and out.
        rounds: times that the SMs are filled in each step.
        us_per_step: predicted microseconds: a model, nothing measured.
        reason: why these tiles.
    """

    kernel: str
    obstacle: str
    rows: int
    units: int
    depth: int
    cluster: int
    ctas: int
    threads: int
    registers: int
    shared: int
    ctas_per_sm: int
    at_once: int
    resident_bytes: int
    launches: int
    rounds: int
    us_per_step: float
    reason: str

    @property
    def runs(self) -> bool:
        """Whether it could run."""
        return not self.obstacle


def _read(kind: type, line: str) -> Device | Plan:
    """One line of the native planner's."""
    read = {str: str, int: int, float: float}
    values = line.split("|")
    return kind(*(read[f.type](v) for f, v in zip(fields(kind), values, strict=True)))


@cache
def devices() -> dict[str, Device]:
    """The GPUs known by name.

    Raises:
        RuntimeError: there is no native library.

    Example:
        >>> from fusedrnn import plan
        >>> plan.devices()["h200"].sms
        132
    """
    if _native.MISSING:
        raise RuntimeError(
            f"fusedrnn: the planner is part of the native library: {_native.MISSING}"
        )
    lines = torch.ops.fusedrnn.gpu_devices().splitlines()
    return {d.name: d for d in (_read(Device, line) for line in lines)}


def here(index: int | None = None) -> Device:
    """The GPU in this machine, as far as torch tells; the rest is that of the known card most like.

    Args:
        index: which of several; default: torch's current one.

    Raises:
        RuntimeError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "fusedrnn: torch sees no GPU to plan for; name a card: " + ", ".join(devices())
        )
    seen = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return like_known(seen)


def like_known(seen: object) -> Device:
    """A device from torch's properties of it (``torch.cuda.get_device_properties``)."""
    line = torch.ops.fusedrnn.gpu_like(
        seen.name, 10 * seen.major + seen.minor, seen.multi_processor_count,
        seen.shared_memory_per_block_optin, seen.shared_memory_per_multiprocessor,
        seen.max_threads_per_multi_processor,
    )  # fmt: skip
    return _read(Device, line.rstrip())


def plans(
    cell: str,
    T: int,
    B: int,
    H: int,
    *,
    proj_size: int = 0,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    bidirectional: bool = False,
    at_once: int = 1,
    precision: str | None = None,
    device: str | Device = HERE,
) -> list[Plan]:
    """Plan one layer's sequence with each kernel; the first is the one that runs.

    Args:
        cell: a name of the registry (``fusedrnn.cells.CELLS``).
        T: steps.
        B: batch rows.
        H: hidden units.
        proj_size: width of the projected h; 0: there is no projection.
        dtype: of data and weights.
        backward: the backward pass, else forward.
        bidirectional: both directions.
        at_once: how many such launches a kernel with W_hh on chip is to leave room for, itself one.
        precision: of float32 products, ``"tf32"`` or ``"ieee"``; None: as torch's switch for RNNs
            is, ``torch.backends.cudnn.rnn.fp32_precision``.
        device: a name of :func:`devices`, ``"here"``, or a description.

    Returns:
        Every kernel's plan: the fastest at the front, those that cannot serve the problem last.

    Raises:
        ValueError: an argument names nothing known, or a size is not positive.
        RuntimeError: there is no native library, or no GPU ``"here"``.

    Example:
        >>> import torch
        >>> from fusedrnn import plan
        >>> best, *others = plan.plans("gru", 1024, 16, 768, dtype=torch.bfloat16, device="h200")
        >>> best.kernel, best.ctas, best.launches
        ('grid', 96, 1)
    """
    if cell not in CELLS or not CELLS[cell].native:
        raise ValueError(f"cell is {cell!r}; it must be one of {', '.join(CELLS)}")
    names = {kind: name for name, kind in DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"dtype is {dtype}; it must be one of {', '.join(DTYPES)}")
    for name, size in (("T", T), ("B", B), ("H", H), ("at_once", at_once)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if proj_size and (not 0 < proj_size < H or CELLS[cell].second):
        raise ValueError(
            f"proj_size is {proj_size}; it must be between 1 and {H - 1}, and a cell with a second "
            "product takes none"
        )
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    described = _device(device)
    text = torch.ops.fusedrnn.sequence_plans(
        cell, names[dtype], T, B, H, proj_size or H, bool(proj_size), backward,
        2 if bidirectional else 1, at_once, precision or "", "|".join(map(str, astuple(described))),
    )  # fmt: skip
    return [_read(Plan, line) for line in text.splitlines()]


def _device(device: str | Device) -> Device:
    if isinstance(device, Device):
        return device
    if device == HERE:
        return here()
    if device not in devices():
        raise ValueError(
            f"device is {device!r}; it must be {HERE!r} (the GPU in this machine) or one of "
            f"{', '.join(devices())}"
        )
    return devices()[device]


def describe(plan: Plan) -> list[str]:
    """A plan in words, line by line."""
    if plan.obstacle:
        return [f"{plan.kernel}: cannot serve this: {plan.obstacle}"]
    weights = (
        f"{plan.resident_bytes:,} bytes of W_hh stay in each CTA"
        if plan.resident_bytes
        else f"W_hh is read in every step, {plan.depth} deep at a time"
    )
    cluster = f" in clusters of {plan.cluster}" if plan.cluster > 1 else ""
    passes = f", {plan.rounds} rounds a step" if plan.rounds > 1 else ""
    return [
        f"{plan.kernel}: runs; {plan.reason}",
        f"  tiles     {plan.rows} rows x {plan.units} units a CTA; {weights}",
        f"  CTAs      {plan.ctas:,} of {plan.threads} threads{cluster}; {plan.ctas_per_sm} fit on "
        f"an SM{passes}",
        f"  needs     {plan.registers} registers a thread at most, {plan.shared:,} bytes of shared "
        "memory a CTA",
        f"  launches  {plan.launches:,}",
        f"  predicted {plan.us_per_step:.2f} us a step (a model, nothing measured)",
    ]
