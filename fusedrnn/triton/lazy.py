"""``jit`` for the cells' twins: importing triton takes 0.3 s, so it waits for their first use."""

from collections.abc import Callable
from functools import cached_property
from types import FunctionType
from typing import Any


class Twin:
    """A function that Triton compiles when a kernel first asks for it."""

    def __init__(self, function: FunctionType):
        self.python = function

    @cached_property
    def jit(self) -> Any:
        """The ``triton.jit`` function.

        It sees its module's names, but those of ``fusedrnn.triton._maths`` before them: what is
        ``torch.tanh`` in a cell's reference is Triton's tanh in its twin.
        """
        import triton

        from . import _maths

        names = {**self.python.__globals__, **vars(_maths)}
        for own in ("__name__", "__file__"):
            names[own] = self.python.__globals__[own]
        twin = FunctionType(self.python.__code__, names, self.python.__name__)
        return triton.jit(twin)


def jit(function: Callable) -> Twin:
    """Decorate a twin: Triton code that sees ``tl``, ``sigmoid``, ``tanh`` and ``relu``."""
    assert isinstance(function, FunctionType)
    return Twin(function)
