"""The sequence op in plain PyTorch: the oracle of the tests and the backend of last resort.

Differentiable to any order by autograd; everything else in the package must agree with it.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cells import Cell


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and accumulation: float32 for 16-bit data, else that of the data."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def sequence(
    cell: Cell,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer over a whole sequence. See ``ops.sequence`` for the arguments."""
    with torch.autocast(gx.device.type, enabled=False):  # dtypes are the caller's choice
        return _sequence(cell, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, reverse)


def _sequence(
    cell: Cell,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, wide = gx.dtype, state_dtype(gx.dtype)
    T, B = gx.shape[:2]
    gates = len(cell.gates)
    W = weight_hh.to(wide).unflatten(0, (gates, -1))  # [G, H, P]
    bias = None if bias_hh is None else bias_hh.to(wide).unflatten(0, (gates, -1))  # [G, H]

    def recur(v: Tensor, first: int = 0, last: int = gates) -> tuple[Tensor, ...]:
        v = v.to(dtype).to(wide)  # what meets the weights is rounded to the data's dtype
        b = None if bias is None else bias[first:last].flatten()
        return linear(v, W[first:last].flatten(0, 1), b).chunk(last - first, -1)

    states = (h0.to(wide), *c0.to(wide).unbind(0))
    y: list[Tensor] = [h0] * T
    for t in reversed(range(T)) if reverse else range(T):
        x = gx[t].to(wide).chunk(gates, -1)
        new = cell.reference(x, states, recur)
        if weight_hr is not None:
            new = (linear(new[0].to(dtype).to(wide), weight_hr.to(wide)), *new[1:])
        out = new[0]
        if lengths is not None:
            alive = (t < lengths).unsqueeze(-1)  # [B, 1]
            out = torch.where(alive, out, 0)
            new = tuple(torch.where(alive, n, s) for n, s in zip(new, states, strict=True))
        states = new
        y[t] = out.to(dtype)
    inner = torch.stack(states[1:]) if len(states) > 1 else c0.to(wide)
    return torch.stack(y), states[0].to(dtype), inner.to(dtype)
