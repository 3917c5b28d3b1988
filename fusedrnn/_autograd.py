"""Gradients of the sequence op: the backward op's loop, then large products; and their gradients.

The first backward is the backend's. What is differentiated further (``create_graph=True``) is the
reference: it repeats the call, which double backward would have to hold on to otherwise.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from . import random, reference
from ._call import Reset, Weights
from .cells import CELLS, Cell


class Sequence(torch.autograd.Function):
    """The native and Triton ops with gradients.

    ``leaves`` are what has a gradient: x, h0, c0, the reset states, and all Weights one after
    another. The products with ``weight_ih`` are in here too: one node of autograd instead of two,
    and one sum for both biases (B=1: 0.2 ms of 1.8). Saves for backward what the forward op left;
    nothing of it is changed: backward may run twice.
    """

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
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
        call = (cell, backend, seed, lengths, mask, leaves[:5], _weights(leaves))
        y, hn, cn, *kept = forward(*call, save=save)
        kept_for = [None] * 3 if recompute else kept
        ctx.save_for_backward(seed, lengths, mask, y, *kept_for, *leaves)
        ctx.cell, ctx.backend, ctx.recompute = cell, backend, recompute
        ctx.set_materialize_grads(False)
        if not trace:
            return y, hn, cn
        shown = kept[:2]
        ctx.mark_non_differentiable(*shown)
        return y, hn, cn, *shown

    @staticmethod
    def backward(ctx: object, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves that need one, by the backend's backward op."""
        needs = ctx.needs_input_grad[7:]
        # Once: checkpointing unpacks no tensor twice.
        seed, lengths, mask, y, *rest = ctx.saved_tensors
        kept, leaves = rest[:3], rest[3:]
        if ctx.recompute:
            call = (ctx.cell, ctx.backend, seed, lengths, mask, leaves[:5], _weights(leaves))
            with torch.no_grad():
                kept = forward(*call, save=True)[3:]
        call = (ctx.cell, ctx.backend, needs, *douts[:3], seed, lengths, mask, y, *kept, *leaves)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        grads = SequenceBackward.apply(*call) if again else gradients(*call)
        return (None,) * 7 + tuple(grads)


class SequenceBackward(torch.autograd.Function):
    """The gradients as a function that has gradients of its own: those of the reference."""

    @staticmethod
    def forward(
        ctx: object, cell: str, backend: str, needs: tuple[bool, ...], *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """``gradients``; ``tensors`` are its gradients of the outputs and what Sequence saved."""
        douts, spans, leaves = tensors[:3], tensors[3:6], tensors[10:]
        ctx.save_for_backward(*spans, *douts, *leaves)
        ctx.cell = CELLS[cell]
        ctx.set_materialize_grads(False)
        return tuple(gradients(cell, backend, needs, *tensors))

    @staticmethod
    def backward(ctx: object, *ddleaves: Tensor | None) -> tuple[Tensor | None, ...]:
        """The reference, differentiated twice; to any order if a graph is asked for."""
        seed, lengths, mask, *given = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:6] + ctx.needs_input_grad[13:]
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
        return None, None, None, *second[:3], *[None] * 7, *second[3:]


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
    needs: tuple[bool, ...],
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    seed: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
    saved: Tensor,
    cells: Tensor,
    hidden: Tensor,
    *leaves: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the leaves: the loop is the backend's, then come products over all steps."""
    (x, h0, c0, *anew), weights = leaves[:5], _weights(leaves)
    resets = None if mask is None else Reset(mask, *anew)
    grads, dh0, dc0, dh, *danew = op("backward", backend)(
        cell, dy, dhn, dcn, y, h0, c0, _recurrent(weights), _each(weights, "weight_hr"),
        _each(weights, "weight_unit"), seed, lengths, mask, *anew, saved, cells,
    )  # fmt: skip
    record, (T, B, D, H) = CELLS[cell], grads.shape[1:]
    width, P = len(record.gates) * H, h0.shape[2]
    dx: Tensor | None = None
    flat: list[Tensor | None] = []
    for i, (w, need) in enumerate(zip(weights, _weights(needs), strict=True)):
        rows = grads[i].view(T * B, D * H)
        dgx = rows if D * H == width else rows[:, :width]
        if needs[0] and w.weight_ih is not None:
            dx = dgx @ w.weight_ih if dx is None else dx.addmm_(dgx, w.weight_ih)
        reset = resets and resets.of(i)
        h = y[..., i * P : (i + 1) * P]
        met = _Met(h, h0[i], lengths, reset, i == 1, reset and reset.h)
        if record.variational and seed is not None:
            met = met._replace(factors=random.meeting(seed[i], h0[i], record.variational, backend))
        new: list[Tensor | None] = [None] * len(need)
        if need.weight_ih:
            new[0] = dgx.t() @ x.flatten(0, 1)
        if need.weight_hh:
            met_h = not record.independent
            new[1] = _weight_grad(record, rows, met, saved[i]) if met_h else w.weight_hh.clone()
        if need.bias_hh or need.bias_ih:
            new[2:4] = _bias_grads(record, rows.sum(0), need)
        if need.weight_hr:
            new[4] = dh[i].flatten(0, 1).t() @ hidden[i].flatten(0, 1)
        if need.weight_unit:
            own = _unit_weight_grads(record, grads[i], met, cells[i], c0[i])
            own += _norm_grads(record, grads[i], saved[i], cells[i])
            new[5] = torch.cat(own).to(y.dtype)
        if need.weight_ch:
            rounded = met.of_inner(0, cells[i].to(y.dtype), c0[i])
            new[6] = _weight_grad(record, rows, rounded, saved[i])
        flat += new
    if needs[0]:
        dx = grads.flatten(3)[..., :width] if dx is None else dx.view(x.shape)
    states = [g if n else None for g, n in zip((dh0, dc0, *danew), needs[1:5], strict=True)]
    return [dx, *states, *flat]


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
    seed: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    states: tuple[Tensor | None, ...],
    weights: tuple[Weights, ...],
    *,
    save: bool,
) -> tuple[Tensor, ...]:
    """The input products of all steps, and the backend's forward op.

    ``states`` are x, h0, c0 and the reset states.
    """
    x, h0, c0, *anew = states
    if weights[0].weight_ih is None:
        gx = list(x.unbind(0))
    else:
        gx = [linear(x, w.weight_ih, w.bias_ih) for w in weights]
    return op("forward", backend)(
        cell, gx, _recurrent(weights), _each(weights, "bias_hh"), _each(weights, "weight_hr"),
        _each(weights, "weight_unit"), seed, h0, c0, lengths, mask, *anew, save,
    )  # fmt: skip


