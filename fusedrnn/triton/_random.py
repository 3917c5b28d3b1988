"""The random numbers of a step by counter: csrc/random.h and fusedrnn/random.py, on tiles.

``CHANCES`` has an entry for each stream: None where a cell draws nothing in it, else (the share
that is kept, what its bits are below, by what dropout multiplies what is kept). ``seed`` is two
int64, as ``random.seeds`` makes them, or None: then nothing is drawn.
"""

import triton
import triton.language as tl

DROP: tl.constexpr = tl.constexpr(0)
KEEP_H: tl.constexpr = tl.constexpr(1)
KEEP_C: tl.constexpr = tl.constexpr(2)
SEQUENCE: tl.constexpr = tl.constexpr(3)


@triton.jit
def _splitmix64(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _lowbias32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _row_keys(seed, after, o_b):
    """One uint64 for each row of the step before ``after``."""
    steps = tl.cast(after, tl.int64).to(tl.uint64) * 0x9E3779B97F4A7C15
    rows = (o_b + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    return _splitmix64(_splitmix64(tl.load(seed).to(tl.uint64) + steps) + rows)


@triton.jit
def _kept(keys, o_h, STREAM: tl.constexpr, CHANCES: tl.constexpr):
    """Which units are kept: int1, [rows, units]."""
    low, high = keys.to(tl.uint32)[:, None], (keys >> 32).to(tl.uint32)[:, None]
    x = _lowbias32((o_h.to(tl.uint32)[None, :] * 4 + STREAM) ^ low)
    return _lowbias32(x + high) < CHANCES[STREAM][1]


@triton.jit
def _factor(keys, o_h, STREAM: tl.constexpr, CHANCES: tl.constexpr, ACC: tl.constexpr):
    """Dropout's factor."""
    kept = _kept(keys, o_h, STREAM, CHANCES)
    return tl.where(kept, tl.full(kept.shape, CHANCES[STREAM][2], ACC), 0.0)


@triton.jit
def _share(keys, o_b, o_h, STREAM: tl.constexpr, CHANCES: tl.constexpr, ACC: tl.constexpr):
    """Zoneout's share of what is new: 0 or 1, or the mean; None where there is no zoneout."""
    if CHANCES[STREAM] is None:
        return None
    elif keys is None:
        return tl.full([o_b.shape[0], o_h.shape[0]], CHANCES[STREAM][0], ACC)
    else:
        return _kept(keys, o_h, STREAM, CHANCES).to(ACC)


@triton.jit
def _own(weight, drop, keep_c, norm):
    """A tuple; Triton takes None into one from an argument, not from a variable."""
    return weight, drop, keep_c, norm


@triton.jit
def own_values(weight, norm, seed, t, o_b, o_h, CHANCES: tl.constexpr, ACC: tl.constexpr):
    """What units have of their own at step t, as twins take it; and the share of the new h.

    ``weight``: of their own states; ``norm``: see ``_norm.py``; None where there are none.
    """
    keys, drop = None, None
    if seed is not None:
        keys = _row_keys(seed, t + 1, o_b)
        if CHANCES[DROP] is not None:
            drop = _factor(keys, o_h, DROP, CHANCES, ACC)
    keep_c = _share(keys, o_b, o_h, KEEP_C, CHANCES, ACC)
    return _own(weight, drop, keep_c, norm), _share(keys, o_b, o_h, KEEP_H, CHANCES, ACC)


@triton.jit
def meeting(seed, o_b, o_h, CHANCES: tl.constexpr, ACC: tl.constexpr):
    """By what h is multiplied where it meets W_hh, in all steps; None where it is not."""
    if seed is None:
        return None
    elif CHANCES[SEQUENCE] is None:
        return None
    else:
        return _factor(_row_keys(seed + 1, 0, o_b), o_h, SEQUENCE, CHANCES, ACC)
