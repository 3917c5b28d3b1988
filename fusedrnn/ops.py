"""The sequence op: schemas, fake kernels, autograd, and the choice of a backend.

One op runs one direction of one recurrent layer over a whole sequence. ``native`` is implemented
by the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the reference is plain PyTorch and
needs no op. Sizes: T steps, B batch rows, H units, P the width of h (H, or the projection's size),
G gates, S states, K saved values, D gradient vectors (fusedrnn/cells).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

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

    The product with ``weight_ih`` is in here too: one node of autograd instead of two, and one sum
    for both biases (B=1: 0.2 ms of 1.8). Saves for backward what the forward op left; nothing of it
    is changed: backward may run twice.
    """

    @staticmethod
    def forward(
        ctx: object,
        cell: str,
        backend: str,
        x: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        lengths: Tensor | None,
        reverse: bool,
        weight_ih: Tensor | None,
        bias_ih: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the forward op of the backend, saving for backward."""
        gx = x if weight_ih is None else linear(x, weight_ih, bias_ih)
        y, hn, cn, *saved = _op("forward", backend)(
            cell, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, reverse, True
        )
        met = None if weight_ih is None else x
        ctx.save_for_backward(y, h0, c0, weight_hh, weight_hr, lengths, met, weight_ih, *saved)
        ctx.cell, ctx.backend, ctx.reverse = cell, backend, reverse
        ctx.set_materialize_grads(False)
        return y, hn, cn

    @staticmethod
    @once_differentiable
    def backward(
        ctx: object, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, the weights, the biases, h0 and c0: those that are needed."""
        y, h0, c0, weight_hh, weight_hr, lengths, x, weight_ih, *kept = ctx.saved_tensors
        saved, cells, hidden = kept
        cell, needs = CELLS[ctx.cell], dict(zip(_GRADS, ctx.needs_input_grad[2:], strict=True))
        grads, dh0, dc0, dh = _op("backward", ctx.backend)(
            ctx.cell, dy, dhn, dcn, y, h0, c0, weight_hh, weight_hr, lengths, ctx.reverse,
            saved, cells,
        )  # fmt: skip
        T, B, D, H = grads.shape
        rows, G = grads.view(T * B, D * H), len(cell.gates)
        dgx = rows if D == G else rows[:, : G * H]
        d = {"h0": dh0, "c0": dc0}
        if weight_ih is None:
            d["x"] = dgx.view(T, B, G * H) if needs["x"] else None
        else:
            d["x"] = (dgx @ weight_ih).view(x.shape) if needs["x"] else None
            d["weight_ih"] = dgx.t() @ x.flatten(0, 1) if needs["weight_ih"] else None
        if needs["weight_hh"]:
            d["weight_hh"] = _weight_grad(cell, rows, y, h0, lengths, ctx.reverse, saved)
        if needs["weight_hr"]:
            d["weight_hr"] = dh.flatten(0, 1).t() @ hidden.flatten(0, 1)
        if needs["bias_hh"] or needs["bias_ih"]:
            total = rows.sum(0)
            d["bias_ih"] = total[: G * H]
            d["bias_hh"] = torch.cat([total[a:b] for _, a, b in _runs(cell, H)])
        return None, None, *(d[name] if needs[name] else None for name in _GRADS)


# The arguments of Sequence.forward from x on.
_GRADS = ("x", "weight_hh", "bias_hh", "weight_hr", "h0", "c0", "lengths", "reverse",
          "weight_ih", "bias_ih")  # fmt: skip


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
    """DU = sum over steps of (h-gradients)^T (what met U): [G*H, P]. ``grads`` is [T*B, D*H]."""
    T, B, P = y.shape
    H, G = saved.shape[3], len(cell.gates)
    out, h = y.new_empty(G * H, P), y.view(T * B, P)
    for first, a, b in _runs(cell, H):
        d, rows = grads[:, a:b], out[first * H : first * H + b - a]
        if first >= G - cell.second:
            torch.mm(d.t(), saved[:, :, cell.operand].flatten(0, 1), out=rows)
            continue
        # h of the step before: y shifted by one, and h0 where a row begins.
        if reverse:
            begin, later, before = _first_step(d, T, B, lengths), d[: T * B - B], h[B:]
        else:
            begin, later, before = d[:B], d[B:], h[: T * B - B]
        torch.mm(begin.t(), h0, out=rows)
        rows.addmm_(later.t(), before)
    return out


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
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction of one recurrent layer over a whole sequence.

    Args:
        cell: a record of the registry, ``fusedrnn.cells.CELLS``.
        x: ``[T, B, I]``, the input of all steps, T >= 1; or, without ``weight_ih``, the
            x-preactivations ``W_ih x + b_ih`` themselves, ``[T, B, G*H]``.
        weight_hh: ``[G*H, P]``, in torch.nn's gate order.
        bias_hh: ``[G*H]`` or None.
        weight_hr: ``[P, H]``, the projection, or None.
        h0: ``[B, P]``.
        c0: ``[S-1, B, H]``, the other states; empty for a cell that has only h.
        lengths: int64 ``[B]``; row b takes part in steps t < lengths[b], keeps its state after, and
            its y is zero there. None: all rows are T long.
        reverse: from the last step to the first; each row begins at its own end.
        weight_ih: ``[G*H, I]`` or None.
        bias_ih: ``[G*H]`` or None; only with ``weight_ih``.

    All floating-point tensors have one dtype, float64, float32, bfloat16 or float16; 16-bit ones
    have float32 state and accumulation.

    Returns:
        y ``[T, B, P]``, hn ``[B, P]``, cn ``[S-1, B, H]``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the backend asked for cannot serve.
    """
    backend, _ = _backend.choose(x.device.type, limits(cell.name, x.dtype, weight_hr is not None))
    tensors = (weight_hh, bias_hh, weight_hr, h0, c0)
    given = (x, weight_ih, bias_ih, *tensors)
    if backend != "reference" and torch.is_grad_enabled():
        if any(t is not None and t.requires_grad for t in given):
            return Sequence.apply(
                cell.name, backend, x, *tensors, lengths, reverse, weight_ih, bias_ih
            )
    gx = x if weight_ih is None else linear(x, weight_ih, bias_ih)  # one product for all steps
    if backend == "reference":
        return reference.sequence(cell, gx, *tensors, lengths, reverse)
    return _op("forward", backend)(cell.name, gx, *tensors, lengths, reverse, False)[:3]