class _Met(NamedTuple):
    """A state as steps met it: h, which the rows of W_hh met, but for a cell's own operands."""

    y: Tensor  # [T, B, P] of one direction, after each step
    h0: Tensor  # [B, P]
    lengths: Tensor | None
    reset: Reset | None
    reverse: bool
    anew: Tensor | None  # [B, P], the reset state; None: zero
    factors: Tensor | None = None  # [B, P], by which it is multiplied; None: 1

    def of_inner(self, k: int, cells: Tensor, c0: Tensor) -> "_Met":
        """The same of inner state k; ``cells`` [T, S-1, B, H], ``c0`` [S-1, B, H]."""
        anew = self.reset and self.reset.c
        anew, y = None if anew is None else anew[k], cells[:, k]
        if self.reverse and self.lengths is not None:  # there a row begins where it ends
            y = torch.where(alive(self.lengths, len(y)), y, 0)
        return self._replace(y=y, h0=c0[k], anew=anew, factors=None)

    def parts(self) -> tuple[Tensor, Tensor]:
        """It before each row's first step ``[B, P]``, and before the others ``[(T-1)*B, P]``."""
        first, later = self.h0, self.y[1:] if self.reverse else self.y[:-1]
        if self.reset is not None:
            mask = self.reset.mask
            cut, anew = mask[1:], 0 if self.anew is None else self.anew
            if self.lengths is not None:
                steps = torch.arange(1, len(mask), device=mask.device)
                cut = cut & (steps.unsqueeze(-1) < self.lengths)
            later = torch.where(cut.unsqueeze(-1), anew, later)
            if not self.reverse:
                first = torch.where(mask[0].unsqueeze(-1), anew, first)
        if self.factors is not None:
            first, later = first * self.factors, later * self.factors
        return first, later.flatten(0, 1)


def _weight_grad(cell: Cell, d: Tensor, met: _Met, saved: Tensor) -> Tensor:
    """DU = sum over steps of (h-gradients)^T (what met U): [G*H, P]. ``d`` is [T*B, D*H]."""
    (T, B, P), H, G = met.y.shape, saved.shape[3], len(cell.gates)
    out = met.y.new_empty(G * H, P)
    first, later = met.parts()
    for gate, a, b in _runs(cell, cell.product_grad):
        columns, rows = d[:, a * H : b * H], out[gate * H : (gate + b - a) * H]
        if gate >= G - cell.second:
            torch.mm(columns.t(), saved[:, :, cell.operand].flatten(0, 1), out=rows)
        elif met.reverse:
            torch.mm(_first_step(columns.unflatten(0, (T, B)), met.lengths).t(), first, out=rows)
            rows.addmm_(columns[: T * B - B].t(), later)
        else:
            torch.mm(columns[:B].t(), first, out=rows)
            rows.addmm_(columns[B:].t(), later)
    return out


