"""What users describe hierarchies by, checked: counts, parents, paths, cluster files."""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike

import torch
from torch import Tensor

Counts = Sequence[int] | Sequence[float] | Tensor
Paths = Sequence[str] | Sequence[Sequence[int]]


def integer(value: object, name: str, low: int, high: int, what: str) -> int:
    """``value`` as an int in low..high: an int, or what numpy and torch have for one."""
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}; {what} must be an int in {low}..{high}")
    return number


def checked_counts(counts: Counts, words: int | None = None) -> Tensor:
    """Counts as a CPU tensor, with the floor for words never seen."""
    try:
        given = torch.as_tensor(counts).detach().cpu()
        if given.dtype == torch.get_default_dtype() and isinstance(counts, Sequence):
            given = torch.as_tensor(counts, dtype=torch.float64)  # as exact as Python's floats
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"counts must be a 1-D sequence of numbers: {error}") from error
    if given.ndim != 1 or len(given) < 2 or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(
            f"counts has dtype {given.dtype} and shape {tuple(given.shape)}; it must be a 1-D list "
            "of numbers, one for each word, for at least 2 words"
        )
    if words is not None and len(given) != words:
        raise ValueError(f"counts has {len(given)} words but the hierarchy has {words}")
    values = given.double() if given.is_floating_point() else given.long()
    bad = ~(values >= 0) | (values == torch.inf)
    if bad.any():
        word = int(bad.nonzero()[0])
        raise ValueError(f"counts[{word}] is {values[word]}; counts must be finite and >= 0")
    if not (seen := values[values > 0]).numel():
        raise ValueError("counts are all zero; at least one word must have been seen")
    return values.clamp(min=seen.min())


def checked_ids(values: Sequence[int] | Tensor, name: str, what: str) -> Tensor:
    """A 1-D tensor of at least 2 ints on the CPU."""
    try:
        ids = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a 1-D list of ints, {what}: {error}") from error
    if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"{name} has dtype {ids.dtype} and shape {tuple(ids.shape)}; it must be a 1-D list of "
            f"ints, {what}, for at least 2 words"
        )
    return ids.long()


def checked_parents(parents: Sequence[int] | Tensor) -> tuple[Tensor, int]:
    """The parents of words and nodes, which form one tree, and how many are words."""
    up = checked_ids(parents, "parents", "the node above every word and every node")
    n = len(up)
    if (bad := ((up < -1) | (up >= n)).nonzero()).numel():
        item = int(bad[0])
        raise ValueError(f"parents[{item}] is {int(up[item])}; it must be in -1..{n - 1}")
    roots = (up < 0).nonzero().squeeze(1)
    if len(roots) != 1:
        raise ValueError(
            f"parents has {len(roots)} roots, items whose parent is -1; there must be one"
        )
    arity = up[up >= 0].bincount(minlength=n)
    words = int((arity == 0).sum())
    if (bad := (arity[:words] > 0).nonzero()).numel():
        raise ValueError(
            f"item {int(bad[0])} has children but there are {words} items that have none: number "
            f"the words 0..{words - 1} and the nodes from {words} on"
        )
    top = torch.where(up < 0, torch.arange(n), up)
    for _ in range(n.bit_length()):
        top = top[top]
    if (bad := (top != roots[0]).nonzero()).numel():
        raise ValueError(
            f"parents has a cycle: going up from item {int(bad[0])} never meets the root, "
            f"{int(roots[0])}"
        )
    return up, words


def parents_of_paths(paths: Paths) -> tuple[Tensor, Tensor]:
    """From each word's branches to the parent of each word and node, and its place there."""
    steps, length = _steps(paths)
    order = _lexicographic(steps)
    steps, length = steps[order], length[order]
    V, D = steps.shape
    # Word by word, the nodes of its path that those before it do not have: those deeper than the
    # steps it shares with the word before. They come in depth-first order.
    shared = torch.full((V,), -1)
    shared[1:] = (steps[1:] == steps[:-1]).cumprod(1, dtype=torch.int8).sum(1)
    _check_apart(shared[1:] >= length[:-1], order)
    fresh = length - 1 - shared
    owner = torch.arange(V).repeat_interleave(fresh)
    M = len(owner)
    at = torch.arange(M)
    depth = at - (fresh.cumsum(0) - fresh)[owner] + 1 + shared[owner]
    # The node above one of depth d is the last one before it of depth d - 1.
    by_depth = depth * M + at
    last = by_depth.sort()
    key = torch.cat([(length - 1) * M + fresh.cumsum(0), by_depth - M])
    above = last.indices[torch.searchsorted(last.values, key) - 1] + V
    above[V] = -1  # the root
    step = steps[owner, (depth - 1).clamp(min=0)]
    word = steps.gather(1, length[:, None] - 1)[:, 0]
    parent, branch = above, torch.cat([word, step]).long()
    parent[order], branch[order] = parent[:V].clone(), branch[:V].clone()
    return parent, branch


