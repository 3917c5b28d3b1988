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
_MOST = 8  # layers side by side


@dataclass(frozen=True)
class Waves:
    """How stacked layers go through their sequence.

    Attributes:
        pieces: of the sequence; 1: layer after layer.
        at_once: layers that run side by side.
        us: predicted microseconds: a model, nothing measured.
        us_one_by_one: the same layer after layer.
        passes: the kernel of a layer's forward and, if there is a backward, of that.
    """

    pieces: int
    at_once: int
    us: float
    us_one_by_one: float
    passes: tuple[planner.Plan, ...]


def predicted(
    layers: int, T: int, pieces: int, at_once: int, passes: Iterable[planner.Plan]
) -> float:
    """Microseconds of so many stacked layers that take turns with their pieces of T steps."""
    count = layers + pieces - 1
    active = [min(wave + 1, layers, pieces, count - wave) for wave in range(count)]
    rounds, host = sum(-(-n // at_once) for n in active), layers * pieces * _HOST_US
    each = (rounds * (T / pieces * p.us_per_step + _DEVICE_US) for p in passes)
    return sum(us if pieces == 1 else max(us, host) for us in each)


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
    """The pieces, a power of two, and the kernels that the model finds fastest for a stack.

    Args:
        cell: as the rest, of ``plan.plans``.
        layers: of one direction.
        T: steps.
        B: batch rows.
        H: hidden units.
        proj_size: width of the projected h, or 0.
        dtype: of data and weights.
        backward: whether there is one.
        precision: of float32 products.
        device: a card, or the number of one in this machine.
        kernel: which one is asked for in the place of the planner's.

    Raises:
        ValueError: an argument names nothing known, or a size is not positive.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; it must be at least 1")
    card = planner.here(device) if isinstance(device, int) else device

    def passes(at_once: int) -> tuple[planner.Plan, ...]:
        found = (
            planner.plans(
                cell, T, B, H, proj_size=proj_size, dtype=dtype, backward=back, at_once=at_once,
                precision=precision, device=card,
            )
            for back in (False, True)[: 1 + backward]
        )  # fmt: skip
        return tuple(next((p for p in f if p.kernel == kernel and p.runs), f[0]) for f in found)

    alone = passes(1)
    one_by_one = predicted(layers, T, 1, 1, alone)
    best = Waves(1, 1, one_by_one, one_by_one, alone)
    for at_once in range(2, min(layers, _MOST) + 1):
        beside = passes(at_once)
        if any(p.kernel == "stepwise" or p.at_once < at_once for p in beside):
            break
        pieces = 2
        while T // pieces >= _SHORTEST:
            us = predicted(layers, T, pieces, at_once, beside)
            if us < min(best.us, _GAIN * one_by_one):
                best = Waves(pieces, at_once, us, one_by_one, beside)
            pieces *= 2
    return best


def describe(found: Waves, layers: int) -> list[str]:
    """Waves in words, line by line."""
    names = ("forward", "backward")[: len(found.passes)]
    passes = " and ".join(names)
    one_by_one, model = f"{found.us_one_by_one:,.0f} us", "(a model, nothing measured)"
    if found.pieces == 1:
        return [
            f"{layers} layers: one after the other",
            f"  predicted {one_by_one} {passes} {model}",
        ]
    kernels = (
        f"{name} by the {p.kernel} kernel, {p.ctas} CTAs, {p.us_per_step:.2f} us a step"
        for name, p in zip(names, found.passes, strict=True)
    )
    return [
        f"{layers} layers: take turns with {found.pieces} pieces of the sequence, {found.at_once} "
        "at a time",
        f"  each      {'; '.join(kernels)}",
        f"  predicted {found.us:,.0f} us {passes}, one after the other {one_by_one} {model}",
    ]


def chosen(stack: list[LayerCall], x: Tensor) -> tuple[int, int]:
    """In how many pieces of ``x`` these layers take turns, and how many at a time.

    1 piece: they run one after the other.

    Raises:
        ValueError: FUSEDRNN_PIECES is not a number of pieces.
    """
    first = stack[0]
    if len(stack) == 1 or len(first.weights) > 1 or torch.compiler.is_compiling():
        return 1, 1
    pieces, at_once = 1, 1
    if x.device.type == "cuda":
        pieces, at_once = _on_gpu(len(stack), first, x)
    if asked := os.environ.get(VARIABLE):
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(
                f"{VARIABLE} is {asked!r}; it must be a number of pieces, 1 for layer after layer, "
                "or not set"
            )
        pieces = min(int(asked), len(x))
    return pieces, at_once if pieces > 1 else 1


def _on_gpu(layers: int, first: LayerCall, x: Tensor) -> tuple[int, int]:
    """What is planned for the GPU that holds ``x``."""
    (weights,), cell = first.weights, first.cell
    limits = ops.limits(cell.name, x.dtype, weights.weight_hr is not None)
    if _backend.choose("cuda", limits)[0] != "cuda":
        return 1, 1
    needed = any(t.requires_grad for t in (x, *first.tensors()))
    found = planned(
        cell.name, layers, len(x), x.shape[1], len(weights.weight_hh) // len(cell.gates),
        proj_size=0 if weights.weight_hr is None else len(weights.weight_hr),
        dtype=x.dtype, backward=needed and torch.is_grad_enabled(),
        precision=_precision.of_recurrence(x.dtype, x.device), device=x.device.index,
        kernel=os.environ.get("FUSEDRNN_CUDA_KERNEL", ""),
    )  # fmt: skip
    return found.pieces, found.at_once


class Lanes:
    """A stream for each layer; the last one's is the caller's. Off a GPU they are one."""

    def __init__(self, device: torch.device, layers: int) -> None:
        self.streams: tuple[torch.cuda.Stream, ...] | None = None
        if device.type == "cuda":
            caller = torch.cuda.current_stream(device)
            self.streams = (*_side_streams(caller, layers - 1), caller)

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
def _side_streams(caller: torch.cuda.Stream, count: int) -> tuple[torch.cuda.Stream, ...]:
    """The caller's own: what one caller captures into a graph, no other one may use meanwhile."""
    return tuple(torch.cuda.Stream(caller.device) for _ in range(count))


def in_waves(
    stack: list[LayerCall],
    x: Tensor,
    pieces: int,
    at_once: int = 1,
    between: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """y of the last layer of a stack that goes through ``x`` in this many pieces.

    In a wave the upper layers begin first: what a layer waits for is then what the one below has
    begun by now, and that is no more than the piece it is about to read.

    Args:
        stack: layers of one direction; their states are final afterwards.
        x: ``[T, B, I]``.
        pieces: of at most equal length.
        at_once: layers for which the kernels are to leave room side by side.
        between: dropout, if some lies between two layers.
    """
    last, lanes = len(stack) - 1, Lanes(x.device, len(stack))
    for number, layer in enumerate(stack[:-1]):
        # Where these are made the gradients of the pieces are added up, and hooks of DDP run: on
        # the caller's stream, as DDP takes for granted.
        layer.weights = tuple(w.views() for w in layer.weights)
        lanes.follow(number, last)  # whose stream is the caller's, on which all of this was made
        lanes.read(number, layer.tensors())
    for layer in stack:
        layer.at_once = at_once
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
