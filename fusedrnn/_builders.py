"""The builders of ``Hierarchy``. A million words take about a second."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _clusters, _cost, _given, _trees
from ._given import Counts, Paths

if TYPE_CHECKING:
    from .hierarchy import Hierarchy


class Builders:
    """What ``Hierarchy`` inherits. All take ``counts`` alike.

    How often each word occurs: 1-D, ints or floats, finite and not negative. A word of count zero
    counts as much as the rarest word seen. Where ``counts`` is optional it only tells the expected
    rows per token.
    """

    @classmethod
    def flat(cls, n: int) -> "Hierarchy":
        """The ordinary softmax: one node, a row per word, in the order of their ids.

        Args:
            n: how many words, at least 2.
        """
        n = _given.integer(n, "n", 2, 1 << 31, "the number of words")
        return cls._built(
            _trees.two_level(torch.zeros(n, dtype=torch.int64), torch.arange(n)), "flat", None
        )

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
        values = _given.checked_counts(counts)
        n = _class_count(n, len(values))
        if binning not in _clusters.MASS:
            known = ", ".join(map(repr, _clusters.MASS))
            raise ValueError(f"binning is {binning!r}; it must be one of {known}")
        order = values.argsort(descending=True, stable=True)  # ties: by word id
        bins = _clusters.equal_mass(_clusters.MASS[binning](values[order].double()), n)
        return cls._built(_trees.two_level(bins, order), "two-level", values)

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
        ids = _given.checked_ids(clusters, "clusters", "the class id of every word")
        if (bad := (ids < 0).nonzero()).numel():
            word = int(bad[0])
            raise ValueError(f"clusters[{word}] is {int(ids[word])}; class ids must be >= 0")
        values = None if counts is None else _given.checked_counts(counts, len(ids))
        dense = ids.unique(return_inverse=True)[1]
        order = dense.argsort(stable=True)
        return cls._built(_trees.two_level(dense[order], order), "two-level", values)

    @classmethod
    def kmeans(
        cls,
        vectors: Tensor,
        n: int | None = None,
        *,
        counts: Counts | None = None,
        rounds: int = 20,
        seed: int = 0,
    ) -> "Hierarchy":
        """Two levels, classes of words whose vectors are neighbours (Lloyd's algorithm).

        Args:
            vectors: ``[V, H]``, one row per word, such as the weight of an embedding. Computed in
                float32 on the CPU; a round is one product of ``[V, H]`` with ``[H, n]``.
            n: how many classes, as in :meth:`classes`; here the best number is not known
                beforehand: compare ``expected_rows``.
            counts: as in :meth:`classes`; used only to tell the expected rows per token.
            rounds: at most so many; fewer when nothing changes any more.
            seed: of the words that the classes begin with. Same seed, same classes.

        Raises:
            ValueError: vectors is not a finite matrix of at least 2 rows; n, rounds or counts out
                of range.
        """
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) < 2:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"vectors is {shape}; it must be a tensor [V, H] with V >= 2")
        rows = vectors.detach().to("cpu", torch.float32)
        if (bad := (~rows.isfinite().all(1)).nonzero()).numel():
            raise ValueError(f"vectors[{int(bad[0])}] is not finite")
        n = _class_count(n, len(rows))
        rounds = _given.integer(rounds, "rounds", 1, 1 << 31, "the number of rounds")
        return cls.from_clusters(_clusters.kmeans(rows, n, rounds, seed), counts)

    @classmethod
    def from_file(
        cls,
        file: str | PathLike,
        vocabulary: Sequence[str] | None = None,
        *,
        bits: int | None = None,
        counts: Counts | None = None,
    ) -> "Hierarchy":
        """Classes, or a binary tree, from a text file in UTF-8.

        Args:
            file: lines ``word<TAB>class``, whose classes become two levels, or the ``paths`` file
                of Brown clustering, ``bits<TAB>word<TAB>count``, whose bits become a binary tree
                with a softmax over the words of each cluster below it. (Where a cluster lies on the
                way to others, its words join that node's branches.)
            vocabulary: the words in the order of their ids; what else the file holds is left out.
                None: every word of the file, in its order.
            bits: of Brown clusters, take this many leading bits as the class of a word: two levels
                instead of the tree.
            counts: as in :meth:`classes`; used only to tell the expected rows per token. None: the
                counts of the file, where it has them.

        Raises:
            ValueError: a line that is neither, a word that comes twice or is missing, or ``bits``
                for a file that has none.
            OSError: the file cannot be read.
        """
        clusters, found = _given.read_clusters(file, vocabulary)
        counts = found if counts is None else counts
        if bits is not None:
            if found is None:
                raise ValueError(f"bits is {bits}, but {file} has no Brown clusters")
            bits = _given.integer(bits, "bits", 1, 1 << 31, "the number of leading bits")
            clusters = [path[:bits] for path in clusters]
        elif found is not None:
            return cls.from_paths(_given.with_places(clusters), counts)
        numbers = all(name.isdecimal() for name in clusters)
        rank = {c: i for i, c in enumerate(sorted(set(clusters), key=int if numbers else None))}
        return cls.from_clusters([rank[c] for c in clusters], counts)

    @classmethod
    def adaptive(cls, counts: Counts, cutoffs: Sequence[int]) -> "Hierarchy":
        """The shape of adaptive softmax (Grave et al. 2017): a short list and few clusters.

        The most frequent words are leaves of the root, beside a node for each cluster of the rest.
        All rows are as wide as the input: :class:`fusedrnn.AdaptiveLogSoftmaxWithLoss` is the one
        with narrower clusters.

        Args:
            counts: as in :meth:`classes`.
            cutoffs: rising ranks by falling count: the first ends the short list, the others end
                the clusters but the last, which goes on to the last word.

        Raises:
            ValueError: counts or cutoffs out of range.
        """
        values = _given.checked_counts(counts)
        ends = list(cutoffs)
        if (
            not ends
            or ends != sorted({int(c) for c in ends})
            or not 0 < ends[0] <= ends[-1] < len(values)
        ):
            raise ValueError(
                f"cutoffs is {cutoffs!r}; it must be rising ints in 1..{len(values) - 1}"
            )
        order = values.argsort(descending=True, stable=True)
        tree = _trees.shortlist_and_clusters(ends, order)
        return cls._built(tree, "adaptive", values)

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
        values = _given.checked_counts(counts)
        order = values.argsort(descending=True, stable=True)
        tree = _trees.huffman(values[order].tolist(), order)
        return cls._built(tree, "huffman", values)

    @classmethod
    def balanced(cls, n: int, arity: int = 2, *, counts: Counts | None = None) -> "Hierarchy":
        """A tree of nodes of ``arity`` branches whose paths are as equally long as can be.

        The words, in the order of their ids, are divided into ``arity`` parts that differ by at
        most one word, and so is each part. Words that are often confused should have like ids.

        Args:
            n: how many words, at least 2.
            arity: branches of a node, at least 2. With 2 each is a sigmoid of one row.
            counts: as in :meth:`classes`; used only to tell the expected rows per token.

        Raises:
            ValueError: n, arity or counts out of range.
        """
        n = _given.integer(n, "n", 2, 1 << 31, "the number of words")
        arity = _given.integer(arity, "arity", 2, n, "the branches of a node")
        values = None if counts is None else _given.checked_counts(counts, n)
        kind = "balanced" if arity == 2 else f"{arity}-ary"
        return cls._built(_trees.balanced(n, arity), kind, values)

    @classmethod
    def from_parents(
        cls, parents: Sequence[int] | Tensor, counts: Counts | None = None
    ) -> "Hierarchy":
        """Any tree, given by who is above whom.

        A node of two children is a sigmoid of one row, whose branch 0 is the child of lower number;
        one of more is a softmax; one with a single child decides nothing and is left out.

        Args:
            parents: the number of the node above each word 0..V-1 and, from V on, each node, in any
                order; -1 above the root.
            counts: as in :meth:`classes`; used only to tell the expected rows per token.

        Raises:
            ValueError: a cycle, several roots, a word with children, a node without, a number out
                of range, or counts out of range.

        Example:
            >>> import fusedrnn
            >>> fusedrnn.Hierarchy.from_parents([4, 3, 3, 4, -1]).path(2)  # (0 (1 2))
            [(0, 1), (1, 1)]
        """
        up, words = _given.checked_parents(parents)
        values = None if counts is None else _given.checked_counts(counts, words)
        tree = _trees.layout(up, torch.arange(len(up)), words, sigmoid=True)
        return cls._built(tree, "tree", values)

    @classmethod
    def from_paths(cls, paths: Paths, counts: Counts | None = None) -> "Hierarchy":
        """Any tree, given by the branches from the root to each word.

        Nodes are as in :meth:`from_parents`, their branches in the order of the numbers, which may
        have gaps.

        Args:
            paths: for each word a string of digits, such as ``"0110"``, or a list of ints >= 0. No
                path may be the beginning of another.
            counts: as in :meth:`classes`; used only to tell the expected rows per token.

        Raises:
            ValueError: an empty path, two words at one leaf or one above another, steps that are no
                branches, or counts out of range.

        Example:
            >>> import fusedrnn
            >>> fusedrnn.Hierarchy.from_paths(["0", "10", "11"]).path(2)
            [(0, 1), (1, 1)]
        """
        parent, branch = _given.parents_of_paths(paths)
        values = None if counts is None else _given.checked_counts(counts, len(paths))
        return cls._built(_trees.layout(parent, branch, len(paths), sigmoid=True), "tree", values)

    @classmethod
    def best(
        cls,
        counts: Counts,
        hidden: int,
        tokens: int,
        device: torch.device | str = "cpu",
        *,
        kinds: Sequence[str] = ("flat", "two-level"),
        sparse_grad: bool = False,
    ) -> "_cost.Choice":
        """The hierarchy whose training step should be the fastest, by a cost model.

        A step is one forward and backward pass of :class:`fusedrnn.HierarchicalSoftmax` in float32:
        the products of the rows that tokens meet, the bytes of those rows and of the gradient, and
        a cost for each node met (``fusedrnn/_cost.py`` has the constants and where they come
        from). Two-level is tried with several numbers of classes.

        Args:
            counts: as in :meth:`classes`.
            hidden: features of the layer's input.
            tokens: in each step.
            device: ``"cpu"`` or ``"cuda"``.
            kinds: which may be chosen: ``"flat"``, ``"two-level"``, ``"huffman"``. Huffman is off
                unless named, since it costs perplexity where two levels cost little.
            sparse_grad: whether the layer will have row-sparse gradients.

        Returns:
            A named tuple: ``hierarchy``, and ``estimates``, all that were compared, from fast to
            slow, each with its ``seconds``. ``str`` of it is a table.

        Raises:
            ValueError: an argument out of range, or an unknown kind or device.

        Example:
            >>> import fusedrnn, torch
            >>> choice = fusedrnn.Hierarchy.best(10**6 / torch.arange(1, 20001), 256, 512)
            >>> choice.hierarchy.kind, choice.estimates[0].hierarchy is choice.hierarchy
            ('two-level', True)
        """
        values = _given.checked_counts(counts)
        hidden = _given.integer(hidden, "hidden", 1, 1 << 31, "the features of an input")
        tokens = _given.integer(tokens, "tokens", 1, 1 << 62, "the tokens of a step")
        if not kinds or not set(kinds) <= set(_cost.KINDS):
            known = ", ".join(map(repr, _cost.KINDS))
            raise ValueError(f"kinds is {tuple(kinds)!r}; it may hold {known}")
        return _cost.choose(
            cls, values, hidden, tokens, torch.device(device).type, kinds, sparse_grad
        )


def _class_count(n: int | None, words: int) -> int:
    if n is None:
        return max(1, round(0.6 * words**0.5))
    return _given.integer(n, "n", 1, words, "the number of classes")
