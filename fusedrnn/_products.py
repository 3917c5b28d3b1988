"""Products over all steps: the x-preactivations, and the gradients of what backward's loop left.

On the CPU those of the matrices and biases are native ops (csrc/ops/products.cpp): as torch
operators backward's are twenty-five, and were a third of a small call instead of a fifth.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from . import _native, reference
from ._call import Reset
from .cells import CELLS, Cell

_native.LIBRARY.define(
    "sequence_products(str cell, Tensor grads, Tensor? x, Tensor[] weight_ih, Tensor y, Tensor h0,"
    " Tensor saved, Tensor[] met, Tensor[] dgx, bool need_x, bool need_weight_ih,"
    " bool need_weight_hh, bool need_biases) -> (Tensor dx, Tensor[] dweight_ih,"
    " Tensor[] dweight_hh, Tensor[] dbias_ih, Tensor[] dbias_hh)"
)


_native.LIBRARY.define(
    "sequence_inputs(Tensor x, Tensor[] weight_ih, Tensor[] bias_ih) -> Tensor[]"
)


@torch.library.register_fake("fusedrnn::sequence_inputs")
def _fake_inputs(x: Tensor, weight_ih: list[Tensor], bias_ih: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(*x.shape[:2], len(w)) for w in weight_ih]


@torch.library.register_fake("fusedrnn::sequence_products")
def _fake_products(
    cell: str,
    grads: Tensor,
    x: Tensor | None,
    weight_ih: list[Tensor],
    y: Tensor,
    h0: Tensor,
    saved: Tensor,
    met: list[Tensor],
    dgx: list[Tensor],
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_biases: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    new, N, P, given = grads.new_empty, len(h0), h0.shape[2], x is not None
    rows = len(CELLS[cell].gates) * grads.shape[4]
    return (
        new(x.shape if need_x and given else 0),
        [new(w.shape) for w in weight_ih if need_weight_ih and given],
        [new(rows, P) for _ in range(N if need_weight_hh else 0)],
        [new(rows) for _ in range(N if need_biases else 0)],
        [new(rows) for _ in range(N if need_biases else 0)],
    )


def inputs(backend: str, x: Tensor, weight_ih: list[Tensor], bias_ih: list[Tensor]) -> list[Tensor]:
    """The x-preactivations ``W_ih x + b_ih`` of each direction, ``[T, B, G*H]``.

    Args:
        backend: whose products.
        x: ``[T, B, I]``.
        weight_ih: ``[G*H, I]`` of each direction.
        bias_ih: ``[G*H]`` of each direction, or none.
    """
    if backend == "cpu":
        return torch.ops.fusedrnn.sequence_inputs(x, weight_ih, bias_ih)
    return [
        linear(x, w, b) for w, b in zip(weight_ih, bias_ih or [None] * len(weight_ih), strict=True)
    ]


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    weight_ih: bool
    weight_hh: bool
    biases: bool


class Products(NamedTuple):
    """Gradients; those of weights hold one tensor for each direction, or none if not wanted."""

    x: Tensor  # [T, B, I]; empty if not wanted
    weight_ih: list[Tensor]
    weight_hh: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]


def products(
    cell: Cell,
    backend: str,
    grads: Tensor,
    x: Tensor | None,
    weight_ih: list[Tensor],
    y: Tensor,
    h0: Tensor,
    saved: Tensor,
    met: list[Tensor],
    dgx: list[Tensor],
    needs: Needs,
) -> Products:
    """Gradients of x, the matrices and the biases.

    Args:
        cell: which recurrence.
        backend: whose products.
        grads: ``[N, T, B, D, H]``, what the loop left.
        x: ``[T, B, I]``, or None where the caller brought the x-preactivations.
        weight_ih: of each direction; empty without x.
        y: ``[T, B, N*P]``.
        h0: ``[N, B, P]``.
        saved: ``[N, T, B, K, H]``.
        met: what met W_hh, ``[T, B, P]`` of each direction; empty: h of the step before.
        dgx: gradients of ``W_ih x``, ``[T, B, G*H]`` of each direction; empty: they are in grads.
        needs: which gradients are wanted.
    """
    if backend == "cpu":
        op = torch.ops.fusedrnn.sequence_products
        return Products(*op(cell.name, grads, x, weight_ih, y, h0, saved, met, dgx, *needs))
    (T, B, D, H), P = grads.shape[1:], h0.shape[2]
    width, all_x = len(cell.gates) * H, None if x is None else x.flatten(0, 1)
    found = Products(grads.new_empty(0), [], [], [], [])
    dx: Tensor | None = None
    for i, d in enumerate(grads):
        rows = d.view(T * B, D * H)
        of_x = dgx[i].flatten(0, 1) if dgx else rows[:, :width]
        if x is not None and needs.x:
            dx = of_x @ weight_ih[i] if dx is None else dx.addmm_(of_x, weight_ih[i])
        if x is not None and needs.weight_ih:
            found.weight_ih.append(of_x.t() @ all_x)
        if needs.weight_hh:
            h = met[i] if met else before(y[..., i * P : (i + 1) * P], h0[i], i == 1)
            found.weight_hh.append(weight_grad(cell, d, h, saved[i]))
        if needs.biases:
            total = rows.sum(0)
            runs = [total[a * H : b * H] for _, a, b in _runs(cell, cell.h_grad)]
            found.bias_ih.append(total[:width])
            found.bias_hh.append(torch.cat(runs))
    return found if dx is None else found._replace(x=dx.view(x.shape))


def before(
    states: Tensor,
    first: Tensor,
    reverse: bool,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    anew: Tensor | None = None,
) -> Tensor:
    """A state as each step found it, ``[T, B, P]``; beyond a row's end any number.

    Args:
        states: ``[T, B, P]``, the state after each step.
        first: ``[B, P]``, before the first.
        reverse: whether the direction goes from the last step to the first.
        lengths: ``[B]``, or None.
        reset: bool ``[T, B]``, where rows begin anew, or None.
        anew: ``[B, P]``, what they begin with; None: zeros.
    """
    T = len(states)
    if not reverse:
        found = torch.cat((first.unsqueeze(0), states[: T - 1]))
        cut = reset
    else:
        found = torch.cat((states[1:], first.unsqueeze(0)))
        cut = None if reset is None else torch.cat((reset[1:], torch.zeros_like(reset[:1])))
        if lengths is not None:  # there a row begins where it ends
            ends = torch.arange(1, T + 1, device=lengths.device).unsqueeze(-1) >= lengths
            found = torch.where(ends.unsqueeze(-1), first, found)
            cut = None if cut is None else cut & ~ends
    if cut is None:
        return found
    return torch.where(cut.unsqueeze(-1), 0 if anew is None else anew, found)


def before_of(
    k: int, cells: Tensor, c0: Tensor, reverse: bool, lengths: Tensor | None, reset: Reset | None
) -> Tensor:
    """Inner state k as each step found it; ``cells`` is [T, S-1, B, H], ``c0`` [S-1, B, H]."""
    mask = None if reset is None else reset.mask
    anew = None if reset is None or reset.c is None else reset.c[k]
    return before(cells[:, k], c0[k], reverse, lengths, mask, anew)


def weight_grad(cell: Cell, d: Tensor, met: Tensor, saved: Tensor) -> Tensor:
    """DU = sum over steps of (h-gradients)^T (what met U), ``[G*H, P]``.

    ``d`` is [T, B, D, H], ``met`` [T, B, P], ``saved`` [T, B, K, H].
    """
    H, G, parts = d.shape[3], len(cell.gates), []
    rows, met = d.flatten(2).flatten(0, 1), met.flatten(0, 1)
    for gate, a, b in _runs(cell, cell.product_grad):
        second = gate >= G - cell.second
        operand = saved[:, :, cell.operand].flatten(0, 1) if second else met
        parts.append(rows[:, a * H : b * H].t() @ operand)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unit_weight_grads(
    cell: Cell,
    d: Tensor,
    met: Tensor,
    cells: Tensor,
    c0: Tensor,
    reverse: bool,
    lengths: Tensor | None,
    reset: Reset | None,
) -> list[Tensor]:
    """Of each unit's own weights ``[n, H]``: sums of a gate's gradient times a state's value.

    ``d`` is [T, B, D, H], ``met`` [T, B, H], ``cells`` [T, S-1, B, H]. Gates in a row that weigh
    the same state are one product.
    """
    wide, sums = reference.state_dtype(d.dtype), []
    for (state, after), group in groupby(cell.weights, lambda w: (w.state, w.after)):
        gates = [w.gate for w in group]
        if after:
            value = cells[:, state - 1]
        elif state:
            value = before_of(state - 1, cells, c0, reverse, lengths, reset)
        else:
            value = met
        rows = d[:, :, gates[0] : gates[-1] + 1].to(wide)  # [T, B, n, H]
        sums.append((rows * value.unsqueeze(2)).sum((0, 1)))
    return sums


def norm_grads(cell: Cell, d: Tensor, saved: Tensor, cells: Tensor) -> list[Tensor]:
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
