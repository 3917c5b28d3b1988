"""The record of a cell: what Python needs to know of it. The C++ twin is a struct in csrc/cells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TritonCell:
    """``@triton.jit`` twins of the C++ functions in csrc/cell.h, with tuples for arrays.

    forward(x, u, s) -> (out, saved);  backward(saved, s, out, dout) -> (d, ds).
    With a second product also operand(x, u, s) -> (p, saved) before it, where forward then takes
    (x, u, s, saved), and backward_operand(saved, s, dp, d, ds) -> (d, ds) after backward.
    """

    forward: Any
    backward: Any
    operand: Any = None
    backward_operand: Any = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One recurrent cell.

    Attributes:
        name: the name that the ops and the C++ struct use.
        gates: the gates in the order of the rows of ``weight_ih`` and ``weight_hh``.
        states: what travels from step to step; the first is ``h``, which meets ``weight_hh``.
        saved: what forward leaves for backward, per unit and step.
        h_grad: for each gate, which of backward's gradient vectors is that of its h-preactivation
            (vector ``g`` is that of the x-preactivation of gate ``g``).
        reference: the maths in PyTorch, ``reference(x, states, recur) -> new states``. ``x`` holds
            one ``[B, H]`` tensor per gate, ``recur(h)`` gives ``W_hh h + b_hh`` likewise, and
            ``recur(v, first, last)`` only gates first..last-1, of a ``v`` of the cell's own.
        triton: the same for the Triton kernels, or None where Triton is not installed.
        second: how many of the last gates take a second recurrent product, of the cell's operand.
        operand: which entry of ``saved`` is that operand.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    h_grad: tuple[int, ...]
    reference: Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Callable], tuple[Tensor, ...]]
    triton: TritonCell | None = None
    second: int = 0
    operand: int | None = None

    @property
    def grads(self) -> int:
        """How many gradient vectors backward leaves, per unit and step."""
        return max(len(self.gates), max(self.h_grad) + 1)
