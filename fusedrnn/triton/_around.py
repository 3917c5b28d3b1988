"""What is around every cell's maths: zoneout of h (cell_forward and cell_backward of csrc/cell.h).

Twins of cells registered at run time (OWN is False) know nothing of what a unit has of its own.
"""

import triton
import triton.language as tl

from ._maths import blended


@triton.jit
def cell_forward(x, u, s, kept, own, keep_h, forward: tl.constexpr, OWN: tl.constexpr):
    """The states after a step, and what is saved. ``kept``: see ``operand``; else None."""
    if kept is not None:
        out, kept = forward(x, u, s, kept, own)
    elif OWN:
        out, kept = forward(x, u, s, own)
    else:
        out, kept = forward(x, u, s)
    return (blended(keep_h, out[0], s[0]),) + out[1:], kept


@triton.jit
def cell_backward(kept, s, out, dout, own, keep_h, backward: tl.constexpr, OWN: tl.constexpr):
    """The gradients of the gates, and of the states before the step."""
    dh = dout[0]
    if keep_h is not None:
        dout = (keep_h * dh,) + dout[1:]
    if OWN:
        d, ds = backward(kept, s, out, dout, own)
    else:
        d, ds = backward(kept, s, out, dout)
    if keep_h is not None:
        ds = (ds[0] + (1 - keep_h) * dh,) + ds[1:]
    return d, ds
