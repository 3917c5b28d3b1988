"""The arithmetic behind ``Hierarchy``: laying trees out, and checking that tensors describe one.

All of it is vectorised over the nodes, but for Huffman's merging, so a million words take about a
second. Walks from leaves to the root double their stride each round: log2(depth) rounds.
"""

from array import array
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


def layout(parent: Tensor, branch: Tensor, words: int, *, sigmoid: bool) -> Tree:
    """Lay out a tree whose items are the words 0..V-1 and then the nodes, in any order.

    Args:
        parent: the node above each item; the root's is -1. A node with one child decides nothing
            and is left out: the child takes its place.
        branch: by what the children of a node are ordered; ties by item.
        words: V.
        sigmoid: whether a node of two children has one row instead of two.
    """
    parent, branch = _without_only_children(parent, branch, words)
    n = len(parent)
    items = torch.arange(n)
    # Of every subtree: its leaves (low half of an int64) and its nodes (high half). After r rounds
    # an item holds those at most 2^r - 1 steps below it; place n takes what is above the root.
    below = torch.where(items < words, 1, 1 << 32)
    up = torch.where(parent < 0, n, parent)
    jump = up
    while (jump < n).any():
        above = torch.zeros(n + 1, dtype=torch.int64).index_add_(0, jump, below)
        below = below + above[:n]
        jump = torch.cat([jump, jump.new_tensor([n])])[jump]
    # Place: an item's first rank and its preorder number, which are sums over the way up. Before it
    # come its parent and whatever is below the siblings to its left.
    order = (up * (int(branch.max()) + 1) + branch).sort(stable=True).indices
    order = order[:-1]  # the root is last
    left = below[order].cumsum(0) - below[order]
    arity = torch.zeros(n + 1, dtype=torch.int64).index_add_(0, up, torch.ones_like(up))[:n]
    first = torch.cat([arity.new_zeros(1), arity.cumsum(0)[:-1]])[parent[order]]
    before = torch.zeros(n, dtype=torch.int64)
    before[order] = left - left[first] + (1 << 32)
    place = _climb(before, torch.where(parent < 0, items, parent))
    rank, number = place & 0xFFFFFFFF, place >> 32

    nodes = n - words
    sizes = torch.empty(nodes, dtype=torch.int64)
    sizes[number[words:]] = arity[words:]
    branches = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    at = branches[number[parent[order]]] + torch.arange(n - 1) - first  # where each child goes
    branch_leaf, branch_node = torch.empty(2, n - 1, dtype=torch.int64).unbind()
    branch_leaf[at] = rank[order]
    branch_node[at] = torch.where(order < words, -1, number[order])
    if sigmoid:
        sizes = torch.where(sizes == 2, 1, sizes)
    rows = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return Tree(rank[:words].clone(), rows, branches, branch_leaf, branch_node)


def _without_only_children(parent: Tensor, branch: Tensor, words: int) -> tuple[Tensor, Tensor]:
    n = len(parent)
    arity = parent[parent >= 0].bincount(minlength=n)
    single = arity == 1
    if not single.any():
        return parent, branch
    inner = single & (parent >= 0) & single[parent]  # whose parent goes too
    top = torch.where(inner, parent, torch.arange(n))
    while not torch.equal(jump := top[top], top):
        top = jump
    lifted = (parent >= 0) & single[parent]
    place = torch.where(lifted, top[parent], torch.arange(n))  # whose place each item takes
    keep = (~single).nonzero().squeeze(1)
    new = torch.full((n + 1,), -1, dtype=torch.int64)
    new[keep] = torch.arange(len(keep))
    return new[parent[place[keep]]], branch[place[keep]]


def two_level(bins: Tensor, order: Tensor) -> Tree:
    """Lay out classes: ``order`` lists the words class by class, ``bins`` gives their classes."""
    V, classes = len(order), int(bins.max()) + 1
    root = V + classes
    parent, branch = torch.empty(2, root + 1, dtype=torch.int64).unbind()
    parent[order], branch[order] = V + bins, torch.arange(V)
    parent[V:root], branch[V:root] = root, torch.arange(classes)
    parent[root], branch[root] = -1, 0
    return layout(parent, branch, V, sigmoid=False)


def shortlist_and_clusters(cutoffs: Sequence[int], order: Tensor) -> Tree:
    """The words of ``order`` up to the first cutoff as leaves of the root, the rest in clusters."""
    V, clusters = len(order), len(cutoffs)
    root = V + clusters
    parent, branch = torch.empty(2, root + 1, dtype=torch.int64).unbind()
    ends = torch.tensor([*cutoffs, V])
    cluster = torch.searchsorted(ends, torch.arange(V), right=True)  # 0: the shortlist
    parent[order], branch[order] = torch.where(cluster == 0, root, V + cluster - 1), torch.arange(V)
    parent[V:root], branch[V:root] = root, V + torch.arange(clusters)
    parent[root], branch[root] = -1, 0
    return layout(parent, branch, V, sigmoid=False)


