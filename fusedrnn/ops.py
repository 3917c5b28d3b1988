"""The sequence op: schemas, fake kernels, autograd, and the choice of a backend.

One op runs one layer, of one or two directions, over a whole sequence. ``native`` is implemented
by the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the reference is plain PyTorch and
needs no op. Sizes: N directions, T steps, B batch rows, H units, P the width of h (H, or the
projection's size), G gates, S states, K saved values, D gradient vectors (fusedrnn/cells).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from . import _backend, _native, reference
from ._call import Reset, Weights
from .cells import CELLS, Cell
from .reference import state_dtype
from .triton import sequence as triton_sequence

# Lists hold one tensor for each direction; of biases and projections, all or none.
_FORWARD = (
    "(str cell, Tensor[] gx, Tensor[] weight_hh, Tensor[] bias_hh, Tensor[] weight_hr, Tensor h0,"
    " Tensor c0, Tensor? lengths, Tensor? reset, Tensor? reset_h, Tensor? reset_c, bool save)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved, Tensor cells, Tensor hidden)"
)
_BACKWARD = (
    "(str cell, Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor y, Tensor h0, Tensor c0,"
    " Tensor[] weight_hh, Tensor[] weight_hr, Tensor? lengths, Tensor? reset, Tensor? reset_h,"
    " Tensor? reset_c, Tensor saved, Tensor cells)"
    " -> (Tensor grads, Tensor dh0, Tensor dc0, Tensor dh, Tensor dreset_h, Tensor dreset_c)"
)


def _fake_forward(
    cell: str,
    gx: list[Tensor],
    weight_hh: list[Tensor],
    bias_hh: list[Tensor],
    weight_hr: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    save: bool,
) -> tuple[Tensor, ...]:
    record, x = CELLS[cell], gx[0]
    N, T, B, P = len(gx), x.shape[0], x.shape[1], weight_hh[0].shape[1]
    S, H = len(record.states), weight_hh[0].shape[0] // len(record.gates)
    new, wide = x.new_empty, state_dtype(x.dtype)
    return (
        new(T, B, N * P),
        new(N, B, P),
        new(N, S - 1, B, H),
        new((N, T, B, len(record.saved), H) if save else 0),
        new((N, T, S - 1, B, H) if save else 0, dtype=wide),
        new((N, T, B, H) if save and weight_hr else 0),
    )


def _fake_backward(
    cell: str,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    y: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: list[Tensor],
    weight_hr: list[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    saved: Tensor,
    cells: Tensor,
) -> tuple[Tensor, ...]:
    (N, B, P), T = h0.shape, y.shape[0]
    H = weight_hh[0].shape[0] // len(CELLS[cell].gates)
    return (
        y.new_empty(N, T, B, CELLS[cell].grads, H),
        torch.empty_like(h0),
        torch.empty_like(c0),
        y.new_empty((N, T, B, P) if weight_hr else 0),
        y.new_empty(0) if reset_h is None else torch.empty_like(h0),
        y.new_empty(0) if reset_c is None else torch.empty_like(c0),
    )


for _overload in ("native", "triton"):
    _native.LIBRARY.define(f"sequence_forward.{_overload}{_FORWARD}")
    _native.LIBRARY.define(f"sequence_backward.{_overload}{_BACKWARD}")
    torch.library.register_fake(f"fusedrnn::sequence_forward.{_overload}", _fake_forward)
    torch.library.register_fake(f"fusedrnn::sequence_backward.{_overload}", _fake_backward)


class Sequence(torch.autograd.Function):
    """The native and Triton ops with gradients: the loop in backward, then large products.

    The products with ``weight_ih`` are in here too: one node of autograd instead of two, and one
    sum for both biases (B=1: 0.2 ms of 1.8). Saves for backward what the forward op left; nothing
    of it is changed: backward may run twice.
    """

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
        lengths: Tensor | None,
        mask: Tensor | None,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        reset_h: Tensor | None,
        reset_c: Tensor | None,
        *flat: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the forward op of the backend, saving for backward; ``flat``: all Weights."""
        weights, reset = _unflatten(flat), (mask, reset_h, reset_c)
        y, hn, cn, *saved = _forward(cell, backend, x, weights, h0, c0, lengths, reset, True)
        met = None if weights[0].weight_ih is None else x
        ctx.save_for_backward(y, h0, c0, met, lengths, *reset, *saved, *flat)
        ctx.cell, ctx.backend = cell, backend
        ctx.set_materialize_grads(False)
        return y, hn, cn

    @staticmethod
    @once_differentiable
    def backward(
        ctx: object, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, the states and the weights: those that are needed."""
        y, h0, c0, x, lengths, *rest = ctx.saved_tensors
        reset, (saved, cells, hidden), weights = rest[:3], rest[3:6], _unflatten(rest[6:])
        resets = None if reset[0] is None else Reset(*reset)
        need_x, *need_states = ctx.needs_input_grad[4:9]
        grads, dh0, dc0, dh, *dreset = _op("backward", ctx.backend)(
            ctx.cell, dy, dhn, dcn, y, h0, c0, [w.weight_hh for w in weights],
            _present(w.weight_hr for w in weights), lengths, *reset, saved, cells,
        )  # fmt: skip
        cell, (T, B, D, H) = CELLS[ctx.cell], grads.shape[1:]
        width, P = len(cell.gates) * H, h0.shape[2]
        dx: Tensor | None = None
        flat: list[Tensor | None] = []
        needs = _unflatten(ctx.needs_input_grad[9:])
        for i, (w, need) in enumerate(zip(weights, needs, strict=True)):
            rows = grads[i].view(T * B, D * H)
            dgx = rows if D * H == width else rows[:, :width]
            if need_x and x is not None:
                dx = dgx @ w.weight_ih if dx is None else dx.addmm_(dgx, w.weight_ih)
            anew = resets and resets.of(i)
            met = _Met(y[..., i * P : (i + 1) * P], h0[i], lengths, anew, i == 1)
            new: list[Tensor | None] = [None] * len(need)
            if need.weight_ih:
                new[0] = dgx.t() @ x.flatten(0, 1)
            if need.weight_hh:
                new[1] = _weight_grad(cell, rows, met, saved[i])
            if need.bias_hh or need.bias_ih:
                new[2:4] = _bias_grads(cell, rows.sum(0), need)
            if need.weight_hr:
                new[4] = dh[i].flatten(0, 1).t() @ hidden[i].flatten(0, 1)
            flat += new
        if need_x:
            dx = grads.flatten(3)[..., :width] if x is None else dx.view(x.shape)
        states = [g if n else None for g, n in zip((dh0, dc0, *dreset), need_states, strict=True)]
        return None, None, None, None, dx, *states, *flat


def _unflatten(flat: tuple) -> tuple[Weights, ...]:
    n = len(Weights._fields)
    return tuple(Weights(*flat[i : i + n]) for i in range(0, len(flat), n))


def _present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _op(direction: str, backend: str) -> torch._ops.OpOverload:
    packet = getattr(torch.ops.fusedrnn, f"sequence_{direction}")
    return packet.triton if backend == "triton" else packet.native


def _forward(
    cell: str,
    backend: str,
    x: Tensor,
    weights: tuple[Weights, ...],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: tuple[Tensor | None, ...],
    save: bool,
) -> tuple[Tensor, ...]:
    if weights[0].weight_ih is None:
        gx = list(x.unbind(0))
    else:
        gx = [linear(x, w.weight_ih, w.bias_ih) for w in weights]  # one product for all steps
    return _op("forward", backend)(
        cell, gx, [w.weight_hh for w in weights], _present(w.bias_hh for w in weights),
        _present(w.weight_hr for w in weights), h0, c0, lengths, *reset, save,
    )  # fmt: skip


class _Met(NamedTuple):
    """What the rows of W_hh met, but for a cell's own operands."""

    y: Tensor  # [T, B, P] of one direction
    h0: Tensor  # [B, P]
    lengths: Tensor | None
    reset: Reset | None
    reverse: bool

    def parts(self) -> tuple[Tensor, Tensor]:
        """h before each row's first step ``[B, P]``, and before the others ``[(T-1)*B, P]``."""
        first, later = self.h0, self.y[1:] if self.reverse else self.y[:-1]
        if self.reset is not None:
            mask, anew, _ = self.reset
            cut, anew = mask[1:], 0 if anew is None else anew
            if self.lengths is not None:
                steps = torch.arange(1, len(mask), device=mask.device)
                cut = cut & (steps.unsqueeze(-1) < self.lengths)
            later = torch.where(cut.unsqueeze(-1), anew, later)
            if not self.reverse:
                first = torch.where(mask[0].unsqueeze(-1), anew, first)
        return first, later.flatten(0, 1)


def _weight_grad(cell: Cell, d: Tensor, met: _Met, saved: Tensor) -> Tensor:
    """DU = sum over steps of (h-gradients)^T (what met U): [G*H, P]. ``d`` is [T*B, D*H]."""
    (T, B, P), H, G = met.y.shape, saved.shape[3], len(cell.gates)
    out = met.y.new_empty(G * H, P)
    first, later = met.parts()
    for gate, a, b in _runs(cell, H):
        columns, rows = d[:, a:b], out[gate * H : gate * H + b - a]
        if gate >= G - cell.second:
            torch.mm(columns.t(), saved[:, :, cell.operand].flatten(0, 1), out=rows)
        elif met.reverse:
            torch.mm(_first_step(columns, T, B, met.lengths).t(), first, out=rows)
            rows.addmm_(columns[: T * B - B].t(), later)
        else:
            torch.mm(columns[:B].t(), first, out=rows)
            rows.addmm_(columns[B:].t(), later)
    return out


def _bias_grads(cell: Cell, total: Tensor, need: Weights) -> list[Tensor | None]:
    """Those of bias_ih and bias_hh; ``total`` ``[D*H]`` is the sum over all rows."""
    G, H = len(cell.gates), len(total) // cell.grads
    dx = total[: G * H] if need.bias_ih else None
    runs = [total[a:b] for _, a, b in _runs(cell, H)]
    return [dx, torch.cat(runs) if need.bias_hh else None]


def _runs(cell: Cell, H: int) -> list[tuple[int, int, int]]:
    """(gate, a, b): gates from that one on have their h-gradients in columns a..b: one product."""
    runs: list[tuple[int, int, int]] = []
    for gate, index in enumerate(cell.h_grad):
        if runs and gate != len(cell.gates) - cell.second and runs[-1][2] == index * H:
            runs[-1] = (*runs[-1][:2], (index + 1) * H)
        else:
            runs.append((gate, index * H, (index + 1) * H))
    return runs


def _first_step(d: Tensor, T: int, B: int, lengths: Tensor | None) -> Tensor:
    """Of a reverse sequence ``[T*B, H]``, each row at the step where it begins: ``[B, H]``."""
    if lengths is None:
        return d[len(d) - B :]
    steps = (lengths - 1).clamp(0, T - 1)  # d of an empty row is zero everywhere
    return d.index_select(0, steps * B + torch.arange(B, device=d.device))


def limits(cell: str, dtype: torch.dtype, projection: bool) -> dict[str, str | None]:
    """For each backend, why it cannot serve the sequence op on such a problem, or None."""
    reason = None
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        reason = f"dtype is {dtype}; the kernels take float64, float32, bfloat16 and float16"
    triton = triton_sequence.limit(cell, dtype, projection)
    return {"cpu": reason, "cuda": reason, "triton": triton}


def sequence(
    cell: Cell,
    x: Tensor,
    weights: tuple[Weights, ...],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None = None,
    reset: Reset | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer over a whole sequence.

    Args:
        cell: a record of the registry, ``fusedrnn.cells.CELLS``.
        x: ``[T, B, I]``, the input of all steps, T >= 1; or, where the weights have no
            ``weight_ih``, the x-preactivations ``W_ih x + b_ih`` themselves, ``[N, T, B, G*H]``.
        weights: of N = 1 or 2 directions; the second runs from the last step to the first, each
            row from its own end. All or none of them have each bias, ``weight_ih``, ``weight_hr``.
        h0: ``[N, B, P]``.
        c0: ``[N, S-1, B, H]``, the other states; empty for a cell that has only h.
        lengths: int64 ``[B]``; row b takes part in steps t < lengths[b], keeps its state after, and
            its y is zero there. None: all rows are T long.
        reset: where rows begin anew within the sequence, and with which states.

    All floating-point tensors have one dtype, float64, float32, bfloat16 or float16; 16-bit ones
    have float32 state and accumulation.

    Returns:
        y ``[T, B, N*P]``, hn ``[N, B, P]``, cn ``[N, S-1, B, H]``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the backend asked for cannot serve.
    """
    projected = weights[0].weight_hr is not None
    backend, _ = _backend.choose(x.device.type, limits(cell.name, x.dtype, projected))
    if backend == "reference":
        return reference.sequence(cell, x, weights, h0, c0, lengths, reset)
    mask, *anew = (None, None, None) if reset is None else reset
    flat = [t for w in weights for t in w]
    if torch.is_grad_enabled():
        given = (x, h0, c0, *anew, *flat)
        if any(t is not None and t.requires_grad for t in given):
            return Sequence.apply(cell.name, backend, lengths, mask, x, h0, c0, *anew, *flat)
    return _forward(
        cell.name, backend, x, weights, h0, c0, lengths, (mask, *anew), False
    )[:3]  # fmt: skip
