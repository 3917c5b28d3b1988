"""The random numbers of a step, by counter: what csrc/random.h draws, in torch operators.

They depend on (seed, t, b, unit, stream) alone: backward draws again what forward drew, and every
backend draws the same. The seed is torch's: ``torch.manual_seed`` makes a run repeatable.
"""

import torch
from torch import Tensor

from ._native import LIBRARY

DROP, KEEP_H, KEEP_C, SEQUENCE = range(4)
"""Streams: recurrent dropout, zoneout of h, of the inner states, dropout of h for all steps."""

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFF


LIBRARY.define("sequence_factors(Tensor seed, Tensor like, float p) -> Tensor")


@torch.library.register_fake("fusedrnn::sequence_factors")
def _fake_factors(seed: Tensor, like: Tensor, p: float) -> Tensor:
    return like.new_empty(like.shape)


def seeds(directions: int, device: torch.device) -> Tensor:
    """Of each direction of a layer, from torch's generator of the device: int64 ``[N, 2]``.

    The first is where each step draws from, the second what holds for all steps: the same number.
    """
    drawn = torch.randint(-(2**63), 2**63 - 1, (directions, 1), dtype=torch.int64, device=device)
    return drawn.repeat(1, 2)


def later(seed: Tensor | None, steps: int) -> Tensor | None:
    """The seeds of a piece that begins after so many steps: it draws what the whole draws there."""
    if seed is None or steps == 0:
        return seed
    first, all_steps = seed.unbind(1)
    return torch.stack((first + _signed(_GOLDEN * steps), all_steps), 1)


def kept(seed: Tensor, t: int, B: int, H: int, stream: int, p: float) -> Tensor:
    """Which units are kept at step t, each with probability 1 - p: bool ``[B, H]``.

    Args:
        seed: int64, one number.
        t: the step.
        B: batch rows.
        H: units.
        stream: what for.
        p: the probability of not being kept.
    """
    rows = torch.arange(1, B + 1, device=seed.device).unsqueeze(1)
    key = _splitmix64(_splitmix64(seed + _signed(_GOLDEN * (t + 1))) + rows * _signed(_GOLDEN))
    units = torch.arange(H, device=seed.device)
    x = _lowbias32((units * 4 + stream) ^ (key & _WORD))
    bits = _lowbias32((x + _shift(key, 32)) & _WORD)
    return bits < below(p)


def below(p: float) -> int:
    """What a unit's 32 bits are below with probability 1 - p."""
    return min(int((1 - p) * 2**32), _WORD)


def scale(p: float) -> float:
    """By what dropout multiplies that which is kept."""
    return 1 / (1 - p) if p < 1 else 0.0


def factor(kept: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """Dropout's factor: 0, or ``scale`` for what is kept."""
    return kept.to(dtype) * scale(p)


def meeting(seed: Tensor, like: Tensor, p: float, backend: str = "reference") -> Tensor:
    """By what h of each unit is multiplied where it meets W_hh, in all steps.

    ``[B, P]`` as ``like`` is. On the CPU the native library draws: some fifty operators are a fifth
    of a small call.
    """
    if backend == "cpu":
        return torch.ops.fusedrnn.sequence_factors(seed, like, p)
    return factor(kept(seed[1], -1, *like.shape, SEQUENCE, p), p, like.dtype)


def _signed(x: int) -> int:
    """The int64 with the low 64 bits of x."""
    return (x + 2**63) % 2**64 - 2**63


def _shift(x: Tensor, n: int) -> Tensor:
    """x >> n of an unsigned number."""
    return (x >> n) & (2 ** (64 - n) - 1)


def _splitmix64(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _lowbias32(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
