"""Layers, directions, lengths and packing: the one road from a module to the sequence op."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from . import ops
from .cells import Cell


class Weights(NamedTuple):
    """The parameters of one direction of one layer, in torch.nn's shapes."""

    weight_ih: Tensor  # [G*H, I]
    weight_hh: Tensor  # [G*H, P]
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    weight_hr: Tensor | None = None  # [P, H]

    def to(self, dtype: torch.dtype) -> "Weights":
        """The same in another dtype (autocast)."""
        return Weights(*(None if t is None else t.to(dtype) for t in self))


def run(
    cell: Cell,
    x: Tensor,
    states: tuple[Tensor, ...],
    layers: list[tuple[Weights, ...]],
    lengths: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run stacked layers, each of one or two directions, over ``x``.

    Args:
        cell: which recurrence.
        x: ``[T, B, I]``.
        states: the first state ``[L*D, B, P]``, then the others ``[L*D, B, H]``; layer by layer,
            and within a layer the forward direction first, as torch.nn orders them.
        layers: the weights, one tuple a layer with one entry a direction.
        lengths: int64 ``[B]`` on the device of ``x``, or None.
        dropout_p: dropout on the output of every layer but the last.

    Returns:
        y ``[T, B, D*P]`` and the final states, shaped as ``states``.
    """
    x, states, layers = _as_autocast_says(x, states, layers)
    h, inner = states[0], states[1:]
    finals: list[tuple[Tensor, Tensor]] = []
    for number, layer in enumerate(layers):
        if number and dropout_p:
            x = dropout(x, dropout_p)
        outputs = []
        for direction, w in enumerate(layer):
            i = number * len(layer) + direction
            c0 = torch.stack([s[i] for s in inner]) if inner else h.new_empty(0, *h.shape[1:])
            y, hn, cn = ops.sequence(
                cell, x, w.weight_hh, w.bias_hh, w.weight_hr, h[i], c0, lengths, direction == 1,
                w.weight_ih, w.bias_ih,
            )  # fmt: skip
            outputs.append(y)
            finals.append((hn, cn))
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    hn = torch.stack([f[0] for f in finals])
    if len(finals) == len(inner) == 1:
        return x, (hn, finals[0][1])  # it has the shape already
    return x, (hn, *(torch.stack([f[1][k] for f in finals]) for k in range(len(inner))))


def step(cell: Cell, x: Tensor, states: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """One step of one layer: a sequence of length one.

    Args:
        cell: which recurrence.
        x: ``[B, I]``.
        states: each ``[B, H]``.
        weights: of the layer.

    Returns:
        The new states, shaped as ``states``.
    """
    x, (h, *inner), ((w,),) = _as_autocast_says(x, states, [(weights,)])
    c0 = torch.stack(inner) if inner else h.new_empty(0, *h.shape)
    _, hn, cn = ops.sequence(
        cell, x.unsqueeze(0), w.weight_hh, w.bias_hh, w.weight_hr, h, c0, None, False,
        w.weight_ih, w.bias_ih,
    )  # fmt: skip
    return hn, *(cn[k] for k in range(len(inner)))


def _as_autocast_says(
    x: Tensor, states: tuple[Tensor, ...], layers: list[tuple[Weights, ...]]
) -> tuple[Tensor, tuple[Tensor, ...], list[tuple[Weights, ...]]]:
    """Under autocast everything has its dtype, results too: what cuDNN's and oneDNN's layers do."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return x, states, layers
    dtype = torch.get_autocast_dtype(device_type)
    if dtype != x.dtype or any(s.dtype != dtype for s in states):
        x, states = x.to(dtype), tuple(s.to(dtype) for s in states)
    return x, states, [tuple(w.to(dtype) for w in layer) for layer in layers]


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
