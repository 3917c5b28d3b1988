"""A layer's calls while someone watches (gates.py): values kept, states changed on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from . import ops, random
from ._call import Reset, of_piece
from ._pieces import LayerCall
from .cells import Cell

Outputs = tuple[Tensor, ...]  # y, hn, cn, and with a trace saved and cells: see ops.sequence


@dataclass(frozen=True)
class Intervention:
    """Change one state of one layer and direction after some steps, in some rows."""

    state: int  # which of the cell's states
    layer: int
    direction: int
    steps: frozenset[int] | None  # None: all; negative ones count from the end
    rows: Tensor | None  # None: all
    change: Callable[[Tensor, int], Tensor]  # (rows of the state [b, H], step) -> the same shape

    def meets(self, t: int, steps: int) -> bool:
        """Whether it takes place after step t of ``steps``."""
        return self.steps is None or t in self.steps or t - steps in self.steps

    def apply(self, s: Tensor, t: int) -> Tensor:
        """``s`` ``[B, H]`` changed."""
        some = s if self.rows is None else s.index_select(0, self.rows.to(s.device))
        new = self.change(some, t)
        if not isinstance(new, Tensor) or new.shape != some.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"the change of a state at step {t} gave {found}; it must give a tensor of shape "
                f"{tuple(some.shape)}, rows by units"
            )
        new = new.to(s.dtype)
        return new if self.rows is None else s.index_copy(0, self.rows.to(s.device), new)


class Sink(Protocol):
    """Takes the values of each layer of a call."""

    def take(self, layer: int, cell: Cell, outputs: Outputs, directions: int) -> None: ...


@dataclass
class Watch:
    """Stands between the road of a layer (rnn.run) and the op."""

    sinks: list[Sink] = field(default_factory=list)
    interventions: list[Intervention] = field(default_factory=list)

    def sequence(self, number: int, layer: LayerCall, x: Tensor) -> Tensor:
        """y of layer ``number``, whose states are the final ones afterwards."""
        trace, mine = bool(self.sinks), [i for i in self.interventions if i.layer == number]
        if mine:
            parts = [
                _Direction(layer, x, d, trace).run([i for i in mine if i.direction == d])
                for d in range(len(layer.weights))
            ]
            y, *rest = zip(*parts, strict=True)
            outputs = (torch.cat(y, -1), *map(torch.stack, rest))
        else:
            outputs = layer.outputs(x, trace)
        for sink in self.sinks:
            sink.take(number, layer.cell, outputs, len(layer.weights))
        y, layer.h, layer.c = outputs[:3]
        return y


@dataclass
class _Direction:
    """One direction of one layer, stopped after each step at which a state changes."""

    layer: LayerCall
    x: Tensor
    d: int
    trace: bool

    def run(self, interventions: list[Intervention]) -> Outputs:
        """From the layer's states; outputs without a direction."""
        h, c = self.layer.h[self.d], self.layer.c[self.d]
        T, reverse = len(self.x), self.d == 1
        stops = [t for t in range(T) if any(i.meets(t, T) for i in interventions)]
        if reverse:
            edges = [T, *reversed(stops), *([0] if 0 not in stops else [])]
            pieces = [(a, b) for b, a in zip(edges, edges[1:], strict=False)]
        else:
            edges = [0, *(t + 1 for t in stops), *([T] if T - 1 not in stops else [])]
            pieces = list(zip(edges, edges[1:], strict=False))
        outputs = []
        for a, b in pieces:
            y, h, c, *kept = self._piece(a, b, h, c)
            t = a if reverse else b - 1
            if t in stops:
                states = self._changed(t, (h, *c), [i for i in interventions if i.meets(t, T)])
                row = torch.where(self._alive(t), states[0], 0).unsqueeze(0)
                y = torch.cat([row, y[1:]] if reverse else [y[:-1], row])
                h, c = states[0], torch.stack(states[1:]) if len(states) > 1 else c
                if kept and len(states) > 1:
                    row = torch.where(self._alive(t), c, 0).detach().to(kept[1]).unsqueeze(0)
                    cells = [row, kept[1][1:]] if reverse else [kept[1][:-1], row]
                    kept[1] = torch.cat(cells)
            if reverse and a > 0:
                h, c = self._anew(a, h, c)
            outputs.append((y, *kept))
        y, *kept = zip(*(outputs[::-1] if reverse else outputs), strict=True)
        return torch.cat(y), h, c, *map(torch.cat, kept)

    def _piece(self, a: int, b: int, h: Tensor, c: Tensor) -> list[Tensor]:
        """Steps a..b-1. The reverse direction runs beside the other, which is thrown away."""
        layer, N = self.layer, self.d + 1
        lengths, reset = of_piece(layer.lengths, layer.reset, a, b)
        if reset is not None:
            reset = Reset(reset.mask, *(s if s is None else s[:N] for s in reset[1:]))
        seed = layer.seed if layer.seed is None else random.later(layer.seed[:N], a)
        h0, c0 = (torch.stack([torch.zeros_like(s)] * self.d + [s]) for s in (h, c))
        y, *rest = ops.sequence(
            layer.cell, self.x[a:b], layer.weights[:N], h0, c0, lengths, reset, self.trace,
            seed=seed,
        )  # fmt: skip
        P = h.shape[-1]
        return [y[..., self.d * P : (self.d + 1) * P], *(each[self.d] for each in rest)]

    def _alive(self, t: int) -> Tensor:
        if self.layer.lengths is None:
            return torch.ones((), dtype=torch.bool, device=self.x.device)
        return (t < self.layer.lengths).unsqueeze(-1)

    def _changed(
        self, t: int, states: tuple[Tensor, ...], interventions: list[Intervention]
    ) -> list[Tensor]:
        new = list(states)
        for i in interventions:
            new[i.state] = torch.where(self._alive(t), i.apply(new[i.state], t), new[i.state])
        return new

    def _anew(self, boundary: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The states with which a reverse piece begins below a boundary: see csrc/sequence.h."""
        if self.layer.reset is None:
            return h, c
        cut = self.layer.reset.mask[boundary].unsqueeze(-1) & self._alive(boundary)
        one = self.layer.reset.of(self.d)
        anew = (0, 0) if one.h is None else (one.h, one.c)
        return torch.where(cut, anew[0], h), torch.where(cut, anew[1], c)
