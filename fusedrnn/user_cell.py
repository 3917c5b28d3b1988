"""A cell of one's own, from one Python function, and the layer that runs it.

The function is called once, to write its maths down (_expression.py), from which the chain rule and
the text of all that runs are made (_twins.py): one text for PyTorch and for Triton.
"""

import itertools
import linecache
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _on_tensors, _twins, cells
from ._expression import Expression, Graph
from .cells import CELLS
from .cells._base import TritonCell
from .layer import RecurrentLayer
from .rnn import States
from .triton.lazy import jit

Step = Callable[["Values", "Values", "Values"], object]
_numbers = itertools.count()
_registered: dict[str, "Cell"] = {}


class Values:
    """What a cell's function gets: ``x.f``, ``x[0]``, or ``f, n = x``."""

    def __init__(self, what: str, names: tuple[str, ...], values: tuple[Expression, ...]) -> None:
        self._what, self._names, self._values = what, names, values

    def __getattr__(self, name: str) -> Expression:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"{self._what} has no {name!r}; it has {', '.join(self._names)}")
        return self._values[self._names.index(name)]

    def __getitem__(self, index: int) -> Expression:
        return self._values[index]

    def __iter__(self) -> Iterator[Expression]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Cell:
    """A recurrent cell made of one Python function, registered under a name.

    It runs in :class:`Recurrent`, step by step in PyTorch, and on GPUs in the Triton kernels:
    backward is derived from the function, and both are generated.

    Args:
        name: what the cell is called, an identifier that no other cell has.
        function: the maths of one unit in one step, ``function(x, u, s)``. ``x`` holds
            the preactivation W x + b of each gate, ``u`` that of h, U h' + b', and ``s`` the states
            of the step before: ``x.f``, ``x[0]``, or ``f, n = x``. It returns the new state, or a
            tuple of them in the order of ``states``; after it, if wanted, a dict of what
            :func:`record` shall show: ``return h, {"f": f}``. It may use ``+ - * /``, whole powers,
            Python's numbers, ``torch.where`` of a comparison, and torch's sigmoid, tanh, relu, exp,
            log, sqrt, abs, square, reciprocal, maximum, minimum, clamp, logsigmoid, softplus, silu.
            It is called once, here: Python's own ``if`` and ``for`` may depend on numbers that are
            known now, not on values.
        gates: names of the gates, in the order of the rows of ``weight_ih`` and ``weight_hh``.
        states: names of the states, the first of which is ``"h"``, which meets ``weight_hh``.

    Attributes:
        text: the generated code, ``forward(x, u, s) -> (states, saved)`` and ``backward(saved, s,
            out, dout) -> (gradients of x, and of u where they differ; of s)``.

    Raises:
        ValueError: the name is taken by another cell, or a name cannot be one. The same maths under
            the same name again is no error.
        TypeError: the function does what cannot be written down.

    Gradients at a jump of the slope are torch's. Saved values are of the data's dtype, 16-bit ones
    are rounded. The layers are found by name when they run: a process that unpickles one must have
    registered the cell before.

    Example:
        >>> import torch, fusedrnn
        >>> def leaky(x, u, s):  # a leaky integrator
        ...     return 0.9 * s.h + 0.1 * torch.tanh(x.a + u.a)
        >>> cell = fusedrnn.Cell("leaky", leaky, gates=("a",))
        >>> y, h = fusedrnn.Recurrent(cell, 3, 5)(torch.randn(7, 2, 3))
        >>> y.shape
        torch.Size([7, 2, 5])
        >>> fusedrnn.Cell.unregister("leaky")
    """

    def __init__(
        self, name: str, function: Step, gates: Sequence[str], states: Sequence[str] = ("h",)
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"name is {name!r}; it must be an identifier, as 'mgu' is")
        self.name, self.gates = name, _names("gates", gates)
        self.states = _names("states", states)
        if self.states[0] != "h":
            raise ValueError(
                f"states begin with {self.states[0]!r}; the first must be 'h', the output, which "
                "meets weight_hh"
            )
        twins = self._traced(function)
        self.text, self._saved, self._reads_h = twins.text, twins.saved, twins.reads_h
        before = _registered.get(name)
        if before and before._definition() == self._definition():
            return
        if name in CELLS:
            remedy = f"fusedrnn.Cell.unregister({name!r}) first, or choose" if before else "choose"
            raise ValueError(f"name is {name!r}, which another cell has: {remedy} another name")
        names = _run(self.text, name)
        forward, backward = names["forward"], names["backward"]

        def reference(
            x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: Callable, own: object
        ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            return forward(x, recur(states[0]), states)

        cells.register(
            cells.Cell(
                name=name,
                gates=self.gates,
                states=self.states,
                saved=twins.saved,
                h_grad=twins.h_grad,
                reference=reference,
                triton=TritonCell(jit(forward), jit(backward)),
                native=False,
            )
        )
        _registered[name] = self

    @staticmethod
    def unregister(name: str) -> None:
        """Take a cell back, so that another can have its name; its layers no longer run.

        Raises:
            ValueError: no cell of that name was registered.
        """
        if name not in _registered:
            known = ", ".join(_registered) or "none is"
            raise ValueError(f"name is {name!r}; of the registered cells there is: {known}")
        del _registered[name]
        cells.unregister(name)

    def __repr__(self) -> str:
        return f"Cell({self.name!r}, gates={self.gates}, states={self.states})"

    def __reduce__(self) -> tuple:
        return registered, (self.name,)

    def _definition(self) -> tuple:
        return self.gates, self.states, self.text, self._saved

    def _traced(self, function: Step) -> _twins.Twins:
        graph = Graph()

        def inputs(what: str, names: tuple[str, ...]) -> Values:
            nodes = tuple(graph.node(f"{what}[{i}]") for i in range(len(names)))
            return Values(what, names, nodes)

        result = function(
            inputs("x", self.gates), inputs("u", self.gates), inputs("s", self.states)
        )
        named: dict[str, Expression] = {}
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            result, named = result
        new = result if isinstance(result, tuple) else (result,)
        if len(new) != len(self.states):
            raise TypeError(
                f"the function of cell {self.name!r} returned {len(new)} states; it must return "
                f"{len(self.states)}: {', '.join(self.states)}"
            )
        for key, value in (*zip(self.states, new, strict=True), *named.items()):
            if not isinstance(value, Expression):
                raise TypeError(
                    f"the function of cell {self.name!r} returned {value!r} as {key!r}; it must be "
                    "calculated from x, u and s"
                )
        if named:
            _names("the names to record", tuple(named))
        if taken := set(named) & set(self.states):
            raise ValueError(
                f"the function of cell {self.name!r} names {', '.join(sorted(taken))} to be "
                "recorded, a state, which always is: leave it out"
            )
        twins = _twins.write(graph, len(self.gates), new, named)
        for i, gate in enumerate(self.gates):
            if not any(f"{v}[{i}]" in twins.text for v in "xu"):
                raise ValueError(
                    f"gates has {gate!r}, which the function of cell {self.name!r} does not use: "
                    "leave it out"
                )
        return twins


def registered(name: str) -> Cell:
    """The cell of that name that was registered.

    Raises:
        RuntimeError: there is none.
    """
    if name not in _registered:
        raise RuntimeError(
            f"cell {name!r} is not registered in this process: make the fusedrnn.Cell, e.g. by "
            "importing the module that does, before its layers are loaded or run"
        )
    return _registered[name]


class Recurrent(RecurrentLayer):
    """The layer of a :class:`Cell`: parameters, arguments and calls are those of torch.nn's layers.

    Args:
        cell: a :class:`Cell`.
        input_size: features of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers.
        bias: with ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, *]``; states are not affected.
        dropout: on the output of every layer but the last, in training.
        bidirectional: two directions, their outputs concatenated.
        proj_size: width of the projected h (Sak et al. 2014), 0 for none; for a cell whose function
            does not use ``s.h``.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.
        weight_dropout: in training, dropout of ``weight_hh``, one mask a forward and not one a step
            (the weight-dropped RNN of Merity et al. 2018); ``bias_hh`` stays.
        dh_clip: in backward, what arrives at the h of each step, from the output and from the step
            after it, is bounded to -dh_clip .. dh_clip (the clipped hidden error of Mikolov 2012).
            None: no bound.
        zoneout: as :class:`LSTM`'s; (p_h, p_c) for a cell of two states.

    ``forward(input, hx=None, *, lengths=None, reset=None, reset_hx=None)`` as :class:`LSTM`;
    ``hx``, ``reset_hx`` and the final states are tuples in the order of the cell's states, or one
    tensor for a cell that has only h. ``fusedrnn.step`` makes one step.

    Raises:
        ValueError, RuntimeError, TypeError: arguments that torch.nn.LSTM refuses too; a cell that
            is not registered; ``proj_size`` for a cell whose function uses ``s.h``.

    Example:
        >>> import torch, fusedrnn
        >>> def mgu(x, u, s):
        ...     f = torch.sigmoid(x.f + u.f)
        ...     return (1 - f) * s.h + f * torch.tanh(x.n + f * u.n)
        >>> cell = fusedrnn.Cell("mgu_of_an_example", mgu, gates=("f", "n"))
        >>> layer, state = fusedrnn.Recurrent(cell, 3, 5, num_layers=2), None
        >>> for x in torch.randn(7, 2, 3):
        ...     y, state = fusedrnn.step(layer, x, state)
        >>> y.shape, state.shape
        (torch.Size([2, 5]), torch.Size([2, 2, 5]))
        >>> fusedrnn.Cell.unregister("mgu_of_an_example")
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_dropout: float = 0.0,
        dh_clip: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
    ) -> None:
        if not isinstance(cell, Cell):
            raise TypeError(f"cell is {cell!r}; it must be a fusedrnn.Cell")
        registered(cell.name)
        if proj_size and cell._reads_h:
            raise ValueError(
                f"proj_size is {proj_size}, but the function of cell {cell.name!r} uses s.h, which "
                "would be as wide as the projection: use proj_size=0"
            )
        super().__init__(
            cell.name, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype, weight_dropout=weight_dropout, dh_clip=dh_clip,
            zoneout=zoneout,
        )  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        registered(state["cell"].partition(":")[0])
        super().__setstate__(state)

    def extra_repr(self) -> str:
        """The cell, and the arguments that are not defaults, as torch.nn shows them."""
        return f"{self.cell.partition(':')[0]}, {super().extra_repr()}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | States | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_hx: Tensor | States | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor | States]:
        """Run the sequence. See the class."""
        if len(self._state_sizes()) > 1:
            return self._forward(input, hx, lengths, reset, reset_hx)
        one = [None if s is None else (s,) for s in (hx, reset_hx)]
        y, (hn,) = self._forward(input, one[0], lengths, reset, one[1])
        return y, hn


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        ValueError: none, one twice, or what a name cannot be.
    """
    if isinstance(names, str) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{argument} is {names!r}; it must be a tuple of names, as ('f', 'n') is")
    names = tuple(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{argument} is {names!r}; it must hold at least one name, and none twice")
    for name in names:
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(
                f"{argument} has {name!r}; a name must be an identifier that begins with a letter"
            )
    return names


def _run(text: str, name: str) -> dict[str, object]:
    """The functions of a generated text, whose source inspect (and so Triton) can find."""
    file = f"<fusedrnn.Cell {name} {next(_numbers)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = dict(vars(_on_tensors))  # its __name__ too: torch.compile imports what that says
    exec(compile(text, file, "exec"), names)
    return names
