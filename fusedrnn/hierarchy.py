"""Trees over a vocabulary: the one representation that all output layers share.

A hierarchy is a rooted tree whose leaves are the words. Leaves are numbered in depth-first order
(their *rank*), nodes in preorder, so that every node owns

* a contiguous interval of ranks: the words below it;
* contiguous rows of the weight matrix: its own logits. A node with one row is a sigmoid between two
  branches (branch 0: sigmoid(s), branch 1: sigmoid(-s)); one with k >= 2 rows is a softmax over k.

Word ids are arbitrary: ``leaf_rank`` maps them to leaves. The builders are in ``_trees.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _trees

Counts = Sequence[int] | Sequence[float] | Tensor


class Hierarchy:
    """A tree over the words 0..V-1, immutable. Use one of the builders.

    ``Hierarchy.flat(n)`` is the ordinary softmax, ``.classes(counts)`` the two-level
    p(class) p(word | class), ``.huffman(counts)`` a binary tree with short paths for frequent
    words, ``.from_clusters(ids)`` two levels with classes of your own.

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
        rows, depth = _trees.check(tree)  # of each leaf's path, by rank
        self._tree = tree
        self._kind = kind
        self._max_path_rows = int(rows.max())
        self._depth = int(depth.max())
        weight = torch.ones(len(rows)) if counts is None else counts
        weight = weight.double() / weight.double().sum()
        self._expected = float(rows[tree.leaf_rank].double() @ weight)

    @classmethod
    def flat(cls, n: int) -> "Hierarchy":
        """The ordinary softmax: one node, a row per word, in the order of their ids.

        Args:
            n: how many words, at least 2.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise ValueError(f"n is {n!r}; a hierarchy needs an int, at least 2 words")
        return cls(*_trees.two_level(torch.arange(n), torch.arange(n)), kind="flat")

    @classmethod
    def classes(cls, counts: Counts, n: int | None = None, binning: str = "sqrt") -> "Hierarchy":
        """Two levels, p(word) = p(class) p(word | class), with classes of words of like frequency.

        Words are taken in order of falling count and cut into ``n`` classes, none empty.

        Args:
            counts: how often each word occurs: 1-D, ints or floats, finite and not negative. A word
                of count zero counts as much as the rarest word seen.
            n: how many classes, 1..V; one, or as many as words, is the flat softmax. None:
                0.6 * sqrt(V) rounded, which is close to the best for ``"sqrt"`` on natural text.
            binning: what every class gets an equal share of. ``"sqrt"``: the square root of the
                counts (Mikolov's rnnlm); ``"frequency"``: the counts (Mikolov et al. 2011,
                "Extensions of recurrent neural network language model"); ``"equal"``: words.

        Raises:
            ValueError: counts or n out of range, or an unknown binning.
        """
        values = _trees.checked_counts(counts)
        if n is None:
            n = max(1, round(0.6 * len(values) ** 0.5))
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(values):
            raise ValueError(
                f"n is {n!r}; the number of classes must be an int in 1..{len(values)}"
            )
        if binning not in _trees.MASS:
            known = ", ".join(map(repr, _trees.MASS))
            raise ValueError(f"binning is {binning!r}; it must be one of {known}")
        order = values.argsort(descending=True, stable=True)  # ties: by word id
        bins = _trees.equal_mass(_trees.MASS[binning](values[order].double()), n)
        return cls(*_trees.two_level(bins, order), kind="two-level", counts=values)

    @classmethod
    def huffman(cls, counts: Counts) -> "Hierarchy":
        """A binary tree whose expected path is the shortest possible (Huffman 1952).

        The codes are word2vec's: words in order of falling count (ties: rising word id); the two
        lightest subtrees are merged, where a merged one is taken before a word of the same weight
        and the later word before the earlier; the one taken first becomes branch 0.

        Args:
            counts: as in :meth:`classes`. Integers are added exactly.

        Raises:
            ValueError: counts out of range.
        """
        values = _trees.checked_counts(counts)
        order = values.argsort(descending=True, stable=True)
        tree = _trees.huffman(values[order].tolist(), order)
        return cls(*tree, kind="huffman", counts=values)

    @classmethod
    def from_clusters(
        cls, clusters: Sequence[int] | Tensor, counts: Counts | None = None
    ) -> "Hierarchy":
        """Two levels with given classes.

        Args:
            clusters: for each word, in order of word ids, the id of its class: any ints >= 0, in
                whose order the classes are. A class of one word has no second level.
            counts: as in :meth:`classes`; used only to tell the expected rows per token.

        Raises:
            ValueError: not 1-D integers, a negative id, fewer than 2 words, or counts out of range.
        """
        ids = torch.as_tensor(clusters)
        if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"clusters has dtype {ids.dtype} and shape {tuple(ids.shape)}; it must be a 1-D "
                "list of ints, the class id of every word, for at least 2 words"
            )
        if (bad := (ids < 0).nonzero()).numel():
            word = int(bad[0])
            raise ValueError(f"clusters[{word}] is {int(ids[word])}; class ids must be >= 0")
        values = None if counts is None else _trees.checked_counts(counts)
        if values is not None and len(values) != len(ids):
            raise ValueError(f"counts has {len(values)} words but clusters has {len(ids)}")
        dense = ids.cpu().unique(return_inverse=True)[1]
        order = dense.argsort(stable=True)
        return cls(*_trees.two_level(dense[order], order), kind="two-level", counts=values)

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
        return int(self._tree.node_rows[-1])

    @property
    def depth(self) -> int:
        """Nodes on the longest path."""
        return self._depth

    @property
    def kind(self) -> str:
        """Which builder made it: flat, two-level, huffman; tree: any other."""
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