def _steps(paths: Paths) -> tuple[Tensor, Tensor]:
    """Paths as a matrix, -1 where they have ended, and their lengths."""
    if len(paths) < 2:
        raise ValueError(f"paths has {len(paths)} words; at least 2 are needed")
    try:
        length = torch.tensor([len(path) for path in paths])
    except TypeError as error:
        raise ValueError(f"paths must hold a string or a list for each word: {error}") from error
    if (bad := (length == 0).nonzero()).numel():
        raise ValueError(f"paths[{int(bad[0])}] is empty; every word needs a branch at the root")
    try:
        if isinstance(paths[0], str):
            digits = "".join(paths).encode()
            flat = torch.frombuffer(bytearray(digits), dtype=torch.int8) - ord("0")
        else:
            flat = torch.tensor(list(itertools.chain.from_iterable(paths)))
        low, high = int(flat.min()), int(flat.max())
        if flat.is_floating_point() or (isinstance(paths[0], str) and not 0 <= low <= high <= 9):
            raise TypeError("a step is none")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"paths must hold for each word a string of digits, or for each a list of ints: {error}"
        ) from error
    if low < 0 or high >= 1 << 31:
        raise ValueError(f"paths go from {low} to {high}; branches are 0..2^31 - 1")
    flat = flat.to(torch.int8 if high < 127 else torch.int32)
    steps = torch.full((len(length), int(length.max())), -1, dtype=flat.dtype)
    steps[torch.arange(steps.shape[1]) < length[:, None]] = flat
    return steps, length


def _lexicographic(steps: Tensor) -> Tensor:
    """The order of the rows; as many columns at once as an int64 holds."""
    order = torch.arange(len(steps))
    base = int(steps.max()) + 2
    columns = max(1, int(62 / math.log2(base)))
    for part in reversed(steps.split(columns, 1)):
        key = torch.zeros_like(order)
        for column in part.unbind(1):
            key = key * base + (column + 1)
        order = order[key[order].argsort(stable=True)]
    return order


def _check_apart(after: Tensor, order: Tensor) -> None:
    """No path may end where the next one goes on or ends: ``after`` says whether it does."""
    if (bad := after.nonzero()).numel():
        place = int(bad[0])
        raise ValueError(
            f"the path of word {int(order[place])} is also the beginning, or all, of that of "
            f"word {int(order[place + 1])}; every word needs a leaf of its own"
        )


def read_clusters(
    file: str | PathLike, vocabulary: Sequence[str] | None
) -> tuple[list[str], list[int] | None]:
    """The cluster of each word, and, from a file of Brown clusters, its count."""
    rows: dict[str, list[str]] = {}
    with open(file, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            parts = line.rstrip("\r\n").split("\t")
            if len(parts) == 2:
                word, rest = parts[0], parts[1:]
            elif len(parts) == 3 and not parts[0].strip("01") and parts[2].isdecimal():
                word, rest = parts[1], [parts[0], parts[2]]
            else:
                raise ValueError(
                    f"{file}, line {number} is {line.rstrip()!r}; it must be word<TAB>class, or "
                    "bits<TAB>word<TAB>count as Brown clustering writes it"
                )
            if word in rows:
                raise ValueError(f"{file}, line {number}: {word!r} has a cluster already")
            rows[word] = rest
    if len({len(rest) for rest in rows.values()}) > 1:
        raise ValueError(f"{file} has lines of both kinds, word<TAB>class and Brown's")
    words = list(rows) if vocabulary is None else list(vocabulary)
    if missing := [word for word in words if word not in rows]:
        raise ValueError(f"{file} has no cluster for {len(missing)} words, such as {missing[0]!r}")
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise ValueError(f"vocabulary holds {twice!r} twice")
    if len(words) < 2:
        raise ValueError(f"{file} gives {len(words)} words; at least 2 are needed")
    brown = len(rows[words[0]]) == 2
    return [rows[w][0] for w in words], [int(rows[w][1]) for w in words] if brown else None


def with_places(clusters: list[str]) -> list[list[int]]:
    """Paths to words, from the bits of their clusters.

    Where a cluster has several words, or lies on the way to others, they are branches 2, 3, ...
    below it: after those of the next bit.
    """
    names = sorted(set(clusters))
    inner = {a for a, b in itertools.pairwise(names) if b.startswith(a)}
    size, place = Counter(clusters), Counter()
    paths = []
    for bits in clusters:
        path = [int(bit) for bit in bits]
        if size[bits] > 1 or bits in inner:
            path.append(2 + place[bits])
            place[bits] += 1
        paths.append(path)
    return paths
