"""Gates in the open: ``record`` shows what a layer computes, ``intervene`` changes it on the way.

What diagnostic classifiers, ablation studies and causal interventions need, at the speed of the
kernels: a recorded call is the call that training makes anyway, with its saved values shown.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ._watch import Intervention, Outputs, Watch
from .cells import CELLS, Cell
from .layer import RecurrentLayer


class Recording:
    """What ``record`` gives: ``recording["f"]`` is ``[T, B, layers * directions, H]``.

    It is that of the last call inside the ``with`` block. Layers and directions are in the order of
    ``hx``. ``h`` of a layer with a projection is as wide as the projection. Values are zero beyond
    a row's end, and take no part in backward. The gates of a call are views of one copy, which any
    of them keeps.

    Attributes:
        what: the names recorded.
        calls: the same of every call, oldest first, as dicts.
    """

    def __init__(
        self, what: tuple[str, ...], layers: tuple[int, ...], steps: slice | list[int] | None
    ) -> None:
        self.what, self._layers, self._steps = what, layers, steps
        self.calls: list[dict[str, Tensor]] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.what:
            raise KeyError(f"{name!r} was not recorded; what was: {', '.join(self.what)}")
        if not self.calls:
            raise RuntimeError("nothing is recorded yet: call the module inside the with block")
        return self.calls[-1][name]

    def take(self, layer: int, cell: Cell, outputs: Outputs, directions: int) -> None:
        """Keep what is wanted of one layer of a call."""
        y, _, _, saved, cells = outputs
        if layer == 0:
            self._parts = []
        if layer in self._layers:
            h = y.detach().chunk(directions, -1) if directions > 1 else (y.detach(),)
            self._parts += [(saved[d], cells[d], h[d]) for d in range(directions)]
        if layer == max(self._layers):
            self.calls.append(self._named(cell))

    def _named(self, cell: Cell) -> dict[str, Tensor]:
        """Every name's values: one copy of all gates, one of all inner states, and one of h."""
        saved, cells, h = zip(*self._parts, strict=True)
        self._parts, found, states = [], {}, cell.states[1:]
        gates = [i for i, n in enumerate(cell.saved) if n in self.what and n not in cell.states]
        if gates:  # [T, B, K, H] each
            each = torch.stack([_part(self._chosen(t), 2, gates) for t in saved], 2).unbind(3)
            found |= zip((cell.saved[i] for i in gates), each, strict=True)
        inner = [k for k, name in enumerate(states) if name in self.what]
        if inner:  # [T, S-1, B, H] each
            each = torch.stack([_part(self._chosen(t), 1, inner) for t in cells], 3)
            found |= zip((states[k] for k in inner), each.to(h[0].dtype).unbind(1), strict=True)
        if "h" in self.what:
            found["h"] = torch.stack([self._chosen(t) for t in h], 2)
        return {name: found[name] for name in self.what}

    def _chosen(self, values: Tensor) -> Tensor:
        return values if self._steps is None else values[self._steps]


def _part(values: Tensor, dim: int, numbers: list[int]) -> Tensor:
    """Those of ``dim``; without a copy where they are in a row."""
    first, n = numbers[0], len(numbers)
    if n == values.shape[dim]:
        return values
    if numbers[-1] - first == n - 1:
        return values.narrow(dim, first, n)
    return values.index_select(dim, torch.tensor(numbers, device=values.device))


@contextmanager
def record(
    module: RecurrentLayer,
    what: Iterable[str] | None = None,
    *,
    layers: Iterable[int] | None = None,
    steps: slice | Iterable[int] | None = None,
) -> Iterator[Recording]:
    """Record gates and states of an LSTM, GRU or RNN while it runs, in training and inference.

    Args:
        module: a fusedrnn layer.
        what: names of gates and states, of :func:`recordable`; None: all of them. For the LSTM
            ``i``, ``f``, ``g``, ``o`` (after their nonlinearities), ``c`` and ``h``.
        layers: numbers of the layers wanted; None: all.
        steps: a slice or the numbers of the steps wanted; None: all.

    Yields:
        A :class:`Recording`, to be read inside the block or after it.

    Raises:
        TypeError: ``module`` is no LSTM, GRU or RNN of fusedrnn.
        ValueError: a name or layer that the module does not have, or packed input.

    Example:
        >>> import torch, fusedrnn
        >>> lstm = fusedrnn.LSTM(3, 5, num_layers=2)
        >>> with fusedrnn.record(lstm, ("f", "c")) as gates:
        ...     y, _ = lstm(torch.randn(7, 2, 3))
        >>> gates["f"].shape
        torch.Size([7, 2, 2, 5])
    """
    names = recordable(module)
    wanted = names if what is None else tuple(what)
    for name in wanted:
        if name not in names:
            raise ValueError(
                f"what has {name!r}, which {type(module).__name__} does not compute; "
                f"it has {', '.join(names)}"
            )
    numbers = tuple(range(module.num_layers)) if layers is None else tuple(layers)
    for layer in numbers:
        _check_layer(module, layer)
    if not wanted or not numbers:
        raise ValueError("what and layers must name something to record, got an empty sequence")
    chosen = steps if steps is None or isinstance(steps, slice) else list(steps)
    recording = Recording(wanted, numbers, chosen)
    with _watched(module) as watch:
        watch.sinks.append(recording)
        try:
            yield recording
        finally:
            watch.sinks.remove(recording)


