"""Layer normalisation of whole rows: of N tiles [rows, units] together; m says what is not padding.

n = (v - mean) / sqrt(variance + eps).
"""

import triton
import triton.language as tl

from ..cells import NORM_EPS

EPS: tl.constexpr = tl.constexpr(NORM_EPS)


@triton.jit
def _mean(tiles, m, H, N: tl.constexpr):
    """Of each row: [rows, 1]."""
    total = tl.where(m, tiles[0], 0.0)
    for i in tl.static_range(1, N):
        total += tl.where(m, tiles[i], 0.0)
    return (tl.sum(total, 1) / (N * H))[:, None]


@triton.jit
def normal(tiles, m, H, N: tl.constexpr):
    """n of each tile, and 1 / sqrt(variance + eps)."""
    mean, off, square = _mean(tiles, m, H, N), (), ()
    for i in tl.static_range(N):
        off = off + (tiles[i] - mean,)
        square = square + (off[i] * off[i],)
    variance = _mean(square, m, H, N)
    inverse = 1 / tl.sqrt(variance + tl.full(variance.shape, EPS, variance.dtype))
    n = ()
    for i in tl.static_range(N):
        n = n + (off[i] * inverse,)
    return n, inverse


@triton.jit
def through_normal(dn, n, inverse, m, H, N: tl.constexpr):
    """dv of each tile: (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps)."""
    products = ()
    for i in tl.static_range(N):
        products = products + (dn[i] * n[i],)
    mean, mean_with = _mean(dn, m, H, N), _mean(products, m, H, N)
    dv = ()
    for i in tl.static_range(N):
        dv = dv + ((dn[i] - mean - n[i] * mean_with) * inverse,)
    return dv


# What twins call. own[3] is (gain, bias, m, H) where c is normalised on its way to h, else None.
@triton.jit
def normed(c, own):
    """c as h is made of it."""
    if own[3] is None:
        return c
    else:
        n, _ = normal((c,), own[3][2], own[3][3], 1)
        return n[0] * own[3][0] + own[3][1]


@triton.jit
def unnormed(d, c, own):
    """What reaches c of the gradient d of ``normed(c)``."""
    if own[3] is None:
        return d
    else:
        n, inverse = normal((c,), own[3][2], own[3][3], 1)
        return through_normal((d * own[3][0],), n, inverse, own[3][2], own[3][3], 1)[0]


@triton.jit
def of_normed(d, own):
    """The vector of gradients that there is where c is normalised."""
    if own[3] is None:
        return ()
    else:
        return (d,)
