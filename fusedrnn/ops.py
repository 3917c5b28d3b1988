"""The sequence op: schemas, fake kernels, autograd, and the choice of a backend.

One op runs one direction of one recurrent layer over a whole sequence. ``native`` is implemented
by the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the reference is plain PyTorch and
needs no op. Sizes: T steps, B batch rows, H units, P the width of h (H, or the projection's size),
G gates, S states, K saved values, D gradient vectors (fusedrnn/cells).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _backend, _native, reference
from .cells import CELLS, Cell
from .reference import state_dtype
from .triton import sequence as triton_sequence

_FORWARD = (
    "(str cell, Tensor gx, Tensor weight_hh, Tensor? bias_hh, Tensor? weight_hr, Tensor h0,"
    " Tensor c0, Tensor? lengths, bool reverse, bool save)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved, Tensor cells, Tensor hidden)"
)
_BACKWARD = (
    "(str cell, Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor y, Tensor h0, Tensor c0,"
    " Tensor weight_hh, Tensor? weight_hr, Tensor? lengths, bool reverse, Tensor saved,"
    " Tensor cells) -> (Tensor grads, Tensor dh0, Tensor dc0, Tensor dh)"
)


def _fake_forward(
    cell: str,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    record = CELLS[cell]
    T, B, P = gx.shape[0], gx.shape[1], weight_hh.shape[1]
    S, H = len(record.states), weight_hh.shape[0] // len(record.gates)
    new, wide = gx.new_empty, state_dtype(gx.dtype)
    return (
        new(T, B, P),
        new(B, P),
        new(S - 1, B, H),
        new((T, B, len(record.saved), H) if save else 0),
        new((T, S - 1, B, H) if save else 0, dtype=wide),
        new((T, B, H) if save and weight_hr is not None else 0),
    )


def _fake_backward(
    cell: str,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    y: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    saved: Tensor,
    cells: Tensor,
) -> tuple[Tensor, ...]:
    T, B, P = y.shape
    H = weight_hh.shape[0] // len(CELLS[cell].gates)
    return (
        y.new_empty(T, B, CELLS[cell].grads, H),
        torch.empty_like(h0),
        torch.empty_like(c0),
        y.new_empty(0 if weight_hr is None else (T, B, P)),
    )


for _overload in ("native", "triton"):
    _native.LIBRARY.define(f"sequence_forward.{_overload}{_FORWARD}")
    _native.LIBRARY.define(f"sequence_backward.{_overload}{_BACKWARD}")
    torch.library.register_fake(f"fusedrnn::sequence_forward.{_overload}", _fake_forward)
    torch.library.register_fake(f"fusedrnn::sequence_backward.{_overload}", _fake_backward)


class Sequence(torch.autograd.Function):
    """The native and Triton ops with gradients: the loop in backward, then large products.

    Saves for backward what the forward op left; nothing of it is changed: backward may run twice.
    """

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
        gx: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        lengths: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the forward op of the backend, saving for backward."""
        y, hn, cn, *saved = _op("forward", backend)(
            cell, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, reverse, True
        )
        ctx.save_for_backward(y, h0, c0, weight_hh, weight_hr, lengths, *saved)
        ctx.cell, ctx.backend, ctx.reverse = cell, backend, reverse
        ctx.set_materialize_grads(False)
        return y, hn, cn

    @staticmethod
    @once_differentiable
    def backward(
        ctx: object, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of gx, weight_hh, bias_hh, weight_hr, h0 and c0: those that are needed."""
        y, h0, c0, weight_hh, weight_hr, lengths, saved, cells, hidden = ctx.saved_tensors
        cell, needs = CELLS[ctx.cell], ctx.needs_input_grad
        grads, dh0, dc0, dh = _op("backward", ctx.backend)(
            ctx.cell,
            dy,
            dhn,
            dcn,
            y,
            h0,
            c0,
            weight_hh,
            weight_hr,
            lengths,
            ctx.reverse,
            saved,
            cells,
        )
        gates = len(cell.gates)
        return (
            None,
            None,
            grads[:, :, :gates].flatten(2) if needs[2] else None,
            _weight_grad(cell, grads, y, h0, lengths, ctx.reverse, saved) if needs[3] else None,
            _bias_grad(cell, grads) if needs[4] else None,
            dh.flatten(0, 1).t() @ hidden.flatten(0, 1) if needs[5] else None,
            dh0 if needs[6] else None,
            dc0 if needs[7] else None,
            None,
            None,
        )


def _op(direction: str, backend: str) -> torch._ops.OpOverload:
    packet = getattr(torch.ops.fusedrnn, f"sequence_{direction}")
    return packet.triton if backend == "triton" else packet.native


def _weight_grad(
    cell: Cell,
    grads: Tensor,
    y: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    saved: Tensor,
) -> Tensor:
    """DU = sum over steps of (h-gradients)^T (what met U): [G*H, P]."""
    rows = []
    for first, last, index in _runs(cell):
        d = grads[:, :, index : index + last - first].flatten(2)  # [T, B, gates*H]
        if first >= len(cell.gates) - cell.second:
            rows.append(d.flatten(0, 1).t() @ saved[:, :, cell.operand].flatten(0, 1))
            continue
        # h of the step before: y shifted by one, and h0 where a row begins.
        later, before = (d[:-1], y[1:]) if reverse else (d[1:], y[:-1])
        begin = _first_step(d, lengths) if reverse else d[0]
        dU = begin.t() @ h0
        rows.append(torch.addmm(dU, later.flatten(0, 1).t(), before.flatten(0, 1)))
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _runs(cell: Cell) -> list[tuple[int, int, int]]:
    """Gates first..last-1 whose h-gradients lie side by side, from vector index on: one product."""
    runs: list[tuple[int, int, int]] = []
    for gate, index in enumerate(cell.h_grad):
        if runs and gate != len(cell.gates) - cell.second:
            first, last, start = runs[-1]
            if index == start + last - first:
                runs[-1] = (first, gate + 1, start)
                continue
        runs.append((gate, gate + 1, index))
    return runs


def _first_step(d: Tensor, lengths: Tensor | None) -> Tensor:
    """Of a reverse sequence ``[T, B, H]``, each row at the step where it begins: ``[B, H]``."""
    if lengths is None:
        return d[-1]
    steps = (lengths - 1).clamp(0, d.shape[0] - 1)  # d of an empty row is zero everywhere
    return d.gather(0, steps.view(1, -1, 1).expand(1, -1, d.shape[2]))[0]


def _bias_grad(cell: Cell, grads: Tensor) -> Tensor:
    """Db = sum over steps and rows of the h-gradients: [G*H]."""
    total = grads.flatten(0, 1).sum(0)  # [D, H]
    return total[list(cell.h_grad)].flatten()


def limits(cell: str, dtype: torch.dtype, projection: bool) -> dict[str, str | None]:
    """For each backend, why it cannot serve the sequence op on such a problem, or None."""
    reason = None
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        reason = f"dtype is {dtype}; the kernels take float64, float32, bfloat16 and float16"
    triton = triton_sequence.limit(cell, dtype, projection)
    return {"cpu": reason, "cuda": reason, "triton": triton}


def sequence(
    cell: Cell,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction of one recurrent layer over a whole sequence.

    Args:
        cell: a record of the registry, ``fusedrnn.cells.CELLS``.
        gx: ``[T, B, G*H]``, the x-preactivations ``W_ih x + b_ih`` of all steps, T >= 1.
        weight_hh: ``[G*H, P]``, in torch.nn's gate order.
        bias_hh: ``[G*H]`` or None.
        weight_hr: ``[P, H]``, the projection, or None.
        h0: ``[B, P]``.
        c0: ``[S-1, B, H]``, the other states; empty for a cell that has only h.
        lengths: int64 ``[B]``; row b takes part in steps t < lengths[b], keeps its state after, and
            its y is zero there. None: all rows are T long.
        reverse: from the last step to the first; each row begins at its own end.

    All floating-point tensors have one dtype, float64, float32, bfloat16 or float16; 16-bit ones
    have float32 state and accumulation.

    Returns:
        y ``[T, B, P]``, hn ``[B, P]``, cn ``[S-1, B, H]``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the backend asked for cannot serve.
    """
    backend, _ = _backend.choose(gx.device.type, limits(cell.name, gx.dtype, weight_hr is not None))
    tensors = (gx, weight_hh, bias_hh, weight_hr, h0, c0)
    if backend == "reference":
        return reference.sequence(cell, *tensors, lengths, reverse)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return Sequence.apply(cell.name, backend, *tensors, lengths, reverse)
    return _op("forward", backend)(cell.name, *tensors, lengths, reverse, False)[:3]
