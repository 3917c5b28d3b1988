"""What a call of the sequence op is made of: the weights of each direction, and resets."""

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """The parameters of one direction of one layer, in torch.nn's shapes and gate order."""

    weight_ih: Tensor | None  # [G*H, I]; None: the caller brings the x-preactivations
    weight_hh: Tensor  # [G*H, P]
    bias_ih: Tensor | None = None  # [G*H], only with weight_ih
    bias_hh: Tensor | None = None  # [G*H]
    weight_hr: Tensor | None = None  # [P, H], the projection
    weight_unit: Tensor | None = None  # [V, H], what a unit weighs of its own states, and gains
    weight_ch: Tensor | None = None  # [G*H, H], of c where ``Cell.full``
    weight_ln_ih: Tensor | None = None  # [G*H], the gain of normalised x-preactivations

    def to(self, dtype: torch.dtype) -> "Weights":
        """The same in another dtype (autocast)."""
        return Weights(*(None if t is None else t.to(dtype) for t in self))

    def views(self) -> "Weights":
        """The same, as nodes of autograd that belong to the stream on which they are made."""
        return Weights(*(None if t is None else t.view_as(t) for t in self))


class Reset(NamedTuple):
    """Where rows begin anew: nothing flows between steps t - 1 and t of row b if ``mask[t, b]``.

    Forward, step t begins with the reset state, at t = 0 too; in reverse, step t - 1 does. At and
    after a row's end the mask means nothing.
    """

    mask: Tensor  # bool [T, B]
    h: Tensor | None = None  # [directions, B, P]; None: zeros
    c: Tensor | None = None  # [directions, S-1, B, H]; None if and only if h is

    def of(self, direction: int) -> "Reset":
        """Those of one direction."""
        if self.h is None:
            return self
        return Reset(self.mask, self.h[direction], self.c[direction])

    def before(self, t: int, lengths: Tensor | None, reverse: bool) -> Tensor | None:
        """The rows that begin anew at step t, ``[B, 1]``; None where nothing can."""
        boundary = t + 1 if reverse else t
        if boundary == len(self.mask):
            return None
        rows = self.mask[boundary]
        if lengths is not None:
            rows = rows & (boundary < lengths)
        return rows.unsqueeze(-1)


def of_piece(
    lengths: Tensor | None, reset: Reset | None, a: int, b: int
) -> tuple[Tensor | None, Reset | None]:
    """What steps a..b-1 have of both, as a sequence of their own."""
    if lengths is not None:
        lengths = (lengths - a).clamp(0, b - a)
    return lengths, reset and reset._replace(mask=reset.mask[a:b])
