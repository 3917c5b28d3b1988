"""The sequence op: schemas, fake kernels, and the choice of a backend.

One op runs one layer, of one or two directions, over a whole sequence. ``native`` is implemented
by the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the reference is plain PyTorch and
needs no op. Sizes: N directions, T steps, B batch rows, H units, P the width of h (H, or the
projection's size), G gates, S states, K saved values, D gradient vectors (fusedrnn/cells).
"""

from collections.abc import Iterable
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from . import _autograd, _backend, _native, reference
from ._call import Reset, Weights
from .cells import CELLS, Cell
from .reference import state_dtype
from .triton import sequence as triton_sequence

# Lists hold one tensor for each direction; of biases and projections, all or none.
_FORWARD = (
    "(str cell, Tensor[] gx, Tensor[] weight_hh, Tensor[] bias_hh, Tensor[] weight_hr,"
    " Tensor[] weight_unit, Tensor? seed, Tensor h0, Tensor c0, Tensor? lengths, Tensor? reset,"
    " Tensor? reset_h, Tensor? reset_c, bool save, int at_once=1)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved, Tensor cells, Tensor hidden)"
)
_BACKWARD = (
    "(str cell, Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor y, Tensor h0, Tensor c0,"
    " Tensor[] weight_hh, Tensor[] weight_hr, Tensor[] weight_unit, Tensor? seed, Tensor? lengths,"
    " Tensor? reset, Tensor? reset_h, Tensor? reset_c, Tensor saved, Tensor cells, int at_once=1)"
    " -> (Tensor grads, Tensor dh0, Tensor dc0, Tensor dh, Tensor dreset_h, Tensor dreset_c,"
    " Tensor dweight_unit)"
)


def _fake_forward(
    cell: str,
    gx: list[Tensor],
    weight_hh: list[Tensor],
    bias_hh: list[Tensor],
    weight_hr: list[Tensor],
    weight_unit: list[Tensor],
    seed: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    save: bool,
    at_once: int = 1,
) -> tuple[Tensor, ...]:
    record, x = CELLS[cell], gx[0]
    N, T, B, P = len(gx), x.shape[0], x.shape[1], h0.shape[2]
    S, H = len(record.states), weight_hh[0].shape[0] // len(record.gates)
    new, wide = x.new_empty, state_dtype(x.dtype)
    return (
        new(T, B, N * P),
        new(N, B, P),
        new(N, S - 1, B, H),
        new((N, T, B, record.kept, H) if save else 0),
        new((N, T, S - 1, B, H) if save else 0, dtype=wide),
        new((N, T, B, H) if save and weight_hr else 0),
    )


def _fake_backward(
    overload: str,
    cell: str,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    y: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: list[Tensor],
    weight_hr: list[Tensor],
    weight_unit: list[Tensor],
    seed: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    saved: Tensor,
    cells: Tensor,
    at_once: int = 1,
) -> tuple[Tensor, ...]:
    (N, B, P), T = h0.shape, y.shape[0]
    H = weight_hh[0].shape[0] // len(CELLS[cell].gates)
    by_loop = overload == "native" and y.device.type == "cpu"
    return (
        y.new_empty(N, T, B, CELLS[cell].grads, H),
        torch.empty_like(h0),
        torch.empty_like(c0),
        y.new_empty((N, T, B, P) if weight_hr else 0),
        y.new_empty(0) if reset_h is None else torch.empty_like(h0),
        y.new_empty(0) if reset_c is None else torch.empty_like(c0),
        y.new_empty((N, *weight_unit[0].shape) if weight_unit and by_loop else 0),
    )


for _overload in ("native", "triton"):
    _native.LIBRARY.define(f"sequence_forward.{_overload}{_FORWARD}")
    _native.LIBRARY.define(f"sequence_backward.{_overload}{_BACKWARD}")
    torch.library.register_fake(f"fusedrnn::sequence_forward.{_overload}", _fake_forward)
    _fake = partial(_fake_backward, _overload)
    torch.library.register_fake(f"fusedrnn::sequence_backward.{_overload}", _fake)


