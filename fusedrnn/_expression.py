"""What a cell's own function computes, written down: its values are nodes of a graph, not numbers.

The function is called once with ``Expression`` objects. Their operators, and the torch functions
that meet them, add nodes; equal nodes are one. What cannot be written down raises ``TypeError``
with what can. ``_twins`` differentiates the graph and writes it as Triton and PyTorch code.
"""

from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch.nn import functional

ALLOWED = (
    "+ - * /, ** with whole numbers, comparisons as the condition of torch.where, and torch's "
    "sigmoid, tanh, relu, exp, log, sqrt, abs, square, reciprocal, maximum, minimum, clamp, where, "
    "nn.functional.logsigmoid, softplus and silu"
)


class Graph:
    """The nodes of a function, each after those that it is made of."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._places: dict[tuple[str, ...], int] = {}

    def node(self, op: str, *args: "Node | float") -> "Node":
        """The node ``op`` of ``args``; of an input, ``op`` is its text: ``x[0]``."""
        key = (op, *map(name_of, args))
        if key not in self._places:
            self._places[key] = len(self.nodes)
            kind = Condition if op in COMPARISONS else Expression
            self.nodes.append(kind(self, op, args, len(self.nodes)))
        return self.nodes[self._places[key]]


class Node:
    """One value of one unit."""

    __slots__ = ("args", "graph", "op", "place")
    __array_ufunc__ = None  # numpy's numbers leave the operators to us

    def __init__(self, graph: Graph, op: str, args: tuple, place: int) -> None:
        self.graph, self.op, self.args, self.place = graph, op, args, place

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> "Expression":
        kwargs = dict(kwargs or {})
        if not kwargs.pop("inplace", False) and not _tensors((*args, *kwargs.values())):
            if rule := _FUNCTIONS.get(func):
                try:
                    return rule(*args, **kwargs)
                except Refused:
                    raise
                except TypeError as error:
                    raise Refused(f"called {_named(func)} with other arguments: {error}") from None
        elif _tensors((*args, *kwargs.values())):
            raise Refused(
                f"gave a tensor to {_named(func)}: take a Python number, float(tensor), or make "
                "the tensor a gate or a state"
            )
        raise Refused(f"called {_named(func)}")

    def __bool__(self) -> bool:
        raise Refused("decides by a value (if, and, or, not, while): use torch.where(a > b, ...)")

    def __float__(self) -> float:
        raise Refused("takes a value for a number (math.tanh, float): use torch's functions")

    __int__ = __index__ = __float__

    def __iter__(self) -> Iterator:
        raise Refused("takes a value of one unit apart: it is a number, whatever the batch")

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{Refused('used .' + name)}")


class Refused(TypeError):
    """What a cell's function did and may not do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"a cell's function {what}. It may use {ALLOWED}")


class Condition(Node):
    """A comparison: what torch.where takes first, and nothing else."""

    __slots__ = ()

    def _calculate(self, *_: object) -> None:
        raise Refused("calculates with a comparison: it may only be the condition of torch.where")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _calculate
    __truediv__ = __rtruediv__ = __and__ = __or__ = __xor__ = __invert__ = __neg__ = _calculate


def _operand(value: object) -> "Expression | float":
    if isinstance(value, Expression):
        return value
    if isinstance(value, Condition):
        value._calculate()
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if number - number == 0:
            return number
        raise Refused(f"uses the number {number}: numbers must be finite")
    if isinstance(value, torch.Tensor):
        raise Refused(
            "calculates with a tensor: take a Python number, float(tensor), or make the tensor a "
            "gate or a state"
        )
    raise Refused(f"calculates with {value!r}, a {type(value).__name__}")


def _binary(op: str) -> tuple[Callable, Callable]:
    def left(a: "Expression", b: object) -> "Expression":
        return a.graph.node(op, a, _operand(b))

    def right(b: "Expression", a: object) -> "Expression":
        return b.graph.node(op, _operand(a), b)

    return left, right


def _unary(op: str) -> Callable[["Expression"], "Expression"]:
    return lambda a: a.graph.node(op, _expression(op, a))


def _expression(name: str, value: object) -> "Expression":
    if isinstance(_operand(value), float):
        raise Refused(f"called {name} of the number {value}: use Python's math")
    return value


def _pair(a: object, b: object) -> tuple["Expression", "Expression"]:
    """Both as expressions; a number becomes a constant as wide as the other."""
    a, b = _operand(a), _operand(b)
    return _constant(b, a), _constant(a, b)


def _constant(like: Node, value: "Expression | float") -> "Expression":
    return like.graph.node("constant", like, value) if isinstance(value, float) else value


def maximum(input: "Expression", other: object) -> "Expression":
    """torch.maximum."""
    a, b = _pair(input, other)
    return a.graph.node("maximum", a, b)