def recordable(module: RecurrentLayer) -> tuple[str, ...]:
    """The names that ``record`` takes for a layer.

    Args:
        module: a fusedrnn layer.

    Example:
        >>> import fusedrnn
        >>> fusedrnn.gates.recordable(fusedrnn.LSTM(3, 5))
        ('i', 'f', 'g', 'o', 'c', 'h')
    """
    if not isinstance(module, RecurrentLayer):
        raise TypeError(
            f"module is a {type(module).__name__}; it must be an LSTM, GRU or RNN of fusedrnn "
            "(fusedrnn.convert replaces torch.nn's)"
        )
    cell = CELLS[module.cell]
    named = (name for name in cell.saved if not name.startswith("_"))  # others: fusedrnn/_twins.py
    return tuple(dict.fromkeys((*named, *reversed(cell.states))))


@contextmanager
def intervene(
    module: RecurrentLayer,
    state: str = "h",
    *,
    layer: int = 0,
    direction: int = 0,
    steps: Iterable[int] | None = None,
    rows: Iterable[int] | None = None,
    scale: Tensor | None = None,
    add: Tensor | None = None,
    call: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[None]:
    """Change a state of a layer after chosen steps, then let it go on; differentiable.

    After step t the state is ``state * scale``, ``state + add`` or ``call(state, t)``; this is what
    the next step and, for ``h``, the output see. The sequence is cut at these steps, each piece one
    call of the kernels: few steps cost little, all steps a call for each. 16-bit states are
    rounded to their dtype where the sequence is cut. Blocks may be nested; their changes are made
    from the outermost to the innermost.

    Args:
        module: a fusedrnn layer.
        state: ``"h"``, or ``"c"`` for the LSTM.
        layer: which layer.
        direction: 0, or 1 for the reverse one of a bidirectional layer.
        steps: after which steps; negative ones count from the end; None: after every one.
        rows: which rows of the batch; None: all. Rows that have ended are not changed.
        scale: broadcasts to ``[rows, H]``: a mask of zeros and ones ablates units.
        add: broadcasts to ``[rows, H]``.
        call: gets the rows ``[rows, H]`` and the step, returns what replaces them.

    Raises:
        TypeError: ``module`` is no LSTM, GRU or RNN of fusedrnn.
        ValueError: the module has no such state, layer or direction; not exactly one of ``scale``,
            ``add`` and ``call``; the replacement has another shape; packed input.

    Example:
        >>> import torch, fusedrnn
        >>> lstm, x = fusedrnn.LSTM(3, 5), torch.randn(7, 2, 3)
        >>> mask = torch.ones(5)
        >>> mask[2] = 0
        >>> with fusedrnn.intervene(lstm, "c", scale=mask, steps=[3]):  # unit 2 forgets
        ...     y, _ = lstm(x)
        >>> torch.equal(y[:4], lstm(x)[0][:4])
        True
    """
    recordable(module)
    cell = CELLS[module.cell]
    if state not in cell.states:
        raise ValueError(
            f"state is {state!r}; {type(module).__name__} has {', '.join(cell.states)}"
        )
    _check_layer(module, layer)
    if direction not in ((0, 1) if module.bidirectional else (0,)):
        raise ValueError(
            f"direction is {direction!r}; it must be 0, or 1 if the module is bidirectional"
        )
    given = [name for name, v in (("scale", scale), ("add", add), ("call", call)) if v is not None]
    if len(given) != 1:
        raise ValueError(
            f"one of scale, add and call must be given, got {' and '.join(given) or 'none'}"
        )
    changes = {
        "scale": lambda s, t: s * scale,
        "add": lambda s, t: s + add,
        "call": call,
    }
    intervention = Intervention(
        cell.states.index(state),
        layer,
        direction,
        None if steps is None else frozenset(steps),
        None if rows is None else torch.tensor(list(rows), dtype=torch.int64),
        changes[given[0]],
    )
    with _watched(module) as watch:
        watch.interventions.append(intervention)
        try:
            yield
        finally:
            watch.interventions.remove(intervention)


def _check_layer(module: RecurrentLayer, layer: int) -> None:
    if not isinstance(layer, int) or not 0 <= layer < module.num_layers:
        raise ValueError(
            f"layer {layer!r} does not exist; the module has layers 0..{module.num_layers - 1}"
        )


@contextmanager
def _watched(module: RecurrentLayer) -> Iterator[Watch]:
    outer, own = module._watch, vars(module)  # nn.Module's two assignments take 3 us
    watch = own["_watch"] = outer or Watch()
    try:
        yield watch
    finally:
        own["_watch"] = outer
