"""The registry: every cell by name. A new cell needs a line here and one in csrc/cells.h.

A name may have options: ``"gru"``, ``"gru:candidate=relu"``, ``"lstm:update=tanh:clip=3.0"``
(csrc/cell_name.h). ``CELLS`` lists the names without, and finds all. ``rnn_tanh`` and ``rnn_relu``
are torch's names for what is one kernel here. Cells that users register at run time
(fusedrnn/user_cell.py) are found, and not listed: the doctor and the tests are made from the list.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from . import gru, gru_reset_before, lstm, lstm_coupled, rnn, slstm
from ._base import NORM_EPS as NORM_EPS
from ._base import Cell as Cell
from ._base import PerUnit as PerUnit
from ._nonlinear import NONLINEARITIES

_MAKERS: dict[str, Callable[..., Cell]] = {
    "lstm": lstm.cell,
    "lstm_coupled": lstm_coupled.cell,
    "slstm": slstm.cell,
    "gru": gru.cell,
    "gru_reset_before": gru_reset_before.cell,
    **{f"rnn_{g}": partial(rnn.cell, candidate=g) for g in NONLINEARITIES},
}

_MADE: dict[str, Cell] = {}  # no functools.cache: torch.compile would warn of it


# Options that change the kernels around a cell, or a draw: the fields of Cell.
_OF_ALL = ("dh_clip", "zoneout_h", "zoneout_c", "dropout", "variational")


def _defaults(name: str) -> dict[str, str | float]:
    """The options of a cell."""
    parameters = inspect.signature(_MAKERS[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not p.empty}
    return own | dict.fromkeys(_OF_ALL, 0.0)


def cell_name(name: str, **options: str | float) -> str:
    """The name of the cell ``name`` with those of the options that are not defaults."""
    defaults = _defaults(name.partition(":")[0])
    return ":".join([name, *(f"{k}={v}" for k, v in options.items() if v != defaults[k])])


class _Cells(dict[str, Cell]):
    """Cells by name. Those with options are made when they are first asked for, and not listed."""

    def __missing__(self, name: str) -> Cell:
        if name not in _MADE:
            _MADE[name] = _variant(name)
        return _MADE[name]

    def __contains__(self, name: object) -> bool:
        try:
            return self[name] is not None
        except KeyError:
            return False


def _variant(name: str) -> Cell:
    plain, colon, text = name.partition(":")
    options = dict(option.partition("=")[::2] for option in text.split(":")) if colon else {}
    try:
        defaults = _defaults(plain)
        made = {key: type(defaults[key])(value) for key, value in options.items()}
        of_all = {key: made.pop(key) for key in _OF_ALL if key in made}
        return replace(_MAKERS[plain](name, **made), **of_all)
    except (KeyError, ValueError) as error:
        known = f"there are {', '.join(_MAKERS)}"
        if plain in _MAKERS:
            known = f"{plain} has the options {', '.join(_defaults(plain))}"
        raise KeyError(f"no cell named {name!r}; {known}") from error


CELLS = _Cells({name: make(name) for name, make in _MAKERS.items()})


def register(cell: Cell) -> None:
    """Have ``CELLS`` find a cell of a user's.

    Raises:
        ValueError: there is a cell of that name.
    """
    if cell.name in _MAKERS:
        raise ValueError(f"name is {cell.name!r}: there is a cell of that name")
    _MAKERS[cell.name] = lambda name: replace(cell, name=name)
    _MADE[cell.name] = cell


def unregister(name: str) -> None:
    """Take a cell back that was registered."""
    del _MAKERS[name]
    for made in [m for m in _MADE if m.partition(":")[0] == name]:
        del _MADE[made]