_native.LIBRARY.define(
    "sequence_step(str cell, Tensor x, Tensor h, Tensor? c, Tensor weight_ih, Tensor weight_hh,"
    " Tensor? bias_ih, Tensor? bias_hh) -> (Tensor hn, Tensor cn)"
)


@torch.library.register_fake("fusedrnn::sequence_step")
def _fake_step(
    cell: str, x: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(0 if c is None else h.shape)


def limits(cell: str, dtype: torch.dtype, projection: bool) -> dict[str, str | None]:
    """For each backend, why it cannot serve the sequence op on such a problem, or None."""
    reason, record = None, CELLS[cell]
    if not record.native:
        reason = (
            f"cell {cell.partition(':')[0]!r} was registered at run time: no native kernel has it"
        )
    elif dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
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
    trace: bool = False,
    recompute: bool = False,
    seed: Tensor | None = None,
    at_once: int = 1,
) -> tuple[Tensor, ...]:
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
        trace: also return what the cell saves for backward, and its other states, of all steps.
        recompute: keep for backward only the arguments and y, and run the op again then: the same
            bits for the time of one more forward. (The reference keeps everything.)
        seed: int64 ``[N, 2]``, from which a cell with zoneout or dropout draws (``random.seeds``);
            None: it takes the means.
        at_once: how many calls like this one run side by side on a GPU: one of 1..255, for which a
            kernel with W_hh on chip is to leave room.

    All floating-point tensors have one dtype, float64, float32, bfloat16 or float16; 16-bit ones
    have float32 state and accumulation.

    Returns:
        y ``[T, B, N*P]``, hn ``[N, B, P]``, cn ``[N, S-1, B, H]``; with ``trace`` also saved
        ``[N, T, B, K, H]`` and cells ``[N, T, S-1, B, H]``, which are zero beyond a row's end and
        take no part in backward.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the backend asked for cannot serve.
    """
    projected = weights[0].weight_hr is not None
    backend, _ = _backend.choose(x.device.type, limits(cell.name, x.dtype, projected))
    if backend == "reference":
        return reference.sequence(cell, x, weights, h0, c0, lengths, reset, trace, seed)
    mask, *anew = (None, None, None) if reset is None else reset
    states = (x, h0, c0, *anew)
    if _recorded(leaves := (*states, *chain.from_iterable(weights))):
        outputs = _autograd.Sequence.apply(
            cell.name, backend, at_once, trace, recompute, seed, lengths, mask, *leaves
        )
    else:
        call = (cell.name, backend, at_once, seed, lengths, mask, states, weights)
        outputs = _autograd.forward(*call, save=trace)
    if not trace:
        return outputs[:3]
    if lengths is not None and backend != "cpu":  # GPU kernels go on writing the state
        rows, (*results, saved, inner) = _autograd.alive(lengths, x.shape[-3]), outputs[:5]
        saved = torch.where(rows.unsqueeze(-1), saved, 0)
        return *results, saved, torch.where(rows.unsqueeze(1), inner, 0)
    return outputs[:5]


def step(
    cell: Cell, x: Tensor, states: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, ...] | None:
    """One step without gradients on the CPU; None: elsewhere it is a sequence of length one.

    Args:
        cell: a record of the registry, of one or two states.
        x: ``[B, I]``.
        states: ``[B, H]`` each.
        weights: weight_ih, weight_hh and the biases; no others.

    Returns:
        The new states, with the bits that ``sequence`` gives them.

    Raises:
        RuntimeError: as ``sequence``.
    """
    if _recorded((x, *states, *weights)):
        return None
    if _backend.choose(x.device.type, limits(cell.name, x.dtype, False))[0] != "cpu":
        return None
    h, *c = states
    h, c = torch.ops.fusedrnn.sequence_step(cell.name, x, h, c[0] if c else None, *weights[:4])
    return (h,) if len(states) == 1 else (h, c)


def _recorded(leaves: Iterable[Tensor | None]) -> bool:
    """Whether autograd wants gradients of any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
