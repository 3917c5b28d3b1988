"""The arithmetic behind ``Hierarchy``: laying trees out, and checking that tensors describe one.

All of it is vectorised over the nodes, but for Huffman's merging, so a million words take about a
second. Walks from leaves to the root double their stride each round: log2(depth) rounds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """The five tensors of a hierarchy; ``Hierarchy`` says what each holds."""

    leaf_rank: Tensor
    node_rows: Tensor
    node_branches: Tensor
    branch_leaf: Tensor
    branch_node: Tensor


# What every class gets an equal share of, as a function of the counts.
MASS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "frequency": lambda counts: counts,
    "equal": torch.ones_like,
}


def checked_counts(counts: Sequence[int] | Sequence[float] | Tensor) -> Tensor:
    """Counts as a CPU tensor, with the floor for words never seen."""
    try:
        given = torch.as_tensor(counts).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"counts must be a 1-D sequence of numbers: {error}") from error
    if given.ndim != 1 or len(given) < 2 or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(
            f"counts has dtype {given.dtype} and shape {tuple(given.shape)}; it must be a 1-D list "
            "of numbers, one for each word, for at least 2 words"
        )
    values = given.double() if given.is_floating_point() else given.long()
    bad = ~(values >= 0) | (values == torch.inf)
    if bad.any():
        word = int(bad.nonzero()[0])
        raise ValueError(f"counts[{word}] is {values[word]}; counts must be finite and >= 0")
    if not (seen := values[values > 0]).numel():
        raise ValueError("counts are all zero; at least one word must have been seen")
    return values.clamp(min=seen.min())


def equal_mass(mass: Tensor, n: int) -> Tensor:
    """Cut items of falling mass into n bins of like mass, none empty: the bin of each item.

    A bin ends with the item that carries the running sum over its share, and each item moves on by
    one bin at most: bin[i+1] = min(bin[i] + 1, full[i]), which unrolls to a running minimum.
    """
    at = torch.arange(len(mass))
    total = mass.cumsum(0)
    full = (total[:-1] / total[-1] * n + 1e-9).floor().clamp(max=n - 1).long()
    full = torch.cat([torch.zeros(1, dtype=torch.int64), full])
    bins = at + (full - at).cummin(0).values
    return torch.maximum(bins, at - (len(mass) - n))  # the last ones, where rounding fell short


def two_level(bins: Tensor, order: Tensor) -> Tree:
    """Lay out classes: ``order`` lists the words class by class, ``bins`` gives their classes."""
    V = len(order)
    sizes = bins.bincount()
    if len(sizes) == 1:
        return two_level(torch.arange(V), order)
    many = sizes > 1  # a class of one word is a leaf of the root
    starts = sizes.cumsum(0) - sizes
    rows = torch.cat([torch.tensor([0, len(sizes)]), len(sizes) + sizes[many].cumsum(0)])
    child = torch.where(many, many.cumsum(0), -1)
    leaves = torch.arange(V)[many[bins]]
    return Tree(
        leaf_rank=_inverse(order),
        node_rows=rows,
        node_branches=rows,
        branch_leaf=torch.cat([starts, leaves]),
        branch_node=torch.cat([child, torch.full_like(leaves, -1)]),
    )


def huffman(counts: list, order: Tensor) -> Tree:
    """Huffman's tree over the words of ``order``, whose falling counts are ``counts``."""
    V = len(counts)
    left, right, size = (torch.tensor(column) for column in _merge(counts))
    # Of every merged node: preorder number (low half of an int64) and first rank (high half), which
    # are sums over the way up. A left child comes one node later; before a right one lie also the
    # leaves and, one fewer, the nodes of its sibling. The last merged node is the root.
    below_left = torch.where(left < V, 1, size[(left - V).clamp(min=0)])
    step = torch.zeros(V - 1, dtype=torch.int64)
    up = torch.arange(V - 1)
    for child, s in ((left, torch.ones_like(left)), (right, below_left + (below_left << 32))):
        inner = child >= V
        step[child[inner] - V] = s[inner]
        up[child[inner] - V] = inner.nonzero().squeeze(1)
    place = _climb(step, up)
    number, rank = place & 0xFFFFFFFF, place >> 32
    branch_leaf = torch.empty(V - 1, 2, dtype=torch.int64)
    branch_node = torch.empty(V - 1, 2, dtype=torch.int64)
    leaf_rank = torch.empty_like(order)
    for branch, (child, before) in enumerate(((left, rank), (right, rank + below_left))):
        leaf = child < V
        branch_leaf[number, branch] = before
        branch_node[number, branch] = torch.where(leaf, -1, number[(child - V).clamp(min=0)])
        leaf_rank[order[child[leaf]]] = before[leaf]
    rows = torch.arange(V)
    return Tree(leaf_rank, rows, 2 * rows, branch_leaf.flatten(), branch_node.flatten())


def _merge(counts: list) -> tuple[list[int], list[int], list[int]]:
    """Huffman's merging of falling counts: each new node's lighter and heavier child, and leaves.

    Children are words 0..V-1 or, from V on, merged nodes in order of creation. word2vec's rule: two
    queues, the words from the end and the merged nodes; the word goes first where it is strictly
    lighter. Written for speed: this loop is most of what a tree of a million words costs.
    """
    V = len(counts)
    never = sum(counts) * 2 + 1  # heavier than anything: the end of a queue
    weight, leaves = [never] * V, [0] * V
    left, right = [0] * (V - 1), [0] * (V - 1)
    word, node = V - 1, 0  # heads of the queues, and their weights
    w, m = counts[word], never
    for new in range(V - 1):
        if w < m:
            a, total, below = word, w, 1
            word -= 1
            w = counts[word] if word >= 0 else never
        else:
            a, total, below = V + node, m, leaves[node]
            node += 1
            m = weight[node]
        if w < m:
            right[new] = word
            total += w
            below += 1
            word -= 1
            w = counts[word] if word >= 0 else never
        else:
            right[new] = V + node
            total += m
            below += leaves[node]
            node += 1
            m = weight[node]
        left[new], weight[new], leaves[new] = a, total, below
        if node == new:
            m = total
    return left, right, leaves