def huffman(counts: list, order: Tensor) -> Tree:
    """Huffman's tree over the words of ``order``, whose falling counts are ``counts``."""
    V = len(counts)
    parent, branch = torch.full((2 * V - 1,), -1), torch.zeros(2 * V - 1, dtype=torch.int64)
    item = torch.cat([order, torch.arange(V, 2 * V - 1)])
    for number, children in enumerate(_merge(counts)):
        child = item[torch.frombuffer(children, dtype=torch.int64)]
        parent[child], branch[child] = torch.arange(V, 2 * V - 1), number
    return layout(parent, branch, V, sigmoid=True)


def balanced(words: int, arity: int) -> Tree:
    """Divide the words into ``arity`` like parts, and each part again, until each is alone."""
    parts = torch.arange(arity + 1)
    up, place = torch.empty(2, words, dtype=torch.int64).unbind()  # of the words
    parent, branch = [up, torch.tensor([-1])], [place, torch.tensor([0])]
    low, high, nodes = torch.tensor([0]), torch.tensor([words]), torch.tensor([words])
    while len(nodes):  # one level: the nodes that were added last
        cuts = low[:, None] + (high - low)[:, None] * parts // arity
        start, end = cuts[:, :-1].flatten(), cuts[:, 1:].flatten()
        above, number = nodes.repeat_interleave(arity), parts[:-1].repeat(len(nodes))
        leaf, inner = end - start == 1, end - start > 1
        up[start[leaf]], place[start[leaf]] = above[leaf], number[leaf]
        low, high = start[inner], end[inner]
        nodes = int(nodes[-1]) + 1 + torch.arange(len(low))
        parent.append(above[inner])
        branch.append(number[inner])
    return layout(torch.cat(parent), torch.cat(branch), words, sigmoid=arity == 2)


def _merge(counts: list) -> tuple[array, array]:
    """Huffman's merging of falling counts: each new node's lighter and heavier child.

    Children are words 0..V-1 or, from V on, merged nodes in order of creation. word2vec's rule: two
    queues, the words from the end and the merged nodes; the word goes first where it is strictly
    lighter. Written for speed: this loop is most of what a tree of a million words costs.
    """
    V = len(counts)
    never = sum(counts) * 2 + 1  # heavier than anything: the end of a queue
    weight = [never] * V
    left, right = array("q", bytes(8 * (V - 1))), array("q", bytes(8 * (V - 1)))
    word, node = V - 1, 0  # heads of the queues, and their weights
    w, m = counts[word], never
    for new in range(V - 1):
        if w < m:
            left[new], total = word, w
            word -= 1
            w = counts[word] if word >= 0 else never
        else:
            left[new], total = V + node, m
            node += 1
            m = weight[node]
        if w < m:
            right[new] = word
            total += w
            word -= 1
            w = counts[word] if word >= 0 else never
        else:
            right[new] = V + node
            total += m
            node += 1
            m = weight[node]
        weight[new] = total
        if node == new:
            m = total
    return left, right


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


def check(tree: Tree) -> None:
    """Raise unless the tensors describe one tree in preorder."""
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
    _check_intervals(tree, into, need)


def intervals(tree: Tree) -> tuple[Tensor, Tensor]:
    """The ranks below each node: first, and one past the last."""
    V, M = len(tree.leaf_rank), len(tree.node_rows) - 1
    owner, into = _owners(tree)
    # A branch ends at its next sibling; the last one, where its node ends.
    after = torch.cat([tree.branch_leaf[1:], torch.tensor([V])])
    is_last = torch.zeros(len(owner), dtype=torch.bool)
    is_last[tree.node_branches[1:] - 1] = True
    up = torch.where((into >= 0) & is_last[into], owner[into], torch.arange(M))
    while not torch.equal(jump := up[up], up):
        up = jump
    return tree.branch_leaf[tree.node_branches[:-1]], torch.where(into[up] < 0, V, after[into[up]])


def _check_intervals(tree: Tree, into: Tensor, need: Callable) -> None:
    """A node's branches must divide its interval, a leaf hold one rank, nodes be in preorder."""
    low, high = intervals(tree)
    need(low[0] == 0 and torch.equal(low[1:], tree.branch_leaf[into[1:]]), "intervals do not nest")
    end = torch.cat([tree.branch_leaf[1:], high[:1]])
    last = tree.node_branches[1:] - 1
    end[last] = high
    length = end - tree.branch_leaf
    leaf = tree.branch_node < 0
    need((length[leaf] == 1).all() and (length > 0).all(), "a leaf must hold one rank")
    preorder = (low.diff() > 0) | ((low.diff() == 0) & (high.diff() < 0))
    need(preorder.all(), "nodes must be numbered in preorder")
