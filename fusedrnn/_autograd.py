"""Gradients of the sequence op: the backward op's loop, then large products; and their gradients.

The first backward is the backend's. What is differentiated further (``create_graph=True``) is the
reference: it repeats the call, which double backward would have to hold on to otherwise.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from . import random, reference
from ._call import Reset, Weights
from ._products import (
    Needs,
    before,
    before_of,
    inputs,
    norm_grads,
    products,
    unit_weight_grads,
    weight_grad,
)
from .cells import CELLS, NORM_EPS, Cell


class Sequence(torch.autograd.Function):
    """The native and Triton ops with gradients.

    ``leaves`` are what has a gradient: x, h0, c0, the reset states, and all Weights one after
    another. The products with ``weight_ih`` are in here too, and what normalises them: one node of
    autograd instead of two, and one sum for both biases (B=1: 0.2 ms of 1.8). Saves for backward
    what the forward op left; nothing of it is changed: backward may run twice.
    """

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
        at_once: int,
        trace: bool,
        recompute: bool,
        seed: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        *leaves: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Run the forward op of the backend.

        With ``trace`` show what it saved, too; with ``recompute`` keep nothing of it, and run the
        op again in backward.
        """
        save = trace or not recompute
        call = (cell, backend, at_once, seed, lengths, mask, leaves[:5], _weights(leaves))
        y, hn, cn, *kept = forward(*call, save=save)
        kept_for = [None] * len(kept) if recompute else kept
        ctx.save_for_backward(seed, lengths, mask, y, *leaves, *kept_for)
        ctx.call, ctx.recompute = (cell, backend, at_once), recompute
        ctx.set_materialize_grads(False)
        if not trace:
            return y, hn, cn
        shown = kept[:2]
        ctx.mark_non_differentiable(*shown)
        return y, hn, cn, *shown

    @staticmethod
    def backward(ctx: object, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves that need one, by the backend's backward op."""
        needs = ctx.needs_input_grad[8:]
        # Once: checkpointing unpacks no tensor twice.
        seed, lengths, mask, y, *rest = ctx.saved_tensors
        leaves, kept = rest[: len(needs)], rest[len(needs) :]
        if ctx.recompute:
            call = (*ctx.call, seed, lengths, mask, leaves[:5], _weights(leaves))
            with torch.no_grad():
                kept = forward(*call, save=True)[3:]
        call = (*ctx.call, needs, *douts[:3], seed, lengths, mask, y, *leaves, *kept)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        grads = SequenceBackward.apply(*call) if again else gradients(*call)
        return (None,) * 8 + tuple(grads)


class SequenceBackward(torch.autograd.Function):
    """The gradients as a function that has gradients of its own: those of the reference."""

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
        at_once: int,
        needs: tuple[bool, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """``gradients``; ``tensors`` are its gradients of the outputs and what Sequence saved."""
        end = 7 + len(needs)
        douts, spans, leaves = tensors[:3], tensors[3:6], tensors[7:end]
        ctx.save_for_backward(*spans, *douts, *leaves)
        ctx.cell, ctx.kept = CELLS[cell], len(tensors) - end
        ctx.set_materialize_grads(False)
        return tuple(gradients(cell, backend, at_once, needs, *tensors))

    @staticmethod
    def backward(ctx: object, *ddleaves: Tensor | None) -> tuple[Tensor | None, ...]:
        """The reference, differentiated twice; to any order if a graph is asked for."""
        seed, lengths, mask, *given = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:7] + ctx.needs_input_grad[11 : 8 + len(given)]
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            roots = [
                t if t is None or not n else t.view_as(t) if graph else t.detach().requires_grad_()
                for t, n in zip(given, needed, strict=True)
            ]
            douts, leaves = roots[:3], roots[3:]
            x, h0, c0, *anew = leaves[:5]
            reset = None if mask is None else Reset(mask, *anew)
            weights = _weights(leaves)
            outs = reference.sequence(
                ctx.cell, x, weights, h0, c0, lengths, reset, trace=False, seed=seed
            )
            wanted = [i for i, dd in enumerate(ddleaves) if dd is not None]
            grads = grad_of(outs, [leaves[i] for i in wanted], douts, True)
            where = [i for i, n in enumerate(needed) if n]
            seconds = grad_of(
                grads, [roots[i] for i in where], [ddleaves[i] for i in wanted], graph
            )
        found = dict(zip(where, seconds, strict=True))
        second = [found.get(i) for i in range(len(roots))]
        return *[None] * 4, *second[:3], *[None] * 4, *second[3:], *[None] * ctx.kept


def grad_of(
    outputs: Iterable[Tensor | None],
    inputs: list[Tensor],
    douts: Iterable[Tensor | None],
    graph: bool,
) -> list[Tensor | None]:
    """torch.autograd.grad of those outputs that have a gradient."""
    pairs = [
        (o, d)
        for o, d in zip(outputs, douts, strict=True)
        if o is not None and d is not None and o.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    outs, ds = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outs, inputs, ds, create_graph=graph, allow_unused=True))