def _inverse(order: Tensor) -> Tensor:
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank


def _is_permutation(values: Tensor, n: int) -> bool:
    if len(values) != n or (n and not (values.min() >= 0 and values.max() < n)):
        return False
    return bool((values.bincount(minlength=n) == 1).all())


def _climb(value: Tensor, up: Tensor) -> Tensor:
    """Sum ``value`` over each node and all above it. ``up`` is the parent; the root's is itself.

    Each round doubles the stride: after r rounds a node holds the sum over 2^r of them.
    """
    root = (up == torch.arange(len(up))).nonzero().squeeze(1)
    base = value[root]
    value = value.index_fill(0, root, 0)
    while True:
        value = value + value[up]
        jump = up[up]
        if torch.equal(jump, up):
            return value + base
        up = jump


def _owners(tree: Tree) -> tuple[Tensor, Tensor]:
    """For each branch its node, and for each node the branch that leads to it (the root's: -1)."""
    nodes = len(tree.node_rows) - 1
    owner = torch.arange(nodes).repeat_interleave(tree.node_branches.diff())
    into = torch.full((nodes,), -1)
    inner = (tree.branch_node >= 0).nonzero().squeeze(1)
    into[tree.branch_node[inner]] = inner
    return owner, into


def paths(tree: Tree) -> tuple[Tensor, Tensor]:
    """For each leaf, by rank: the weight rows and the nodes on its path."""
    owner, into = _owners(tree)
    up = torch.where(into < 0, 0, owner[into])  # node -> its parent
    totals = _climb(
        tree.node_rows.diff() + (1 << 32), up
    )  # rows in the low half, nodes in the high
    leaf = tree.branch_node < 0
    by_rank = torch.empty_like(tree.leaf_rank)
    by_rank[tree.branch_leaf[leaf]] = totals[owner[leaf]]
    return by_rank & 0xFFFFFFFF, by_rank >> 32


def check(tree: Tree) -> tuple[Tensor, Tensor]:
    """Raise unless the tensors describe one tree in preorder; return its ``paths``."""
    V, M, E = len(tree.leaf_rank), len(tree.node_rows) - 1, len(tree.branch_node)

    def need(condition: bool | Tensor, what: str) -> None:
        if not condition:
            raise ValueError(f"not a hierarchy: {what} (see fusedrnn.Hierarchy)")

    need(all(t.ndim == 1 for t in tree), "every tensor must be 1-D")
    need(V >= 2 and M >= 1, f"{V} words and {M} nodes; at least 2 and 1 are needed")
    need(
        len(tree.node_branches) == M + 1 and len(tree.branch_leaf) == E == V + M - 1,
        f"{V} words and {M} nodes need {M + 1} node_branches and {V + M - 1} branches",
    )
    need(_is_permutation(tree.leaf_rank, V), "leaf_rank is no permutation")
    rows, arity = tree.node_rows.diff(), tree.node_branches.diff()
    need(tree.node_rows[0] == 0 and (rows >= 1).all(), "node_rows must rise from 0")
    need(
        tree.node_branches[0] == 0
        and tree.node_branches[-1] == E
        and torch.equal(arity, torch.where(rows == 1, 2, rows)),
        "a node of one row has two branches, a node of k >= 2 rows has k",
    )
    inner = tree.branch_node >= 0
    need(
        tree.branch_node.min() >= -1 and _is_permutation(tree.branch_node[inner] - 1, M - 1),
        "branches must lead to a leaf (-1) or to each node but the root once",
    )
    owner, into = _owners(tree)
    need((tree.branch_node[inner] > owner[inner]).all(), "nodes must come before those below them")
    _check_intervals(tree, owner, into, need)
    return paths(tree)


def _check_intervals(tree: Tree, owner: Tensor, into: Tensor, need: Callable) -> None:
    """A node's branches must divide its interval, a leaf hold one rank, nodes be in preorder."""
    V, M = len(tree.leaf_rank), len(tree.node_rows) - 1
    first, last = tree.node_branches[:-1], tree.node_branches[1:] - 1
    low = tree.branch_leaf[first]  # of each node
    need(low[0] == 0 and torch.equal(low[1:], tree.branch_leaf[into[1:]]), "intervals do not nest")
    # Where a branch ends: at its next sibling, or, for the last one, where its node ends.
    after = torch.cat([tree.branch_leaf[1:], torch.tensor([V])])
    is_last = torch.zeros(len(owner), dtype=torch.bool)
    is_last[last] = True
    up = torch.where((into >= 0) & is_last[into], owner[into], torch.arange(M))
    while not torch.equal(jump := up[up], up):
        up = jump
    high = torch.where(into[up] < 0, V, after[into[up]])
    end = torch.where(is_last, high[owner], after)
    length = end - tree.branch_leaf
    leaf = tree.branch_node < 0
    need((length[leaf] == 1).all() and (length > 0).all(), "a leaf must hold one rank")
    preorder = (low.diff() > 0) | ((low.diff() == 0) & (high.diff() < 0))
    need(preorder.all(), "nodes must be numbered in preorder")
