"""torch's adaptive softmax, parameter for parameter, on the kernels of the hierarchical one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from . import _given, _trees, softmax_reference, softmax_score
from ._trees import Tree
from .reference import state_dtype
from .softmax import HierarchicalSoftmaxOutput, checked_reduction, reduced
from .softmax_layer import check_ignore_index, check_input, check_target, operands
from .softmax_ops import Training, target_log_prob
from .softmax_score import Part

_LARGE = 2 << 20
"""Bytes of log-probabilities from which blocks of tokens pay: the memory of fewer is not new in
each call, and each part of the rows is one more operator for each block."""

_NONE = torch.iinfo(torch.int64).min
"""The target, within a cluster, of tokens whose word is not in it."""


class AdaptiveLogSoftmaxWithLoss(nn.AdaptiveLogSoftmaxWithLoss):
    """``torch.nn.AdaptiveLogSoftmaxWithLoss`` (Grave et al. 2017) with the same parameters.

    The head is a softmax over the most frequent words and the clusters of the rest; a cluster's
    words have a softmax of their own over a narrower projection of the input. Parameters,
    initialisation and state_dict are torch's own: either loads the other's. Beyond torch:
    ``ignore_index``, ``reduction``, words in any order, leading dimensions, autocast,
    ``torch.compile(fullgraph=True)``; and every parameter has a gradient in every step, which
    DistributedDataParallel needs, be it zero where no token met its cluster.

    Args:
        in_features: size of each input vector.
        n_classes: how many words, V.
        cutoffs: rising numbers below V where clusters begin; the first ends the head's words.
        div_value: cluster i = 1, 2, ... has ``in_features // div_value**i`` features.
        head_bias: whether the head has a bias.
        device: as in torch.
        dtype: float64, float32, bfloat16 or float16; 16-bit data has float32 logits and sums.
        ignore_index: the target of tokens that have none: output and loss 0, no gradient, and no
            share in the mean.
        reduction: of the tokens' losses: ``"mean"``, ``"sum"`` or ``"none"``.
        counts: how often each word occurs, as in :meth:`fusedrnn.Hierarchy.classes`: words are
            taken in order of falling count. The state_dict then has their ranks, ``word_rank``.
            None, as in torch: word ids are ranks already.

    Attributes:
        head: ``torch.nn.Linear``.
        tail: of each cluster, a ``Sequential`` of two ``Linear`` without bias.

    Example:
        >>> import torch, fusedrnn
        >>> layer = fusedrnn.AdaptiveLogSoftmaxWithLoss(16, 1000, [20, 200])
        >>> output, loss = layer(torch.randn(5, 16), torch.tensor([0, 999, 30, -100, 7]))
        >>> output.shape, loss.shape, output[3].item()
        (torch.Size([5]), torch.Size([]), 0.0)
        >>> torchs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 1000, [20, 200])
        >>> torchs.load_state_dict(layer.state_dict())
        <All keys matched successfully>
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        counts: _given.Counts | None = None,
    ) -> None:
        super().__init__(in_features, n_classes, cutoffs, div_value, head_bias, device, dtype)
        self._make_trees()
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = checked_reduction(reduction)
        rank = None
        if counts is not None:
            order = _given.checked_counts(counts, n_classes).argsort(descending=True, stable=True)
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(n_classes))
            rank = rank.to(self.head.weight.device)
        self.register_buffer("word_rank", rank)

    @classmethod
    def sharing(cls, old: nn.AdaptiveLogSoftmaxWithLoss) -> "AdaptiveLogSoftmaxWithLoss":
        """One that has the very head and tail of torch's module."""
        sizes = (old.in_features, old.n_classes, old.cutoffs[:-1], old.div_value, old.head_bias)
        new = cls(*sizes, device="meta")
        new.head, new.tail = old.head, old.tail
        new._make_trees()
        return new

    def reset_parameters(self) -> None:
        """Initialise as torch does, and make the trees, so that ``to_empty`` may precede this."""
        super().reset_parameters()
        self._make_trees()

    def _make_trees(self) -> None:
        """The tree of all words, and what the one-node trees of the clusters are cut from."""
        words = torch.arange(self.n_classes)
        whole = _trees.shortlist_and_clusters(self.cutoffs[:-1], words)
        sizes = [b - a for a, b in zip(self.cutoffs[:-1], self.cutoffs[1:], strict=True)]
        buffers = {f"_tree_{name}": tensor for name, tensor in whole._asdict().items()}
        buffers["_leaves"] = torch.arange(max(sizes))
        buffers["_no_nodes"] = torch.full((max(sizes),), -1)
        buffers["_ends"] = torch.tensor([[0, size] for size in sizes])
        buffers["_starts"] = torch.tensor(self.cutoffs[:-1])
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.to(self.head.weight.device), persistent=False)

    def _flat(self, cluster: int, words: int) -> Tree:
        """The one-node tree of a cluster."""
        # Five tensors: Dynamo refuses a Function that is given one of them twice.
        return Tree(
            leaf_rank=self._leaves[:words],
            node_rows=self._ends[cluster],
            node_branches=self._ends[cluster],
            branch_leaf=self._leaves[:words],
            branch_node=self._no_nodes[:words],
        )

    def forward(self, input_: Tensor, target_: Tensor) -> HierarchicalSoftmaxOutput:
        """The log-probability of every target, and the loss. The names are torch's.

        Args:
            input_: ``[N, in_features]``, ``[in_features]``, or with more leading dimensions.
            target_: int64 words, of input's leading dimensions.

        Returns:
            A named tuple, both in input's dtype: ``output``, of target's shape, and ``loss``, a
            scalar, or of target's shape with ``reduction="none"``.

        Raises:
            ValueError: shapes or devices do not fit.
            TypeError: target is not int64, or input and weight differ in dtype.
            IndexError: a target is not in 0..V-1 and not ignore_index. Under ``torch.compile`` this
                is a RuntimeError.
            RuntimeError: the backend asked for cannot serve the call.
        """
        input, target = input_, target_
        self._check(input)
        check_target(target, input, self.n_classes, self.ignore_index)
        flat = target.reshape(-1)
        live = flat != self.ignore_index
        rank = flat
        if self.word_rank is not None:
            rank = torch.where(live, self.word_rank[torch.where(live, flat, 0)], flat)
        output, dtype = self._target_log_prob(input.reshape(-1, self.in_features), rank, live)
        loss = reduced(-output, live.to(output.dtype), self.reduction)
        loss = loss.view(target.shape) if self.reduction == "none" else loss
        return HierarchicalSoftmaxOutput(output.to(dtype).view(target.shape), loss.to(dtype))

    def _target_log_prob(self, x: Tensor, rank: Tensor, live: Tensor) -> tuple[Tensor, torch.dtype]:
        """As computed, and the dtype to return."""
        x, cast, dtype = operands(x)
        cluster = torch.bucketize(rank, self._starts, right=True)  # 0: the head's own words
        in_head = torch.where(cluster == 0, rank, self.shortlist_size + cluster - 1)
        # All tokens meet all rows of the head, and it is narrow: a product of torch's.
        head = self._head_logits(x, cast).log_softmax(1)
        output = head.gather(1, torch.where(live, in_head, 0).unsqueeze(1)).squeeze(1)
        output = torch.where(live, output, 0)
        for number, (project, words) in enumerate(self.tail):
            hidden, weight = linear(x, cast(project.weight)), cast(words.weight)
            if len(weight) == 1:
                output = output + torch.where(live, _certain(hidden, weight)[:, 0], 0)
                continue
            inside = live & (cluster == number + 1)
            target = torch.where(inside, rank - self._starts[number], _NONE)
            output = (
                output
                + target_log_prob(
                    hidden,
                    weight,
                    None,
                    target,
                    self._flat(number, len(weight)),
                    path_rows=len(weight),
                    depth=1,
                    training=Training(_NONE),
                )[0]
            )
        return output, dtype

    def log_prob(self, input: Tensor) -> Tensor:
        """The log-probabilities of all words, in order of their ids.

        Args:
            input: as in :meth:`forward`.

        Returns:
            ``[N, V]`` (leading dimensions as in input), in input's dtype.

        Raises:
            ValueError: input's last dimension is not in_features.
            TypeError: input and weight differ in dtype.
        """
        self._check(input)
        every, dtype = self._log_prob(input.reshape(-1, self.in_features))
        return every.to(dtype).view(*input.shape[:-1], self.n_classes)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable word: the exact argmax over all words.

        No word of a cluster is more probable than the cluster, so that tokens whose best entry of
        the head is a word need nothing else.

        Args:
            input: as in :meth:`forward`.

        Returns:
            int64 words, of input's leading dimensions.
        """
        self._check(input)
        with torch.no_grad():
            x = input.reshape(-1, self.in_features)
            wide, cast, _ = operands(x)
            best = self._head_logits(wide, cast).argmax(1)
            rest = (best >= self.shortlist_size).nonzero().squeeze(1)
            if self.word_rank is not None:
                best = self.word_rank.argsort()[best]
            if len(rest):
                best[rest] = self._log_prob(x[rest])[0].argmax(1)
        return best.view(input.shape[:-1])

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the parts."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"

    def _head_logits(self, x: Tensor, cast: Callable) -> Tensor:
        bias = None if self.head.bias is None else cast(self.head.bias)
        return softmax_reference.logits(x, cast(self.head.weight), bias)

    def _log_prob(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        """As computed, and the dtype to return."""
        x, cast, dtype = operands(x)
        wide = state_dtype(x.dtype)
        tree = Tree(*(getattr(self, f"_tree_{name}") for name in Tree._fields))
        if self.word_rank is not None:
            tree = tree._replace(leaf_rank=self.word_rank)
        large = len(x) * self.n_classes * wide.itemsize >= _LARGE
        if large and softmax_score.without_gradients() and softmax_score.scoring(x) == "cpu":
            parts, places = self._parts(cast, wide)
            return softmax_score.log_prob_in_blocks(x, parts, tree, places), dtype
        with torch.autocast(x.device.type, enabled=False):
            logits = [self._head_logits(x, cast)]
            for project, words in self.tail:
                hidden, weight = (
                    linear(x, cast(project.weight)).to(wide),
                    cast(words.weight).to(wide),
                )
                if words.out_features > 1:
                    logits.append(linear(hidden, weight))
                else:  # a leaf of the root
                    logits[0] = logits[0] + _certain(hidden, weight)
        return softmax_score.log_prob_of_logits(torch.cat(logits, 1), tree, 2), dtype

    def _parts(self, cast: Callable, wide: torch.dtype) -> tuple[list[Part], list[int] | None]:
        """The rows of all words' logits, and the first word of each part but the head.

        None for these where words are in another order than rows.
        """
        bias = None if self.head.bias is None else cast(self.head.bias).to(wide)
        parts, places = [Part(cast(self.head.weight).to(wide), bias)], []
        for first, (project, words) in zip(self.cutoffs[:-1], self.tail, strict=True):
            if words.out_features > 1:  # a cluster of one word is a leaf of the root
                parts.append(Part(cast(words.weight).to(wide), None, cast(project.weight)))
                places.append(first)
        return parts, places if self.word_rank is None else None

    def _check(self, input: Tensor) -> None:
        check_input(input, self.in_features, self.head.weight)


def _certain(hidden: Tensor, weight: Tensor) -> Tensor:
    """Log p of the only word of a cluster: 0, with gradients, which are zeros."""
    return linear(hidden, weight).log_softmax(1)
