"""Layers, directions, lengths and packing: the one road from a module to the sequence op."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from . import _waves, ops, random
from ._call import Reset, Weights
from ._pieces import LayerCall, in_chunks
from ._watch import Watch
from .cells import Cell

States = tuple[Tensor, ...]


def run(
    cell: Cell,
    x: Tensor,
    states: States,
    layers: list[tuple[Weights, ...]],
    lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    reset: Tensor | None = None,
    reset_states: States | None = None,
    watch: Watch | None = None,
    recompute: str = "none",
    training: bool = False,
) -> tuple[Tensor, States]:
    """Run stacked layers, each of one or two directions, over ``x``.

    Args:
        cell: which recurrence.
        x: ``[T, B, I]``.
        states: the first state ``[L*D, B, P]``, then the others ``[L*D, B, H]``; layer by layer,
            and within a layer the forward direction first, as torch.nn orders them.
        layers: the weights, one tuple a layer with one entry a direction.
        lengths: int64 ``[B]`` on the device of ``x``, or None.
        dropout_p: dropout on the output of every layer but the last.
        reset: bool ``[T, B]``, where rows begin anew; or None.
        reset_states: what they begin with, shaped as ``states``; None: zeros.
        watch: who runs the layers in place of the op, if someone watches (gates.py).
        recompute: what backward makes again instead of finding it saved: "none", the "gates", or
            the gates "chunks" of the sequence at a time.
        training: whether a cell with zoneout or dropout draws.

    Returns:
        y ``[T, B, D*P]`` and the final states, shaped as ``states``.
    """
    x, states, reset_states, layers = _as_autocast_says(x, states, reset_states, layers)
    stack = []
    for number, weights in enumerate(layers):
        anew, N = None, len(weights)
        if reset is not None:
            anew = Reset(reset, *(_of_layer(reset_states, number, N) if reset_states else ()))
        seed = random.seeds(N, x.device) if training and cell.random else None
        again = recompute != "none" and not watch
        h0, c0 = _of_layer(states, number, N)
        stack.append(LayerCall(cell, weights, h0, c0, lengths, anew, seed, again))
    between = partial(dropout, p=dropout_p) if dropout_p else None
    whole = watch or recompute == "chunks"
    pieces, at_once = (1, 1) if whole else _waves.chosen(stack, x)
    if pieces > 1:
        x = _waves.in_waves(stack, x, pieces, at_once, between)
    else:
        for number, layer in enumerate(stack):
            if number and between:
                x = between(x)
            if watch:
                x = watch.sequence(number, layer, x)
            else:
                x = in_chunks(layer, x) if recompute == "chunks" else layer.whole(x)
    finals = zip(*((layer.h, layer.c) for layer in stack), strict=True)
    hn, cn = (torch.cat(f) if len(f) > 1 else f[0] for f in finals)
    if len(states) == 2:
        return x, (hn, cn.squeeze(1))
    return x, (hn, *cn.unbind(1))


def step(cell: Cell, x: Tensor, states: States, weights: Weights) -> States:
    """One step of one layer: a sequence of length one.

    Args:
        cell: which recurrence.
        x: ``[B, I]``.
        states: each ``[B, H]``.
        weights: of the layer.

    Returns:
        The new states, shaped as ``states``.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, states, _, ((weights,),) = _as_autocast_says(x, states, None, [(weights,)])
    if (new := ops.step(cell, x, states, weights)) is not None:
        return new
    h0, c0 = _of_layer(tuple(s.unsqueeze(0) for s in states), 0, 1)
    _, hn, cn = ops.sequence(cell, x.unsqueeze(0), (weights,), h0, c0)
    return (hn.squeeze(0), *cn.squeeze(0).unbind(0))


def _of_layer(states: States, number: int, directions: int) -> tuple[Tensor, Tensor]:
    """h ``[D, B, P]`` and the other states ``[D, S-1, B, H]`` of one layer."""
    if len(states[0]) > directions:
        states = tuple(s[number * directions : (number + 1) * directions] for s in states)
    h, *inner = states
    if len(inner) == 1:
        return h, inner[0].unsqueeze(1)
    return h, torch.stack(inner, 1) if inner else h.new_empty(len(h), 0, *h.shape[1:])


def _as_autocast_says(
    x: Tensor, states: States, anew: States | None, layers: list[tuple[Weights, ...]]
) -> tuple[Tensor, States, States | None, list[tuple[Weights, ...]]]:
    """Under autocast everything has its dtype, results too: what cuDNN's and oneDNN's layers do."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return x, states, anew, layers
    dtype = torch.get_autocast_dtype(device_type)
    x, states = x.to(dtype), tuple(s.to(dtype) for s in states)
    anew = anew and tuple(s.to(dtype) for s in anew)
    return x, states, anew, [tuple(w.to(dtype) for w in layer) for layer in layers]


class Unpacked(NamedTuple):
    """A PackedSequence as a padded batch, its rows in the order of the packing."""

    x: Tensor  # [T, B, I], zero beyond a row's end
    lengths: Tensor  # [B]
    places: Tensor  # where each row of the packed data lies in [T*B]

    def pack(self, y: Tensor, like: PackedSequence) -> PackedSequence:
        """Pack ``y`` ``[T, B, *]`` as ``like`` is packed."""
        data = y.flatten(0, 1).index_select(0, self.places)
        return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def unpack(packed: PackedSequence) -> Unpacked:
    """One copy for all steps, where ``pad_packed_sequence`` makes one for each."""
    data, sizes = packed.data, packed.batch_sizes
    steps, batch = len(sizes), int(sizes[0])
    alive = torch.arange(batch) < sizes.unsqueeze(1)  # [T, B]
    places = alive.flatten().nonzero().squeeze(1).to(data.device)
    x = data.new_zeros(steps * batch, *data.shape[1:]).index_copy(0, places, data)
    return Unpacked(x.unflatten(0, (steps, batch)), alive.sum(0).to(data.device), places)


def checked_lengths(lengths: object, x: Tensor, batch: int, steps: int) -> Tensor:
    """``lengths=`` as an int64 tensor on the device of ``x``; refuse what is not a length.

    Raises:
        TypeError: not integers.
        ValueError: not one for each row, or outside 1..T.
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths)
    if lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"lengths has dtype {lengths.dtype}; it must hold integers (torch.int64): "
            "use lengths.long()"
        )
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)}; it must hold one length for each of the "
            f"{batch} rows of the batch"
        )
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > steps:
            raise ValueError(
                f"lengths range from {low} to {high}; "
                f"each must be in 1..{steps}, the number of steps"
            )
    return lengths.to(x.device, torch.int64, non_blocking=True)


def checked_reset(reset: object, input: Tensor, batch_first: bool) -> Tensor:
    """``reset=``, shaped as ``input`` without its features, as a bool tensor ``[T, B]``.

    Raises:
        TypeError: not a bool tensor.
        ValueError: another shape.
        RuntimeError: on another device than the input.
    """
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        found = f"dtype {reset.dtype}" if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(
            f"reset has {found}; it must be a bool tensor, True where a row begins anew: "
            "e.g. use done.bool()"
        )
    if reset.shape != input.shape[:-1]:
        raise ValueError(
            f"reset has shape {tuple(reset.shape)}; it must have that of input without its "
            f"features, {tuple(input.shape[:-1])}"
        )
    if reset.device != input.device:
        raise RuntimeError(
            f"reset is on {reset.device} and input is on {input.device}: "
            f"move one of them, e.g. reset.to({str(input.device)!r})"
        )
    if input.dim() == 2:
        return reset.unsqueeze(1)
    return reset.t().contiguous() if batch_first else reset