def alive(lengths: Tensor, T: int) -> Tensor:
    """Where rows take part, ``[T, B, 1]``."""
    return (torch.arange(T, device=lengths.device).unsqueeze(-1) < lengths).unsqueeze(-1)


def _unit_weight_grads(cell: Cell, d: Tensor, met: _Met, cells: Tensor, c0: Tensor) -> list[Tensor]:
    """Of each unit's own weights ``[n, H]``: sums of a gate's gradient times a state's value.

    ``d`` is [T, B, D, H], ``cells`` [T, S-1, B, H], ``c0`` [S-1, B, H]. Gates in a row that weigh
    the same state are one product.
    """
    wide, sums = reference.state_dtype(d.dtype), []
    for (state, after), group in groupby(cell.weights, lambda w: (w.state, w.after)):
        gates = [w.gate for w in group]
        rows = d[:, :, gates[0] : gates[-1] + 1].to(wide)  # [T, B, n, H]
        if after:
            sums.append((rows * cells[:, state - 1].unsqueeze(2)).sum((0, 1)))
            continue
        first, later = (met if state == 0 else met.of_inner(state - 1, cells, c0)).parts()
        if met.reverse:
            begin, rest = _first_step(rows, met.lengths), rows[:-1]
        else:
            begin, rest = rows[0], rows[1:]
        total = (begin * first.unsqueeze(1)).sum(0)
        sums.append(total + (rest * later.view(*rest.shape[:2], 1, rest.shape[3])).sum((0, 1)))
    return sums


def _norm_grads(cell: Cell, d: Tensor, saved: Tensor, cells: Tensor) -> list[Tensor]:
    """Of layer normalisation's weights, in their order: ``[n, H]``. ``saved`` is [T, B, K, H]."""
    if not cell.norms:
        return []
    G, H = len(cell.gates), d.shape[3]
    wide = reference.state_dtype(d.dtype)
    normal = layer_norm(saved[:, :, len(cell.saved) :].to(wide), (G, H))
    sums = [
        (d[:, :, first:last].to(wide) * normal[:, :, gate : gate + last - first]).sum((0, 1))
        for gate, first, last in _runs(cell, cell.h_grad)
    ]
    if cell.norms > G:
        of_c, c = d[:, :, -1:].to(wide), layer_norm(cells[:, :1].transpose(1, 2), (H,))
        sums += [(of_c * c).sum((0, 1)), of_c.sum((0, 1))]
    return sums


def _recurrent(weights: tuple[Weights, ...]) -> list[Tensor]:
    """weight_hh as the kernels take it: with full peepholes c's columns follow."""
    return [
        w.weight_hh if w.weight_ch is None else torch.cat((w.weight_hh, w.weight_ch), 1)
        for w in weights
    ]


def _bias_grads(cell: Cell, total: Tensor, need: Weights) -> list[Tensor | None]:
    """Those of bias_ih and bias_hh; ``total`` ``[D*H]`` is the sum over all rows."""
    G, H = len(cell.gates), len(total) // cell.grads
    dx = total[: G * H] if need.bias_ih else None
    runs = [total[a * H : b * H] for _, a, b in _runs(cell, cell.h_grad)]
    return [dx, torch.cat(runs) if need.bias_hh else None]


def _runs(cell: Cell, vectors: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(gate, a, b): gates from that one on have their gradients in vectors a..b: one product.

    ``vectors`` says which vector of gradients is that of each gate.
    """
    runs: list[tuple[int, int, int]] = []
    for gate, index in enumerate(vectors):
        if runs and gate != len(cell.gates) - cell.second and runs[-1][2] == index:
            runs[-1] = (*runs[-1][:2], index + 1)
        else:
            runs.append((gate, index, index + 1))
    return runs


def _first_step(d: Tensor, lengths: Tensor | None) -> Tensor:
    """Of a reverse sequence ``[T, B, ...]``, each row at the step where it begins."""
    if lengths is None:
        return d[-1]
    steps = (lengths - 1).clamp(0, len(d) - 1)  # d of an empty row is zero everywhere
    return d[steps, torch.arange(d.shape[1], device=d.device)]