def gradients(
    cell: str,
    backend: str,
    at_once: int,
    needs: tuple[bool, ...],
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    seed: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
    *tensors: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the leaves: the loop is the backend's, then come products over all steps.

    ``tensors`` are the leaves, and what ``forward`` left.
    """
    leaves, (saved, cells, hidden, *normed) = tensors[: len(needs)], tensors[len(needs) :]
    (x, h0, c0, *anew), weights = leaves[:5], _weights(leaves)
    resets = None if mask is None else Reset(mask, *anew)
    grads, dh0, dc0, dh, *danew, dweight_unit = op("backward", backend)(
        cell, dy, dhn, dcn, y, h0, c0, _recurrent(weights), _each(weights, "weight_hr"),
        _each(weights, "weight_unit"), seed, lengths, mask, *anew, saved, cells, at_once,
    )  # fmt: skip
    record, each_needs, given = CELLS[cell], _weights(needs), weights[0].weight_ih is not None
    met = _met(record, backend, y, h0, seed, lengths, resets)
    matrix = any(n.weight_hh for n in each_needs) and not record.independent
    biases = any(n.bias_ih or n.bias_hh for n in each_needs)
    wanted = Needs(needs[0], any(n.weight_ih for n in each_needs), matrix, biases)
    through = [
        _through_norm(d, w, *normed[3 * i : 3 * i + 3])
        for i, (d, w) in enumerate(zip(grads, weights, strict=True) if normed else ())
    ]
    found = products(
        record, backend, grads, x if given else None, _each(weights, "weight_ih"), y, h0, saved,
        met, [dgx for dgx, _ in through], wanted,
    )  # fmt: skip
    flat: list[Tensor | None] = []
    for i, (w, need) in enumerate(zip(weights, each_needs, strict=True)):
        new = [of[i] if n and of else None for n, of in zip(need, found[1:], strict=False)]
        new += [None] * (len(need) - len(new))
        spans = (i == 1, lengths, resets and resets.of(i))
        if need.weight_hh and record.independent:
            new[1] = w.weight_hh.clone()
        if need.weight_hr:
            new[4] = dh[i].flatten(0, 1).t() @ hidden[i].flatten(0, 1)
        if need.weight_unit and backend == "cpu":
            new[5] = dweight_unit[i]
        elif need.weight_unit:
            h = met[i] if met else None
            own = unit_weight_grads(record, grads[i], h, cells[i], c0[i], *spans)
            own += norm_grads(record, grads[i], saved[i], cells[i])
            new[5] = torch.cat(own).to(y.dtype)
        if need.weight_ch:
            c = before_of(0, cells[i].to(y.dtype), c0[i], *spans)
            new[6] = weight_grad(record, grads[i], c, saved[i])
        if need.weight_ln_ih:
            new[7] = through[i][1]
        flat += new
    dx: Tensor | None = None
    if needs[0]:
        dx = found.x if given else grads.flatten(3)[..., : len(record.gates) * grads.shape[4]]
    states = [g if n else None for g, n in zip((dh0, dc0, *danew), needs[1:5], strict=True)]
    return [dx, *states, *flat]


def _through_norm(
    grads: Tensor, weights: Weights, raw: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``W_ih x`` [T, B, G*H] and of the gain, of a direction's grads."""
    width = raw.shape[2]
    dgx, dgain, _ = torch.ops.aten.native_layer_norm_backward(
        grads.flatten(2)[..., :width], raw, (width,), mean, rstd, weights.weight_ln_ih, None,
        (True, True, False),
    )  # fmt: skip
    return dgx, dgain


def _met(
    cell: Cell,
    backend: str,
    y: Tensor,
    h0: Tensor,
    seed: Tensor | None,
    lengths: Tensor | None,
    reset: Reset | None,
) -> list[Tensor]:
    """What met W_hh, of each direction; nothing where it is h of the step before, or h0.

    Also h before each step where units are independent and their weights' gradients not the loop's.
    """
    drawn = seed is not None and cell.variational
    met = reset or drawn or (lengths is not None and len(h0) > 1)
    if not (backend != "cpu" if cell.independent else met):
        return []
    found, (mask, anew, _) = [], reset or (None, None, None)
    for i, (first, h) in enumerate(zip(h0, y.chunk(len(h0), 2), strict=True)):
        met = before(h, first, i == 1, lengths, mask, None if anew is None else anew[i])
        if drawn:
            met = met * random.meeting(seed[i], first, cell.variational, backend)
        found.append(met)
    return found


def _weights(leaves: tuple) -> tuple[Weights, ...]:
    n = len(Weights._fields)
    return tuple(Weights(*leaves[i : i + n]) for i in range(5, len(leaves), n))


def _each(weights: tuple[Weights, ...], name: str) -> list[Tensor]:
    """That weight of each direction; all have it or none."""
    return [] if getattr(weights[0], name) is None else [getattr(w, name) for w in weights]


def op(direction: str, backend: str) -> torch._ops.OpOverload:
    """The op of a backend: ``direction`` is "forward" or "backward"."""
    packet = getattr(torch.ops.fusedrnn, f"sequence_{direction}")
    return packet.triton if backend == "triton" else packet.native


def forward(
    cell: str,
    backend: str,
    at_once: int,
    seed: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    states: tuple[Tensor | None, ...],
    weights: tuple[Weights, ...],
    *,
    save: bool,
) -> tuple[Tensor, ...]:
    """The input products of all steps, normalised if they are to be, and the backend's forward op.

    ``states`` are x, h0, c0 and the reset states. What is normalised comes after the op's outputs:
    of each direction W_ih x, and its mean and 1 / its deviation.
    """
    x, h0, c0, *anew = states
    weight_ih, bias_ih = _each(weights, "weight_ih"), _each(weights, "bias_ih")
    normed: list[Tensor] = []
    if not weight_ih:
        gx = list(x.unbind(0))
    elif weights[0].weight_ln_ih is None:
        gx = inputs(backend, x, weight_ih, bias_ih)
    else:
        gx = []
        for raw, w in zip(inputs(backend, x, weight_ih, []), weights, strict=True):
            shape = raw.shape[2:]
            of = torch.native_layer_norm(raw, shape, w.weight_ln_ih, w.bias_ih, NORM_EPS)
            gx.append(of[0])
            normed += [raw, *of[1:]]
    outputs = op("forward", backend)(
        cell, gx, _recurrent(weights), _each(weights, "bias_hh"), _each(weights, "weight_hr"),
        _each(weights, "weight_unit"), seed, h0, c0, lengths, mask, *anew, save, at_once,
    )  # fmt: skip
    return *outputs, *normed


def alive(lengths: Tensor, T: int) -> Tensor:
    """Where rows take part, ``[T, B, 1]``."""
    return (torch.arange(T, device=lengths.device).unsqueeze(-1) < lengths).unsqueeze(-1)


def _recurrent(weights: tuple[Weights, ...]) -> list[Tensor]:
    """weight_hh as the kernels take it: with full peepholes c's columns follow."""
    return [
        w.weight_hh if w.weight_ch is None else torch.cat((w.weight_hh, w.weight_ch), 1)
        for w in weights
    ]
