"""The record of a cell: what Python needs to know of it. The C++ twin is a struct in csrc/cells."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..triton.lazy import Twin

NORM_EPS = 1e-5
"""What layer normalisation adds to the variance, as torch's does: ``kNormEps`` in C++."""


@dataclass(frozen=True, eq=False)
class TritonCell:
    """Triton twins of the functions in csrc/cell.h, decorated with ``fusedrnn.triton.lazy.jit``.

    They take and return tuples where C++ has arrays; each entry is a ``[rows, units]`` tile, in
    float32 or float64. A plain number may stand for a constant tile. ``own`` is (weights, drop,
    keep_c, norm): what PerUnit of csrc/cell.h has, and what normalises c on its way to h, each None
    where a call has none. Twins of cells registered at run time do not take it::

        forward(x, u, s, own) -> (out, saved)
        backward(saved, s, out, dout, own) -> (d, ds)

    With a second product ``operand`` runs before it and ``forward`` after it; likewise in backward.
    Of ``u`` only the gates of the product at hand may be used; ``saved[Cell.operand]`` is what
    enters the second one::

        operand(x, u, s) -> saved
        forward(x, u, s, saved, own) -> (out, saved)
        backward(saved, s, out, dout, own) -> (d, ds)
        backward_operand(saved, s, dp, d, ds) -> (d, ds)
    """

    forward: Twin
    backward: Twin
    operand: Twin | None = None
    backward_operand: Twin | None = None


class PerUnit(NamedTuple):
    """What a unit has of its own in a step, beside preactivations and states."""

    weight: tuple[Tensor, ...] = ()  # [H] each, as ``Cell.weights`` says
    drop: Tensor | None = None  # [B, H], recurrent dropout's factor
    norm: Callable[[Tensor], Tensor] | None = None  # of c, on its way to h

    def dropped(self, new: Tensor) -> Tensor:
        """What of ``new`` reaches the state."""
        return new if self.drop is None else new * self.drop

    def normed(self, c: Tensor) -> Tensor:
        """c as h is made of it."""
        return c if self.norm is None else self.norm(c)


class UnitWeight(NamedTuple):
    """A weight of each unit's own: in the preactivation of ``gate``, of its own ``state``."""

    gate: int
    state: int
    after: bool  # of the state after the step, not before


@dataclass(frozen=True, eq=False)
class Cell:
    """One recurrent cell.

    Attributes:
        name: the name that the ops use: the C++ struct's, and options (csrc/cell_name.h).
        gates: the gates in the order of the rows of ``weight_ih`` and ``weight_hh``.
        states: what travels from step to step; the first is ``h``, which meets ``weight_hh``.
        saved: what forward leaves for backward, per unit and step.
        h_grad: for each gate, which of backward's gradient vectors is that of its h-preactivation
            (vector ``g`` is that of the x-preactivation of gate ``g``).
        reference: the maths in PyTorch, ``reference(x, states, recur, own) -> (new states,
            saved)``. ``x`` holds one ``[B, H]`` tensor per gate, ``recur(h)`` gives
            ``W_hh h + b_hh`` likewise, and ``recur(v, first, last)`` only gates first..last-1, of
            a ``v`` of the cell's own; ``own`` is a ``PerUnit``.
        triton: the same for the Triton kernels, forward and backward.
        second: how many of the last gates take a second product, of the cell's own operand.
        operand: which entry of ``saved`` is that operand.
        weights: what a unit weighs of its own states.
        full: what meets ``weight_hh`` is h and c, one after the other: ``[G*H, P + H]``.
        norms: rows of ``weight_unit`` after those of ``weights`` that layer normalisation has: the
            gains of the h-preactivations of each gate; then, of c on its way to h, gain and bias.
        independent: no unit sees another's h: there is no product with ``weight_hh``.
        dh_clip: in backward, the bound of what arrives at each step's h; 0: none.
        zoneout_h: the probability that h stays as it was; 0: none.
        zoneout_c: the same of the inner states.
        dropout: the probability that what is new does not reach the state; 0: none.
        variational: the probability that h does not meet ``weight_hh``, in all steps; 0: none.
        native: whether the native library has it: not what users register at run time.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    h_grad: tuple[int, ...]
    reference: Callable[
        [tuple[Tensor, ...], tuple[Tensor, ...], Callable, PerUnit],
        tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    ]
    triton: TritonCell | None = None
    second: int = 0
    operand: int | None = None
    weights: tuple[UnitWeight, ...] = ()
    full: bool = False
    norms: int = 0
    independent: bool = False
    dh_clip: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    dropout: float = 0.0
    variational: float = 0.0
    native: bool = True

    @property
    def kernel(self) -> str:
        """The C++ struct's name: one kernel serves what differs in options."""
        return "rnn" if self.name.startswith("rnn_") else self.name.partition(":")[0]

    @cached_property
    def random(self) -> bool:
        """Whether a step in training draws random numbers."""
        return max(self.zoneout_h, self.zoneout_c, self.dropout, self.variational) > 0

    @cached_property
    def resident(self) -> bool:
        """Whether the CUDA kernels with W_hh on chip have it: those of a grid."""
        special = self.random or self.weights or self.independent or self.full or self.norms
        return not special

    @cached_property
    def clustered(self) -> bool:
        """Whether the cluster kernels are among them: they have one product, two states at most."""
        return self.resident and self.second == 0 and len(self.states) <= 2

    @cached_property
    def rows_of_units(self) -> int:
        """Rows of ``weight_unit``."""
        return len(self.weights) + self.norms

    def depth(self, P: int, H: int) -> int:
        """How many numbers of a row meet ``weight_hh``, where h is P wide."""
        return 0 if self.independent else P + H if self.full else P

    @cached_property
    def kept(self) -> int:
        """How many vectors forward leaves for backward: ``saved``, and what is normalised."""
        return len(self.saved) + (len(self.gates) if self.norms else 0)

    @cached_property
    def product_grad(self) -> tuple[int, ...]:
        """As ``h_grad``, but of ``W_hh h``: another vector where that is normalised."""
        if not self.norms:
            return self.h_grad
        own = max(len(self.gates), max(self.h_grad) + 1)
        return tuple(range(own, own + len(self.gates)))

    @cached_property
    def grads(self) -> int:
        """How many gradient vectors backward leaves, per unit and step.

        The last one is that of the normalised c, where there is one.
        """
        of_c = self.norms > len(self.gates)
        return max(len(self.gates), max(self.product_grad) + 1) + of_c
