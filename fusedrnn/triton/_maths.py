"""What the cells' twins are written in. Float32 and float64, on any of Triton's devices."""

import triton
import triton.language as tl

from ._norm import normed as normed
from ._norm import of_normed as of_normed
from ._norm import unnormed as unnormed


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """(1 - exp(-2|x|)) / (1 + exp(-2|x|)); near 0, where that cancels, a continued fraction.

    Lambert's tanh x = x / (1 + x^2 / (3 + x^2 / (5 + ...))), cut after its eighth level, is off by
    2e-19 of the value at |x| = 1/2. Triton itself has tanh in vendor libraries only, and the
    interpreter has none of these.
    """
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    q = x * x
    top = ((36 * q + 6930) * q + 270270) * q + 2027025
    bottom = (((q + 630) * q + 51975) * q + 945945) * q + 2027025
    return tl.where(tl.abs(x) < 0.5, x * top / bottom, tl.where(x < 0, -far, far))


@triton.jit
def relu(x):
    """max(x, 0); NaN stays NaN, as in torch.relu."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def exp(x):
    """e to the x."""
    return tl.exp(x)


@triton.jit
def log_sigmoid(x):
    """log(sigmoid(x)), finite for every finite x."""
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def identity(x):
    """x."""
    return x


@triton.jit
def bounded(x, limit: tl.constexpr):
    """x, but no further from 0 than limit (0: no limit); NaN stays NaN."""
    if limit > 0:
        top = tl.full(x.shape, limit, x.dtype)  # a constant alone would be rounded to float32
        return tl.where(x > top, top, tl.where(x < -top, -top, x))
    else:
        return x


# Slopes, in terms of the function's value y.
@triton.jit
def tanh_slope(y):
    """1 - y^2."""
    return 1 - y * y


@triton.jit
def sigmoid_slope(y):
    """y (1 - y)."""
    return y * (1 - y)


@triton.jit
def relu_slope(y):
    """1 where y > 0, else 0."""
    return 1.0 * (y > 0)


@triton.jit
def identity_slope(y):
    """1."""
    return 1.0


@triton.jit
def bounded_slope(y, limit: tl.constexpr):
    """1 within the limit, else 0."""
    if limit > 0:
        top = tl.full(y.shape, limit, y.dtype)
        return 1.0 * ((y < top) & (y > -top))
    else:
        return 1.0


# What a unit has of its own in a step (PerUnit of csrc/cell.h): own is (weights, drop, keep_c,
# norm), each None where the call has none.
@triton.jit
def peeped(a, own, k: tl.constexpr, state):
    """a, and weight k of the unit times a state."""
    if own[0] is None:
        return a
    else:
        return a + own[0][k] * state


@triton.jit
def dropped(new, own):
    """What of ``new`` reaches the state."""
    if own[1] is None:
        return new
    else:
        return own[1] * new


@triton.jit
def blended(share, new, old):
    """Zoneout: new in the given share, and old in the rest; new alone where there is none."""
    if share is None:
        return new
    else:
        return share * new + (1 - share) * old


# What only cells registered at run time call (fusedrnn/_twins.py).
@triton.jit
def log(x):
    """The natural logarithm."""
    return tl.log(x)


@triton.jit
def sqrt(x):
    """The square root."""
    return tl.sqrt(x)


@triton.jit
def logsigmoid(x):
    """log(sigmoid(x)), exact near 0 too, where ``log_sigmoid`` has lost its digits."""
    e = tl.exp(-tl.abs(x))
    w = 1 + e  # log(1 + e) = e log(w) / (w - 1), in which what w was rounded by cancels (Kahan)
    log1p = tl.where(w == 1, e, e * tl.log(w) / tl.where(w == 1, 1.0, w - 1))
    return tl.where(x < 0, x, 0.0) - log1p


@triton.jit
def absolute(x):
    """|x|."""
    return tl.abs(x)


@triton.jit
def where(condition, a, b):
    """a where the condition holds, else b."""
    return tl.where(condition, a, b)


@triton.jit
def maximum(a, b):
    """The larger; NaN if either is, as torch.maximum."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    """The smaller; NaN if either is, as torch.minimum."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def constant(like, value: tl.constexpr):
    """``value`` everywhere: in the type of ``like``, where a number alone would be float32."""
    return tl.full(like.shape, value, like.dtype)
