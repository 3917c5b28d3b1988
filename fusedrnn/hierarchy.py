"""Trees over a vocabulary: the one representation that all output layers share.

A hierarchy is a rooted tree whose leaves are the words. Leaves are numbered in depth-first order
(their *rank*), nodes in preorder, so that every node owns

* a contiguous interval of ranks: the words below it;
* contiguous rows of the weight matrix: its own logits. A node with one row is a sigmoid between two
  branches (branch 0: sigmoid(s), branch 1: sigmoid(-s)); one with k >= 2 rows is a softmax over k.

Word ids are arbitrary: ``leaf_rank`` maps them to leaves. The builders are in ``_builders.py``.
"""

import torch
from torch import Tensor

from . import _trees
from ._builders import Builders


class Hierarchy(Builders):
    """A tree over the words 0..V-1, immutable. Use one of the builders.

    ============================  ==================================================================
    ``flat(n)``                   the ordinary softmax
    ``classes(counts)``           p(class) p(word | class), classes of words of like frequency
    ``from_clusters(ids)``        two levels with classes of your own
    ``kmeans(vectors)``           two levels, classes of words with neighbouring vectors
    ``from_file(path)``           classes, or Brown clusters, from a file
    ``adaptive(counts, cutoffs)`` frequent words at the root, the rest in few large classes
    ``huffman(counts)``           a binary tree with short paths for frequent words
    ``balanced(n, arity)``        a binary or k-ary tree with paths of like length
    ``from_parents``, ``from_paths``  any tree
    ``best(counts, ...)``         the one of these that should be the fastest
    ============================  ==================================================================

    The constructor takes the tensors that describe a tree, as :meth:`tensors` gives them.

    Args:
        leaf_rank: ``[V]`` rank of each word's leaf in depth-first order.
        node_rows: ``[M + 1]`` node m, in preorder, owns weight rows ``node_rows[m]`` up to
            ``node_rows[m + 1]``.
        node_branches: ``[M + 1]`` likewise its entries in the two tensors below: two branches for a
            node of one row, k for a node of k.
        branch_leaf: ``[E]`` the first rank below each branch, E = V + M - 1.
        branch_node: ``[E]`` the node that each branch leads to, or -1: a leaf.
        kind: what ``repr`` calls it.
        counts: how often each word occurs, for ``expected_rows``; None: equally often.

    Raises:
        ValueError: the tensors do not describe one tree.

    Example:
        >>> import fusedrnn
        >>> tree = fusedrnn.Hierarchy.huffman([50, 20, 20, 10])
        >>> tree
        Hierarchy(huffman: 4 words, 3 nodes, 3 rows, depth 3, 1.80 rows per token)
        >>> tree.path(3)
        [(0, 0), (1, 1), (2, 0)]
    """

    def __init__(
        self,
        leaf_rank: Tensor,
        node_rows: Tensor,
        node_branches: Tensor,
        branch_leaf: Tensor,
        branch_node: Tensor,
        *,
        kind: str = "tree",
        counts: Tensor | None = None,
    ) -> None:
        given = (leaf_rank, node_rows, node_branches, branch_leaf, branch_node)
        tree = _trees.Tree(*(t.detach().to("cpu", torch.int64, copy=True) for t in given))
        _trees.check(tree)
        self._set(tree, kind, counts)

    @classmethod
    def _built(cls, tree: _trees.Tree, kind: str, counts: Tensor | None) -> "Hierarchy":
        """From what a builder laid out: it needs no check, which takes as long as building."""
        self = cls.__new__(cls)
        self._set(tree, kind, counts)
        return self

    def _set(self, tree: _trees.Tree, kind: str, counts: Tensor | None) -> None:
        rows, depth = _trees.paths(tree)  # of each leaf's path, by rank
        self._tree = tree
        self._kind = kind
        # As ints, which a compiled graph has for constants.
        self._rows, self._root_rows = int(tree.node_rows[-1]), int(tree.node_rows[1])
        self._max_path_rows = int(rows.max())
        self._depth = int(depth.max())
        weight = torch.ones(len(rows)) if counts is None else counts
        weight = weight.double() / weight.double().sum()
        self._expected = float(rows[tree.leaf_rank].double() @ weight)

    @property
    def words(self) -> int:
        """How many words, V."""
        return len(self._tree.leaf_rank)

    @property
    def nodes(self) -> int:
        """How many nodes, leaves not counted."""
        return len(self._tree.node_rows) - 1

    @property
    def rows(self) -> int:
        """How many rows the weight matrix has."""
        return self._rows

    @property
    def root_rows(self) -> int:
        """How many of them are the root's; they come first."""
        return self._root_rows

    @property
    def depth(self) -> int:
        """Nodes on the longest path."""
        return self._depth

    @property
    def kind(self) -> str:
        """What its builder calls it: flat, two-level, huffman, ...; tree: it was given whole."""
        return self._kind

    @property
    def expected_rows(self) -> float:
        """Logits per token to expect: by the counts given, else for equally likely words."""
        return self._expected

    @property
    def max_path_rows(self) -> int:
        """Logits of the word that needs most."""
        return self._max_path_rows

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the five tensors that describe the tree, by the names of the constructor."""
        return {name: t.clone() for name, t in self._tree._asdict().items()}

    def intervals(self) -> tuple[Tensor, Tensor]:
        """The words below each node, as ranks: the first, and one past the last. ``[M]`` each."""
        return _trees.intervals(self._tree)

    def path(self, word: int) -> list[tuple[int, int]]:
        """The word's (node, branch) pairs from the root down; in a binary tree, its code.

        Raises:
            IndexError: there is no such word.
        """
        if not 0 <= word < self.words:
            raise IndexError(f"word is {word}; it must be in 0..{self.words - 1}")
        tree, node, steps = self._tree, 0, []
        rank = int(tree.leaf_rank[word])
        while node >= 0:
            first, last = tree.node_branches[node : node + 2].tolist()
            branch = int(torch.searchsorted(tree.branch_leaf[first:last], rank, right=True)) - 1
            steps.append((node, branch))
            node = int(tree.branch_node[first + branch])
        return steps

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same tree with the same words at the same leaves."""
        if not isinstance(other, Hierarchy):
            return NotImplemented
        return all(torch.equal(a, b) for a, b in zip(self._tree, other._tree, strict=True))

    def __hash__(self) -> int:
        return hash((self.words, self.nodes, self.rows, self._depth, self._max_path_rows))

    def __repr__(self) -> str:
        return (
            f"Hierarchy({self._kind}: {self.words} words, {self.nodes} nodes, {self.rows} rows, "
            f"depth {self._depth}, {self._expected:.2f} rows per token)"
        )