def minimum(input: "Expression", other: object) -> "Expression":
    """torch.minimum."""
    a, b = _pair(input, other)
    return a.graph.node("minimum", a, b)


def where(condition: Condition, input: object, other: object) -> "Expression":
    """torch.where."""
    if not isinstance(condition, Condition):
        raise Refused("called where with a condition that is no comparison")
    like = next(a for a in condition.args if isinstance(a, Node))
    a, b = (_constant(like, _operand(v)) for v in (input, other))
    return condition.graph.node("where", condition, a, b)


def clamp(
    input: "Expression", min: float | None = None, max: float | None = None
) -> "Expression":  # fmt: skip
    """torch.clamp; its gradient passes at the bounds too."""
    if min is not None:
        input = where(input < min, min, input)
    return input if max is None else where(input > max, max, input)


def power(input: "Expression", exponent: object) -> "Expression":
    """A whole power, as products."""
    if not isinstance(exponent, Real) or exponent != int(exponent) or not 0 < abs(exponent) < 9:
        raise Refused(f"raised a value to the power {exponent!r}, which is not within +-1 .. +-8")
    result = input
    for _ in range(abs(int(exponent)) - 1):
        result = result * input
    return result if exponent > 0 else 1 / result


class Expression(Node):
    """A number. Methods and operators are those of a tensor, as far as ``ALLOWED`` goes."""

    __slots__ = ()
    __hash__ = object.__hash__

    __add__, __radd__ = _binary("add")
    __sub__, __rsub__ = _binary("sub")
    __mul__, __rmul__ = _binary("mul")
    __truediv__, __rtruediv__ = _binary("div")
    __lt__, __le__ = _binary("lt")[0], _binary("le")[0]
    __gt__, __ge__ = _binary("gt")[0], _binary("ge")[0]
    __neg__ = neg = _unary("neg")
    __pos__ = lambda self: self  # noqa: E731
    __abs__ = abs = _unary("absolute")
    __pow__ = power
    sigmoid, tanh, relu = _unary("sigmoid"), _unary("tanh"), _unary("relu")
    exp, log, sqrt = _unary("exp"), _unary("log"), _unary("sqrt")
    logsigmoid = _unary("logsigmoid")
    maximum, minimum, clamp = maximum, minimum, clamp

    def __eq__(self, other: object) -> bool:
        raise Refused("asks whether values are equal (== or !=)")

    def square(self) -> "Expression":
        """torch.square."""
        return self * self

    def reciprocal(self) -> "Expression":
        """torch.reciprocal."""
        return 1 / self

    def softplus(self) -> "Expression":
        """log(1 + e^x)."""
        return -(-self).logsigmoid()

    def silu(self) -> "Expression":
        """x sigmoid(x)."""
        return self * self.sigmoid()


COMPARISONS = ("lt", "le", "gt", "ge")


def name_of(value: Node | float) -> str:
    """What stands for a node or a number in the text: ``v7``, ``0.5``."""
    return f"v{value.place}" if isinstance(value, Node) else repr(value)


def _swapped(method: Callable) -> Callable:
    """For torch.add(1, x) and the like: the expression may come second."""

    def function(a: object, b: object) -> Expression:
        return method(a, b) if isinstance(a, Node) else method(b, a)

    return function


def _sub(a: object, b: object) -> Expression:
    return a - b if isinstance(a, Node) else b.__rsub__(a)


def _div(a: object, b: object) -> Expression:
    return a / b if isinstance(a, Node) else b.__rtruediv__(a)


_FUNCTIONS: dict[Callable, Callable] = {
    torch.sigmoid: Expression.sigmoid,
    torch.special.expit: Expression.sigmoid,
    torch.tanh: Expression.tanh,
    torch.relu: Expression.relu,
    functional.relu: Expression.relu,
    torch.exp: Expression.exp,
    torch.log: Expression.log,
    torch.sqrt: Expression.sqrt,
    torch.abs: Expression.abs,
    torch.square: Expression.square,
    torch.reciprocal: Expression.reciprocal,
    torch.neg: Expression.neg,
    torch.maximum: maximum,
    torch.minimum: minimum,
    torch.clamp: clamp,
    torch.where: where,
    torch.pow: power,
    torch.add: _swapped(Expression.__add__),
    torch.mul: _swapped(Expression.__mul__),
    torch.sub: _sub,
    torch.div: _div,
    functional.logsigmoid: Expression.logsigmoid,
    functional.softplus: Expression.softplus,
    functional.silu: Expression.silu,
}


def _tensors(values: tuple) -> bool:
    return any(isinstance(v, torch.Tensor) for v in values)


def _named(func: Callable) -> str:
    return f"torch's {getattr(func, '__name__', func)}"
