"""The sequence op: schemas, fake kernels, autograd, and the choice of a backend.

One op runs one direction of one recurrent layer over a whole sequence. ``native`` is implemented by
the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the reference is plain PyTorch and needs
no op. Sizes: T steps, B batch rows, H units, P the width of h (H, or the projection's size),
G gates, S states, K saved values, D gradient vectors (fusedrnn/cells).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _backend, _native, reference
from .cells import CELLS, Cell
from .reference import state_dtype

_FORWARD = (
    "(str cell, Tensor gx, Tensor weight_hh, Tensor? bias_hh, Tensor? weight_hr, Tensor h0, Tensor c0,"
    " Tensor? lengths, bool reverse, bool save)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved, Tensor cells, Tensor hidden)"
)
_BACKWARD = (
    "(str cell, Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor y, Tensor h0, Tensor c0,"
    " Tensor weight_hh, Tensor? weight_hr, Tensor? lengths, bool reverse, Tensor saved, Tensor cells)"
    " -> (Tensor grads, Tensor dh0, Tensor dc0, Tensor dh)"
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
