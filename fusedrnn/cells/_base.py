"""The record of a cell: what Python needs to know of it. The C++ twin is a struct in csrc/cells."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..triton.lazy import Twin


@dataclass(frozen=True, eq=False)
class TritonCell:
    """Triton twins of the functions in csrc/cell.h, decorated with ``fusedrnn.triton.lazy.jit``.

    They take and return tuples where C++ has arrays; each entry is a ``[rows, units]`` tile, in
    float32 or float64. A plain number may stand for a constant tile::

        forward(x, u, s) -> (out, saved)
        backward(saved, s, out, dout) -> (d, ds)

    With a second product ``operand`` runs before it and ``forward`` after it; likewise in backward.
    Of ``u`` only the gates of the product at hand may be used; ``saved[Cell.operand]`` is what
    enters the second one::

        operand(x, u, s) -> saved
        forward(x, u, s, saved) -> (out, saved)
        backward(saved, s, out, dout) -> (d, ds)
        backward_operand(saved, s, dp, d, ds) -> (d, ds)
    """

    forward: Twin
    backward: Twin
    operand: Twin | None = None
    backward_operand: Twin | None = None


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
        reference: the maths in PyTorch, ``reference(x, states, recur) -> (new states, saved)``.
            ``x`` holds one ``[B, H]`` tensor per gate, ``recur(h)`` gives ``W_hh h + b_hh``
            likewise, and ``recur(v, first, last)`` only gates first..last-1, of a ``v`` of the
            cell's own.
        triton: the same for the Triton kernels, forward and backward.
        second: how many of the last gates take a second product, of the cell's own operand.
        operand: which entry of ``saved`` is that operand.
        dh_clip: in backward, the bound of what arrives at each step's h; 0: none.
        native: whether the native library has it: not what users register at run time.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    h_grad: tuple[int, ...]
    reference: Callable[
        [tuple[Tensor, ...], tuple[Tensor, ...], Callable],
        tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    ]
    triton: TritonCell | None = None
    second: int = 0
    operand: int | None = None
    dh_clip: float = 0.0
    native: bool = True

    @property
    def kernel(self) -> str:
        """The C++ struct's name: one kernel serves what differs in options."""
        return "rnn" if self.name.startswith("rnn_") else self.name.partition(":")[0]

    @property
    def by_cluster(self) -> bool:
        """Whether the CUDA cluster kernel has this cell: no second product, two states at most."""
        return self.second == 0 and len(self.states) <= 2

    @property
    def grads(self) -> int:
        """How many gradient vectors backward leaves, per unit and step."""
        return max(len(self.gates), max(self.h_grad) + 1)
