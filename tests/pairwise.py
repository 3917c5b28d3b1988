"""Combinations of options such that every two values of any two options meet at least once."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, object]


def cover(options: Mapping[str, Sequence], refused: Callable[[Row], object]) -> list[Row]:
    """Rows that cover all pairs which may be together, few of them, always the same.

    Greedy: each row begins with a pair not yet covered, and is filled option by option with the
    value that covers most; where every value is refused, it is begun anew in another order.

    Args:
        options: the values of each; the first is the default.
        refused: whether a row of some or all options may not be.
    """
    shuffle = random.Random(0)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(options, 2)
        for i, j in itertools.product(range(len(options[a])), range(len(options[b])))
        if not refused({a: options[a][i], b: options[b][j]})
    }
    rows = []
    while pairs:
        row = _row(options, refused, pairs, shuffle)
        pairs -= _covered(options, row)
        rows.append({name: options[name][i] for name, i in row.items()})
    return rows


def _covered(options: Mapping[str, Sequence], row: dict[str, int]) -> set[tuple]:
    names = [name for name in options if name in row]
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}


def _row(
    options: Mapping[str, Sequence],
    refused: Callable[[Row], object],
    pairs: set[tuple],
    shuffle: random.Random,
) -> dict[str, int]:
    a, i, b, j = min(pairs, key=str)
    for _ in range(1000):
        row = {a: i, b: j}
        rest = [name for name in options if name not in row]
        shuffle.shuffle(rest)
        for name in rest:
            values = list(range(len(options[name])))
            shuffle.shuffle(values)
            allowed = []
            for value in values:
                given = {n: options[n][k] for n, k in (row | {name: value}).items()}
                if not refused(given):
                    allowed.append(value)
            if not allowed:
                break
            row[name] = max(allowed, key=lambda v: len(_covered(options, row | {name: v}) & pairs))
        else:
            return row
    raise AssertionError(f"{a}={options[a][i]} and {b}={options[b][j]} fit into no row")
