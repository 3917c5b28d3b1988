"""Stacked layers that take turns: a wavefront over layers and time.

While layer l runs a piece of the sequence, layer l - 1 runs the next one, each on a stream of its
own. That pays on a GPU whose SMs one layer with W_hh on chip does not fill; in how many pieces, the
planner's figures say. Backward goes the same way back, since autograd runs each piece on the stream
of its forward.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import _backend, _precision, ops
from . import plan as planner
from ._pieces import LayerCall

VARIABLE = "FUSEDRNN_PIECES"
_SHORTEST = 16  # steps of a piece
# A model: microseconds of each piece beside its steps, on the device (launches, the product of its
# input, filling y) and on the host; and the most that waves may take of the time one by one.
_DEVICE_US, _HOST_US, _GAIN = 12.0, 60.0, 0.9


@dataclass(frozen=True)
class Waves:
    """How stacked layers go through their sequence.

    Attributes:
        pieces: of the sequence; 1: layer after layer.
        at_once: layers that the device holds side by side.
        us: predicted microseconds: a model, nothing measured.
        us_one_by_one: the same layer after layer.
    """

    pieces: int
    at_once: int
    us: float
    us_one_by_one: float


def waves(layers: int, T: int, passes: list[planner.Plan]) -> Waves:
    """The number of pieces, a power of two, that the model finds fastest.

    Args:
        layers: of one direction, stacked.
        T: steps.
        passes: the kernel of a layer's forward and, if there is a backward, of that.

    Raises:
        ValueError: ``layers`` is less than 1.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; it must be at least 1")
    fit = min(1 if p.kernel == "stepwise" else p.at_once for p in passes)
    at_once = max(1, min(fit, layers))

    def predicted(pieces: int) -> float:
        rounds = sum(-(-active // at_once) for active in _active(layers, pieces))
        steps, host = T / pieces, layers * pieces * _HOST_US
        each = (rounds * (steps * p.us_per_step + _DEVICE_US) for p in passes)
        return sum(us if pieces == 1 else max(us, host) for us in each)

    one_by_one = predicted(1)
    us, pieces = one_by_one, 1
    while at_once > 1 and T // (2 * pieces) >= _SHORTEST and (n := predicted(2 * pieces)) < us:
        us, pieces = n, 2 * pieces
    if us > _GAIN * one_by_one:
        return Waves(1, at_once, one_by_one, one_by_one)
    return Waves(pieces, at_once, us, one_by_one)


def _active(layers: int, pieces: int) -> list[int]:
    """How many layers have a piece to run, wave after wave."""
    count = layers + pieces - 1
    return [min(wave + 1, layers, pieces, count - wave) for wave in range(count)]


@cache
def planned(
    cell: str,
    layers: int,
    T: int,
    B: int,
    H: int,
    *,
    proj_size: int,
    dtype: torch.dtype,
    backward: bool,
    precision: str | None,
    device: str | int | planner.Device,
    kernel: str = "",
) -> Waves:
    """``waves`` of a stack; ``kernel``: which one is asked for in the place of the planner's."""
    card = planner.here(device) if isinstance(device, int) else device
    passes = []
    for back in (False, True)[: 1 + backward]:
        found = planner.plans(
            cell, T, B, H, proj_size=proj_size, dtype=dtype, backward=back, precision=precision,
            device=card,
        )  # fmt: skip
        passes.append(next((p for p in found if p.kernel == kernel and p.runs), found[0]))
    return waves(layers, T, passes)


def describe(found: Waves, layers: int, backward: bool) -> list[str]:
    """Waves in words, line by line."""
    passes = "forward and backward" if backward else "forward"
    held = f"the device holds {found.at_once} of them side by side"
    one_by_one = f"{found.us_one_by_one:,.0f} us"
    model = "(a model, nothing measured)"
    if found.pieces == 1:
        return [
            f"{layers} layers: one after the other; {held}",
            f"  predicted {one_by_one} {passes} {model}",
        ]
    return [
        f"{layers} layers: take turns with {found.pieces} pieces of the sequence; {held}",
        f"  predicted {found.us:,.0f} us {passes}, one after the other {one_by_one} {model}",
    ]


def pieces_of(stack: list[LayerCall], x: Tensor) -> int:
    """In how many pieces of ``x`` these layers take turns; 1: they run one after the other.

    Raises:
        ValueError: FUSEDRNN_PIECES is not a number of pieces.
    """
    first = stack[0]
    if len(stack) == 1 or len(first.weights) > 1 or torch.compiler.is_compiling():
        return 1
    if asked := os.environ.get(VARIABLE):
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(
                f"{VARIABLE} is {asked!r}; it must be a number of pieces, 1 for layer after layer, "
                "or not set"
            )
        return min(int(asked), len(x))
    (weights,), cell = first.weights, first.cell
    limits = ops.limits(cell.name, x.dtype, weights.weight_hr is not None)
    if x.device.type != "cuda" or _backend.choose("cuda", limits)[0] != "cuda":
        return 1
    needed = any(t.requires_grad for t in (x, *first.tensors()))
    return planned(
        cell.name, len(stack), len(x), x.shape[1], len(weights.weight_hh) // len(cell.gates),
        proj_size=0 if weights.weight_hr is None else len(weights.weight_hr),
        dtype=x.dtype, backward=needed and torch.is_grad_enabled(),
        precision=_precision.of_recurrence(x.dtype, x.device), device=x.device.index,
        kernel=os.environ.get("FUSEDRNN_CUDA_KERNEL", ""),
    ).pieces  # fmt: skip


class Lanes:
    """A stream for each layer; the last one's is the caller's. Off a GPU they are one."""

    def __init__(self, device: torch.device, layers: int) -> None:
        self.streams: tuple[torch.cuda.Stream, ...] | None = None
        if device.type == "cuda":
            caller = torch.cuda.current_stream(device)
            self.streams = (*_side_streams(device.index, layers - 1), caller)

    def on(self, layer: int) -> AbstractContextManager:
        """Work begun inside is that of a layer."""
        return torch.cuda.stream(self.streams[layer]) if self.streams else nullcontext()

    def follow(self, layer: int, other: int) -> None:
        """What a layer begins from now on waits for all that another has begun by now."""
        if self.streams:
            self.streams[layer].wait_stream(self.streams[other])

    def read(self, layer: int, tensors: Iterable[Tensor]) -> None:
        """Another lane made these: their memory is not given away before this one is done."""
        for t in tensors if self.streams else ():
            t.record_stream(self.streams[layer])


@cache
def _side_streams(index: int, count: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(index) for _ in range(count))


def in_waves(
    stack: list[LayerCall],
    x: Tensor,
    pieces: int,
    between: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """y of the last layer of a stack that goes through ``x`` in this many pieces.

    In a wave the upper layers begin first: what a layer waits for is then what the one below has
    begun by now, and that is no more than the piece it is about to read.

    Args:
        stack: layers of one direction; their states are final afterwards.
        x: ``[T, B, I]``.
        pieces: of at most equal length.
        between: dropout, if some lies between two layers.
    """
    last, lanes = len(stack) - 1, Lanes(x.device, len(stack))
    for number, layer in enumerate(stack[:-1]):
        lanes.follow(number, last)  # whose stream is the caller's, on which all of this was made
        lanes.read(number, layer.tensors())
    parts = list(x.split(-(-len(x) // pieces)))  # part k is what the next layer reads at k
    lanes.read(0, [x])
    for wave in range(len(parts) + last):
        for number in reversed(range(len(stack))):
            if not 0 <= (k := wave - number) < len(parts):
                continue
            with lanes.on(number):
                if number:
                    lanes.follow(number, number - 1)
                    lanes.read(number, [parts[k]])
                    parts[k] = between(parts[k]) if between else parts[k]
                parts[k] = stack[number].piece(parts[k])
    lanes.read(last, [s for layer in stack[:-1] for s in (layer.h, layer.c)])
    return torch.cat(parts)
