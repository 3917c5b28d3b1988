"""``jit`` for the cells' twins: importing triton takes 0.3 s, so it waits for their first use."""

from collections.abc import Callable
from functools import cached_property
from types import CellType, FunctionType
from typing import Any


class Twin:
    """A function that Triton compiles when a kernel first asks for it."""

    def __init__(self, function: FunctionType):
        self.python = function

    @cached_property
    def jit(self) -> Any:
        """The ``triton.jit`` function.

        It sees its module's names, but those of ``fusedrnn.triton._maths`` before them: what is
        ``torch.tanh`` in a cell's reference is Triton's tanh in its twin. Of what it takes from a
        function around it, strings name functions of ``_maths``, and numbers are constants.
        """
        import triton
        import triton.language as tl

        from . import _maths

        names = {**self.python.__globals__, **vars(_maths)}
        for own in ("__name__", "__file__"):
            names[own] = self.python.__globals__[own]
        code = self.python.__code__
        around = {
            name: getattr(_maths, v) if isinstance(v, str) else tl.constexpr(v)
            for name, v in zip(
                code.co_freevars,
                (cell.cell_contents for cell in self.python.__closure__ or ()),
                strict=True,
            )
        }
        names |= around  # the interpreter compiles the source anew, without what is around it
        closure = tuple(map(CellType, around.values())) or None
        twin = FunctionType(code, names, self.python.__name__, None, closure)
        return triton.jit(twin)


def jit(function: Callable) -> Twin:
    """Decorate a twin: Triton code that sees ``tl``, ``sigmoid``, ``tanh`` and ``relu``."""
    assert isinstance(function, FunctionType)
    return Twin(function)
