"""From the graph of a cell's function to its twins' text: the chain rule, and what to keep for it.

The text is Python that runs on two kinds of numbers: on Triton's tiles, with the names of
``fusedrnn.triton._maths``, and on tensors, with those of ``fusedrnn._on_tensors``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ._expression import Condition, Expression, Graph, Node, name_of

Pull = Callable[..., tuple[Node | None, ...]]


@dataclass(frozen=True)
class _Op:
    """How a node is written, and what gradients its arguments get: ``pull(y, d, *args)``."""

    text: str
    pull: Pull = lambda y, d, *args: (None,) * len(args)


def _chosen(condition: Condition, d: Node | float, other: Node | float) -> Expression:
    return condition.graph.node("where", condition, d, other)


def _larger(y: Expression, d: Expression, a: Expression, b: Expression) -> tuple[Expression, ...]:
    """Of equals each gets half, as torch.maximum does."""
    to_b = _chosen(a < b, 0.0, 0.5 * d)
    to_a = _chosen(a > b, 0.0, 0.5 * d)
    return _chosen(a > b, d, to_b), _chosen(a < b, d, to_a)


def _smaller(y: Expression, d: Expression, a: Expression, b: Expression) -> tuple[Expression, ...]:
    to_b, to_a = _larger(y, d, a, b)
    return to_a, to_b


_OPS = {
    "add": _Op("{} + {}", lambda y, d, a, b: (d, d)),
    "sub": _Op("{} - {}", lambda y, d, a, b: (d, -d)),
    "mul": _Op("{} * {}", lambda y, d, a, b: (d * b, d * a)),
    "div": _Op("{} / {}", lambda y, d, a, b: (d / b, -(d * y) / b)),
    "neg": _Op("-{}", lambda y, d, a: (-d,)),
    "lt": _Op("{} < {}"),
    "le": _Op("{} <= {}"),
    "gt": _Op("{} > {}"),
    "ge": _Op("{} >= {}"),
    "constant": _Op("constant({}, {})"),
    "where": _Op(
        "where({}, {}, {})",
        lambda y, d, c, a, b: (None, _chosen(c, d, 0.0), _chosen(c, 0.0, d)),
    ),
    "sigmoid": _Op("sigmoid({})", lambda y, d, a: (d * y * (1 - y),)),
    "tanh": _Op("tanh({})", lambda y, d, a: (d * (1 - y * y),)),
    "relu": _Op("relu({})", lambda y, d, a: (_chosen(y > 0, d, 0.0),)),
    "exp": _Op("exp({})", lambda y, d, a: (d * y,)),
    "log": _Op("log({})", lambda y, d, a: (d / a,)),
    "sqrt": _Op("sqrt({})", lambda y, d, a: (0.5 * d / y,)),
    "absolute": _Op("absolute({})", lambda y, d, a: (_chosen(a > 0, d, _chosen(a < 0, -d, 0.0)),)),
    "logsigmoid": _Op("logsigmoid({})", lambda y, d, a: (d * (-a).sigmoid(),)),
    "maximum": _Op("maximum({}, {})", _larger),
    "minimum": _Op("minimum({}, {})", _smaller),
}


@dataclass(frozen=True)
class Twins:
    """The text of ``forward(x, u, s)`` and ``backward(saved, s, out, dout)``: see TritonCell.

    Attributes:
        text: both functions.
        saved: what forward leaves; ``_0``, ``_1``, ... are names for what the user gave none.
        h_grad: see ``fusedrnn.cells.Cell``.
        reads_h: whether anything depends on h but through the gates.
    """

    text: str
    saved: tuple[str, ...]
    h_grad: tuple[int, ...]
    reads_h: bool


def write(graph: Graph, gates: int, new: tuple[Node, ...], named: dict[str, Node]) -> Twins:
    """Differentiate what was written down.

    Args:
        graph: of the function, called with inputs ``x[g]``, ``u[g]`` and ``s[n]``.
        gates: how many there are.
        new: the states that it returned.
        named: the values that it named.
    """
    size = len(graph.nodes)  # what comes after belongs to backward alone
    dout = [graph.node(f"dout[{n}]") for n in range(len(new))]
    grads = _chain_rule(graph, size, zip(new, dout, strict=True))

    def of(text: str) -> Node | None:
        return grads.get(graph.node(text).place)

    d: list[Node | None] = [of(f"x[{g}]") for g in range(gates)]
    h_grad = []
    for g in range(gates):
        to_u = of(f"u[{g}]")
        same = (i for i in (g, *range(gates, len(d))) if d[i] is to_u)
        h_grad.append(next(same, len(d)))
        d += [to_u] * (h_grad[g] == len(d))
    ds = [of(f"s[{n}]") for n in range(len(new))]

    free = {node.place: f"out[{n}]" for n, node in enumerate(new) if n}
    results = [node for node in (*d, *ds) if node is not None]
    keep = _kept(graph, size, results, set(free) | {v.place for v in named.values()})
    saved = [*named.items(), *((f"_{i}", node) for i, node in enumerate(keep))]
    if not saved:
        saved = [("_0", new[0])]  # the kernels keep at least one value
    kept = {v.place: f"saved[{k}]" for k, (_, v) in reversed(list(enumerate(saved)))}
    values = [v for _, v in saved]
    forward = _function("forward(x, u, s)", graph, {}, new, values)
    backward = _function("backward(saved, s, out, dout)", graph, free | kept, d, ds)
    reads_h = "s[0]" in {node.op for node in _made_of(graph, [*new, *values], {})}
    return Twins(f"{forward}\n\n{backward}", tuple(n for n, _ in saved), tuple(h_grad), reads_h)


def _chain_rule(graph: Graph, size: int, ends: Iterable[tuple[Node, Node]]) -> dict[int, Node]:
    """The gradient of each of the first ``size`` nodes that has one, by place."""
    grads: dict[int, Node] = {}

    def arrive(node: object, d: Node | None) -> None:
        if d is not None and isinstance(node, Expression):
            grads[node.place] = grads[node.place] + d if node.place in grads else d

    for node, d in ends:
        arrive(node, d)
    for node in reversed(graph.nodes[:size]):
        if node.args and node.place in grads:
            pulled = _OPS[node.op].pull(node, grads[node.place], *node.args)
            for arg, d in zip(node.args, pulled, strict=True):
                arrive(arg, d)
    return grads


def _kept(graph: Graph, size: int, results: list[Node], given: set[int]) -> list[Node]:
    """Which of the first ``size`` nodes backward must find, beside ``given``.

    Those that its own nodes are made of, less what can be calculated from the others.
    """
    stack, needed, seen = list(results), set(), set()
    while stack:
        node = stack.pop()
        if node.place < size:
            needed.add(node.place)
        elif node.place not in seen:
            seen.add(node.place)
            stack += [a for a in node.args if isinstance(a, Node)]
    for node in reversed(graph.nodes[:size]):
        if node.place not in needed:
            continue
        if _calculable(graph, node, (needed | given) - ({node.place} - given)):
            needed.discard(node.place)
        elif isinstance(node, Condition):  # never kept: what it compares is
            needed.discard(node.place)
            needed |= {a.place for a in node.args if isinstance(a, Node)}
    return [graph.nodes[place] for place in sorted(needed)]


def _calculable(graph: Graph, node: Node, given: set[int]) -> bool:
    """Whether backward can calculate a node from what is given and the states before the step."""
    makers = _made_of(graph, [node], dict.fromkeys(given, ""))
    return not any(n.op[:2] in ("x[", "u[") for n in makers if n.place not in given)


def _made_of(graph: Graph, results: Iterable[Node | None], given: dict[int, str]) -> list[Node]:
    """The nodes that results are made of, in order; what is given is made of nothing."""
    stack, needed = [n for n in results if n is not None], set()
    while stack:
        node = stack.pop()
        if node.place not in needed:
            needed.add(node.place)
            if node.place not in given:
                stack += [a for a in node.args if isinstance(a, Node)]
    return [graph.nodes[place] for place in sorted(needed)]


def _function(
    head: str, graph: Graph, given: dict[int, str], first: Iterable, second: Iterable
) -> str:
    """The text of a function that returns two tuples of nodes; None stands for zero."""
    first, second = list(first), list(second)
    texts, lines = dict(given), [f"def {head}:"]

    def text(value: Node | float) -> str:
        return texts[value.place] if isinstance(value, Node) else name_of(value)

    for node in _made_of(graph, [*first, *second], given):
        if node.place in given:
            continue
        if not node.args:
            texts[node.place] = node.op
            continue
        texts[node.place] = name_of(node)
        lines.append(f"    {name_of(node)} = {_OPS[node.op].text.format(*map(text, node.args))}")
    returned = (
        "(" + "".join(f"{'0.0' if node is None else text(node)}, " for node in group).rstrip() + ")"
        for group in (first, second)
    )
    return "\n".join([*lines, f"    return {', '.join(returned)}", ""])
