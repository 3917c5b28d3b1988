"""The Triton backend of the sequence op: arguments checked, kernels launched, ops registered.

Importing this registers the ops' implementations; triton itself is imported by the first call.
"""

import torch
from torch import Tensor

from .. import _native
from ..reference import state_dtype
from . import _launch
from ._call import Spans, complete, of, on, problem
from .plan import limit as limit  # what ops.py asks


def sequence_forward(
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
    """``fusedrnn::sequence_forward.triton``; the tensors are those of csrc/sequence.h.

    Its programs wait for no others, so that any number runs ``at_once``.
    """
    if len(gx) not in (1, 2):
        raise RuntimeError(f"fusedrnn: a layer has one direction or two, got {len(gx)} of gx")
    p = problem(cell, "gx", gx[0], len(gx), weight_hh, weight_hr, weight_unit)
    N, T, B, H, P = p.N, p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), p.cell.kept
    if bias_hh:
        complete("bias_hh", bias_hh, N)
    gx = p.checked("gx", gx, T, B, G * H)
    weight_hh = p.checked("weight_hh", weight_hh, G * H, p.cell.depth(P, H))
    bias_hh = p.checked("bias_hh", bias_hh, G * H)
    weight_hr = p.checked("weight_hr", weight_hr, P, H)
    weight_unit = p.checked("weight_unit", weight_unit, p.cell.rows_of_units, H)
    seed = p.seeds(seed)
    h0, c0 = p.checked("h0", h0, N, B, P), p.checked("c0", c0, N, S - 1, B, H)
    spans = Spans(lengths, reset, reset_h, reset_c).checked(p)
    new, wide = h0.new_empty, state_dtype(h0.dtype)
    y, hn, cn = new(T, B, N * P), torch.empty_like(h0), torch.empty_like(c0)
    saved = new((N, T, B, K, H) if save else 0)
    cells = new((N, T, S - 1, B, H) if save else 0, dtype=wide)
    hidden = new((N, T, B, H) if save and weight_hr else 0)
    if T == 0:
        hn.copy_(h0)
        cn.copy_(c0)
    elif B * H > 0:
        lists = (gx, weight_hh, bias_hh, weight_hr, weight_unit, seed, h0, c0)
        layer = [
            _launch.Forward(
                *(of(t, d) for t in lists), y[..., d * P :], hn[d], cn[d],
                *(of(t, d) for t in (saved, cells, hidden)),
            )
            for d in range(N)
        ]  # fmt: skip
        run = _launch.forward_whole if p.plan.whole else _launch.forward_steps
        with on(h0.device):
            run(p, layer, spans)
    return y, hn, cn, saved, cells, hidden


def sequence_backward(
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
    """``fusedrnn::sequence_backward.triton``; the tensors are those of csrc/sequence.h."""
    if len(h0) not in (1, 2):
        raise RuntimeError(f"fusedrnn: a layer has one direction or two, got {len(h0)} of h0")
    p = problem(cell, "y", y, len(h0), weight_hh, weight_hr, weight_unit)
    N, T, B, H, P = p.N, p.T, p.B, p.H, p.P
    G, S, K = len(p.cell.gates), len(p.cell.states), p.cell.kept
    wide = state_dtype(y.dtype)
    y, dy = p.checked("y", y, T, B, N * P), p.checked("dy", dy, T, B, N * P)
    h0, dhn = p.checked("h0", h0, N, B, P), p.checked("dhn", dhn, N, B, P)
    c0, dcn = p.checked("c0", c0, N, S - 1, B, H), p.checked("dcn", dcn, N, S - 1, B, H)
    weight_hh = p.checked("weight_hh", weight_hh, G * H, p.cell.depth(P, H))
    weight_hr = p.checked("weight_hr", weight_hr, P, H)
    weight_unit = p.checked("weight_unit", weight_unit, p.cell.rows_of_units, H)
    seed = p.seeds(seed)
    spans = Spans(lengths, reset, reset_h, reset_c).checked(p)
    saved = p.checked("saved", saved, N, T, B, K, H)
    cells = p.checked("cells", cells, N, T, S - 1, B, H, dtype=wide)
    carry_h = torch.zeros_like(h0, dtype=wide) if dhn is None else dhn.to(wide, copy=True)
    carry_c = torch.zeros_like(c0, dtype=wide) if dcn is None else dcn.to(wide, copy=True)
    grads = y.new_empty(N, T, B, p.cell.grads, H)
    dh = y.new_empty((N, T, B, P) if weight_hr else 0)
    given = reset_h is not None
    dreset = [y.new_zeros(t.shape if given else 0, dtype=wide) for t in (h0, c0)]
    if T * B * H > 0:
        lists = (
            weight_hh, weight_hr, weight_unit, seed, h0, c0, saved, cells, grads, dh, carry_h,
            carry_c, *dreset,
        )  # fmt: skip
        layer = [
            _launch.Backward(
                *(of(t, d) for t in lists),
                *(None if t is None else t[..., d * P :] for t in (y, dy)),
            )
            for d in range(N)
        ]
        run = _launch.backward_whole if p.plan.whole else _launch.backward_steps
        with on(y.device):
            run(p, layer, spans)
    states = (t.to(y.dtype) for t in (carry_h, carry_c))
    return grads, *states, dh, *(t.to(y.dtype) for t in dreset), y.new_empty(0)


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("sequence_forward.triton", sequence_forward, _key)
    _native.LIBRARY.impl("sequence_backward.triton", sequence_backward, _key)
