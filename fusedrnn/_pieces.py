"""One layer of a call: its whole sequence at once, or piece by piece."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import ops, random
from ._call import Reset, Weights, of_piece
from .cells import Cell


@dataclass
class LayerCall:
    """What ``ops.sequence`` takes of one layer, but for its input; h and c are the states so far.

    After the last step they are the final ones. What is drawn does not depend on the pieces.
    """

    cell: Cell
    weights: tuple[Weights, ...]
    h: Tensor  # [N, B, P]
    c: Tensor  # [N, S-1, B, H]
    lengths: Tensor | None = None
    reset: Reset | None = None
    seed: Tensor | None = None
    recompute: bool = False
    at_once: int = 1
    done: int = 0  # steps of the pieces before

    def outputs(self, x: Tensor, trace: bool = False) -> tuple[Tensor, ...]:
        """``ops.sequence`` of all steps, whose input is ``x``."""
        return ops.sequence(
            self.cell, x, self.weights, self.h, self.c, self.lengths, self.reset, trace,
            self.recompute, self.seed, self.at_once,
        )  # fmt: skip

    def whole(self, x: Tensor) -> Tensor:
        """y of all steps."""
        y, self.h, self.c = self.outputs(x)
        return y

    def piece(self, x: Tensor) -> Tensor:
        """y of the next ``len(x)`` steps, of a layer of one direction."""
        a, b = self.done, self.done + len(x)
        lengths, reset = of_piece(self.lengths, self.reset, a, b)
        seed = random.later(self.seed, a)
        part = replace(self, lengths=lengths, reset=reset, seed=seed)
        y = part.whole(x)
        self.h, self.c, self.done = part.h, part.c, b
        return y

    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        held = (self.h, self.c, self.lengths, self.seed, *(self.reset or ()))
        return [t for t in (*held, *(w for each in self.weights for w in each)) if t is not None]


def in_chunks(layer: LayerCall, x: Tensor) -> Tensor:
    """About sqrt(T) pieces of about sqrt(T) steps: recomputed, each holds no more than its own."""
    return torch.cat([layer.piece(part) for part in x.split(math.isqrt(len(x) - 1) + 1)])
