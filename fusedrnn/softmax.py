"""The output layer over a large vocabulary, with the interface of torch's adaptive softmax."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import softmax_flat, softmax_score
from ._given import integer
from .hierarchy import Hierarchy
from .softmax_layer import TreeLayer, check_ignore_index, check_target, check_words
from .softmax_ops import Training, softmax_limits, target_log_prob

__all__ = ["HierarchicalSoftmax", "HierarchicalSoftmaxOutput", "Sample", "TopK", "softmax_limits"]

REDUCTIONS = ("none", "mean", "sum")


class HierarchicalSoftmaxOutput(NamedTuple):
    """What :class:`HierarchicalSoftmax` returns, as ``torch.nn.AdaptiveLogSoftmaxWithLoss``."""

    output: Tensor
    loss: Tensor


class TopK(NamedTuple):
    """What :meth:`HierarchicalSoftmax.topk` returns."""

    log_prob: Tensor
    words: Tensor
    rows: Tensor


class Sample(NamedTuple):
    """What :meth:`HierarchicalSoftmax.sample` returns."""

    words: Tensor
    log_prob: Tensor


def reduced(loss: Tensor, share: Tensor, reduction: str) -> Tensor:
    """``loss`` of every token, which counts for ``share`` of one: itself, its sum, or its mean."""
    if reduction == "none":
        return loss
    return loss.sum() / share.sum() if reduction == "mean" else loss.sum()


def checked_reduction(reduction: str) -> str:
    """``reduction`` if there is such a one."""
    if reduction not in REDUCTIONS:
        known = ", ".join(map(repr, REDUCTIONS))
        raise ValueError(f"reduction is {reduction!r}; it must be one of {known}")
    return reduction


class HierarchicalSoftmax(TreeLayer):
    """Log-probabilities of words under a hierarchy, and their loss, without the full softmax.

    ``log p(word | x)`` is the sum over the nodes on the word's path of the log-probability of the
    branch taken there: ``log_softmax(W x + b)`` over the rows of a node, or, in a node of one row,
    ``logsigmoid(w x + b)`` for branch 0 and ``logsigmoid(-(w x + b))`` for branch 1
    (Morin & Bengio 2005; Goodman 2001). A token costs the rows on its target's path, forward and
    backward, not all. With ``Hierarchy.flat`` it is ``Linear`` and ``cross_entropy``.

    Args:
        in_features: size of each input vector.
        hierarchy: a :class:`fusedrnn.Hierarchy`.
        bias: whether each row has a bias.
        ignore_index: the target of tokens that have none: output and loss 0, no gradient, and no
            share in the mean.
        reduction: of the tokens' losses: ``"mean"``, ``"sum"`` or ``"none"``. With ``word_weight``
            the mean is the weighted one, as in ``cross_entropy``.
        word_weight: ``[V]``, what the loss of each target is multiplied by, as ``weight`` of
            ``cross_entropy``; kept as a buffer.
        label_smoothing: e in [0, 1], see below.
        smooth_over: ``"branches"`` or ``"words"``: what label smoothing is spread over.
        z_loss: added to the loss for every softmax node on the path: this times lse^2 of its
            logits, which holds them near 0 (Chowdhery et al. 2022). Sigmoids have none.
        sparse_grad: whether the gradients of weight and bias are sparse, see below.
        device: as in ``torch.nn.Linear``.
        dtype: float64, float32, bfloat16 or float16. 16-bit inputs and weights have float32 logits,
            log-sum-exp and accumulation.

    Attributes:
        weight: ``[hierarchy.rows, in_features]``.
        bias: ``[hierarchy.rows]`` or None. Both initialised as those of ``torch.nn.Linear``.
        hierarchy: the hierarchy in use. It is part of the state_dict, as the buffers
            ``hierarchy_<name>`` for each tensor of :meth:`Hierarchy.tensors`, so that a checkpoint
            says what its rows mean; loading one puts its hierarchy in force. They never change:
            ``DistributedDataParallel(..., broadcast_buffers=False)`` saves sending them each step.

    **Label smoothing** over ``"branches"`` costs nothing: at every node of the path the loss is
    ``(1 - e) * (-log p(branch)) + e * mean_j(-log p(j))`` over the node's branches. Over
    ``"words"`` it is that of ``cross_entropy``, ``e`` spread over all words alike, which takes the
    log-probabilities of all: a full pass, with dense gradients. With one node they are the same.
    The loss alone has it, and z-loss: ``output`` is always the log-probability, without a gradient
    where the loss is not made of it.

    With ``sparse_grad=True``, as in ``torch.nn.Embedding``, the gradients of weight and bias are
    ``torch.sparse_coo`` tensors of the rows of the nodes that some target's path meets: coalesced,
    equal to those rows of the dense gradients, and made, as the forward pass is, without touching
    the rest. Both are sparse, so that no optimizer walks all rows of either. SGD, SparseAdam and
    Adagrad take them (momentum is dense: with it SGD walks all rows, and weight decay raises);
    :func:`fusedrnn.clip_grad_norm_` clips them. Only :meth:`forward` makes sparse gradients,
    :meth:`log_prob` of all words dense ones. The reference backend computes the dense gradient and
    picks the rows; on a GPU the host waits to learn how many there are. ``torch.compile`` leaves
    the layer outside its graphs (with ``fullgraph=True``, an error).

    Under autocast it behaves as ``Linear`` followed by ``cross_entropy``: input and parameters are
    rounded to autocast's dtype, and outputs are float32.

    Example:
        >>> import torch, fusedrnn
        >>> tree = fusedrnn.Hierarchy.classes(counts=[100, 50, 20, 20, 5, 1, 1, 1], n=3)
        >>> layer = fusedrnn.HierarchicalSoftmax(16, tree)
        >>> output, loss = layer(torch.randn(5, 16), torch.tensor([0, 7, 3, 0, 1]))
        >>> output.shape, loss.shape
        (torch.Size([5]), torch.Size([]))
        >>> layer.log_prob(torch.randn(5, 16)).exp().sum(1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], grad_fn=<SumBackward1>)
    """

    __constants__ = ["in_features", "ignore_index", "reduction"]

    def __init__(
        self,
        in_features: int,
        hierarchy: Hierarchy,
        bias: bool = True,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        word_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        smooth_over: str = "branches",
        z_loss: float = 0.0,
        sparse_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, hierarchy, bias, device, dtype)
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = checked_reduction(reduction)
        if word_weight is not None:
            if not isinstance(word_weight, Tensor):
                raise TypeError(f"word_weight is {type(word_weight).__name__}; it must be a tensor")
            if word_weight.shape != (hierarchy.words,) or not word_weight.is_floating_point():
                raise ValueError(
                    f"word_weight is {tuple(word_weight.shape)}, {word_weight.dtype}; it must be "
                    f"floating point, one number for each of the {hierarchy.words} words"
                )
            word_weight = word_weight.detach().to(self.weight)
        self.register_buffer("word_weight", word_weight)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1]")
        if smooth_over not in ("branches", "words"):
            raise ValueError(f"smooth_over is {smooth_over!r}; it must be 'branches' or 'words'")
        if not 0 <= z_loss < float("inf"):
            raise ValueError(f"z_loss is {z_loss}; it must be a finite number >= 0")
        self.label_smoothing, self.smooth_over, self.z_loss = label_smoothing, smooth_over, z_loss
        self.sparse_grad = sparse_grad
        if sparse_grad and self._smooths_words:
            raise ValueError(
                "sparse_grad=True and smooth_over='words': the gradient of all words is dense; use "
                "smooth_over='branches' or sparse_grad=False"
            )

    def forward(self, input: Tensor, target: Tensor) -> HierarchicalSoftmaxOutput:
        """The log-probability of every target, and the loss.

        Args:
            input: ``[N, in_features]``, ``[in_features]``, or with more leading dimensions.
            target: int64 words, of input's leading dimensions: ``[N]``, ``[]``, ...

        Returns:
            A named tuple, both in input's dtype: ``output``, of target's shape, and ``loss``, a
            scalar, or of target's shape with ``reduction="none"``. The mean of no tokens is NaN, as
            in torch.

        Raises:
            ValueError: shapes do not fit.
            TypeError: target is not int64, or input and weight differ in dtype.
            IndexError: a target is not in 0..V-1 and not ignore_index. Under ``torch.compile`` this
                is a RuntimeError; on a GPU, a device-side assertion, as in ``cross_entropy``.
            RuntimeError: the backend asked for cannot serve the call.
        """
        self._check_input(input)
        check_target(target, input, self.hierarchy.words, self.ignore_index)
        flat = target.reshape(-1)
        if self.sparse_grad and torch.is_grad_enabled():
            from .softmax_sparse import row_sparse

            output, objective, dtype = row_sparse(self, input, flat)
        else:
            output, objective, dtype = self._target_log_prob(input, flat, self._training)
        loss = self._loss(input, flat, -objective)
        loss = loss.view(target.shape) if self.reduction == "none" else loss
        return HierarchicalSoftmaxOutput(output.to(dtype).view(target.shape), loss.to(dtype))

    def log_prob(self, input: Tensor, candidates: Tensor | None = None) -> Tensor:
        """The log-probabilities of all words, in order of their ids, or of some.

        Of all words: all rows of the weight are used. Of candidates: the rows on the path of each,
        for each token; more of them than about V / ``hierarchy.expected_rows`` cost more than all
        words. Differentiable.

        Args:
            input: ``[N, in_features]``, ``[in_features]``, or with more leading dimensions.
            candidates: int64 words, ``[C]`` for all tokens alike or ``[N, C]`` (leading dimensions
                as in input) for each its own; or None, for all words.

        Returns:
            ``[N, V]`` or ``[N, C]`` (leading dimensions as in input), in input's dtype.

        Raises:
            ValueError: input's last dimension is not in_features, or candidates do not fit.
            TypeError: input and weight differ in dtype, or candidates are not int64.
            IndexError: a candidate is not in 0..V-1.
        """
        if candidates is None:
            every, dtype = self._log_prob(input)
            return every.to(dtype)
        self._check_input(input)
        lead = input.shape[:-1]
        if candidates.ndim == 0 or candidates.ndim > 1 and candidates.shape[:-1] != lead:
            raise ValueError(
                f"candidates has shape {tuple(candidates.shape)}; it must be [C], or input's "
                f"leading dimensions {tuple(lead)} and C"
            )
        check_words(candidates, "candidates", input, self.hierarchy.words)
        words = candidates.expand(*lead, -1)
        x = input.unsqueeze(-2).expand(*words.shape, -1)
        # -1 is no word: nothing is ignored.
        output, _, dtype = self._target_log_prob(x, words.reshape(-1), Training(-1))
        return output.view(words.shape).to(dtype)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable word: the exact argmax over all words, the first of equals.

        It is not the word that the most probable branch at every node leads to: a likely class may
        hold no likely word. 16-bit probabilities are compared before they are rounded.

        Args:
            input: as in :meth:`log_prob`.

        Returns:
            int64 words, of input's leading dimensions.
        """
        return self.topk(input, 1).words.squeeze(-1)

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k most probable words of all, exactly, from as few rows as that takes.

        What is below a node is no more probable than the node: nodes are taken in order of their
        probability until the k-th best word is more probable than the best node left. Confident
        models need few rows. Where a token would need so many that a product for all words is
        faster, its words are all scored: the answer is the same, and at most its last bits differ.

        Args:
            input: as in :meth:`log_prob`.
            k: how many, 1..V.

        Returns:
            A named tuple: ``log_prob``, in input's dtype, and ``words``, ``[N, k]``, the best first
            and of equals the one of lower id; ``rows`` ``[N]``, how many rows of the weight were
            evaluated for each token (with the reference backend, and on a GPU with Triton or for a
            k above 128: all). No gradients.

        Raises:
            ValueError: k is out of range, or as in :meth:`log_prob`.
        """
        self._check_input(input)
        k = integer(k, "k", 1, self.hierarchy.words, "the number of words")
        x, weight, bias, dtype = self._operands(input)
        log_p, words, rows = softmax_score.topk(
            x.reshape(-1, self.in_features), weight, bias, self._tree(), self.hierarchy.depth,
            self.hierarchy.root_rows, self.hierarchy.max_path_rows, k,
        )  # fmt: skip
        shape = input.shape[:-1]
        return TopK(log_p.to(dtype).view(*shape, k), words.view(*shape, k), rows.view(shape))

    def sample(
        self,
        input: Tensor,
        temperature: float = 1.0,
        *,
        per_level: bool = False,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """Draw a word for every token.

        At temperature 1 this goes down one path: it costs the rows on it. At another one,
        p(word)^(1/temperature) / sum, all words are needed; ``per_level=True`` divides the logits
        of every node by the temperature instead, at the cost of one path, which is another
        distribution: it keeps classes apart that a temperature of all words would mix.

        Args:
            input: as in :meth:`log_prob`.
            temperature: > 0.
            per_level: see above.
            generator: of the random numbers, on input's device. Same seed, same words.

        Returns:
            A named tuple: ``words``, int64, and ``log_prob``, in input's dtype: the log-probability
            of each in the distribution that it was drawn from. Both have input's leading
            dimensions. No gradients.

        Raises:
            ValueError: temperature is not finite and > 0, or as in :meth:`log_prob`.
        """
        self._check_input(input)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be finite and > 0")
        x, weight, bias, dtype = self._operands(input)
        x = x.reshape(-1, self.in_features)
        if temperature == 1 or per_level:
            uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
            words, log_p = softmax_score.draw(
                x, weight, bias, self._tree(), self.hierarchy.depth, self.hierarchy.root_rows,
                self.hierarchy.max_path_rows, uniform, 1 / temperature,
            )  # fmt: skip
        else:
            with torch.no_grad():
                every = (self._log_prob(input)[0] / temperature).log_softmax(-1)
                every = every.view(-1, self.hierarchy.words)
                words = torch.multinomial(every.exp(), 1, generator=generator)
                words, log_p = words.squeeze(1), every.gather(1, words).squeeze(1)
        return Sample(words.view(input.shape[:-1]), log_p.to(dtype).view(input.shape[:-1]))

    def extra_repr(self) -> str:
        """What ``repr`` shows: what differs from the defaults."""
        parts = [f"{self.in_features}, {self.hierarchy}, bias={self.bias is not None}"]
        defaults = {
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0,
            "z_loss": 0,
            "sparse_grad": False,
        }
        for name, default in defaults.items():
            if (value := getattr(self, name)) != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)

    @property
    def _smooths_words(self) -> bool:
        return self.label_smoothing > 0 and self.smooth_over == "words"

    @property
    def _training(self) -> Training:
        smoothing = 0.0 if self._smooths_words else self.label_smoothing
        return Training(self.ignore_index, float(smoothing), float(self.z_loss))

    def _target_log_prob(
        self, input: Tensor, target: Tensor, training: Training, sparse: bool = False
    ) -> tuple[Tensor, Tensor, torch.dtype]:
        """Log p and the objective ``[N]`` as computed, and the dtype to return."""
        x, weight, bias, dtype = self._operands(input, sparse)
        x, tree = x.reshape(-1, self.in_features), self._tree()
        if not sparse and softmax_flat.serves(self.hierarchy, x):
            return *softmax_flat.log_prob(x, weight, bias, target, tree.leaf_rank, training), dtype
        output, objective = target_log_prob(
            x,
            weight,
            bias,
            target,
            tree,
            self.hierarchy.max_path_rows,
            self.hierarchy.depth,
            training=training,
            sparse=sparse,
        )
        return output, objective, dtype

    def _loss(self, input: Tensor, target: Tensor, loss: Tensor) -> Tensor:
        """Smoothed over words, weighted and reduced, from that of every token ``[N]``."""
        live = target != self.ignore_index
        share = live.to(loss.dtype)
        weight = None if self.word_weight is None else self.word_weight.to(loss.dtype)
        if weight is not None:
            share = share * weight[torch.where(live, target, 0)]
            loss = loss * share
        if self._smooths_words:
            every = self._log_prob(input)[0].view(-1, self.hierarchy.words)
            mean = -(every if weight is None else every * weight).mean(1)
            e = self.label_smoothing
            loss = (1 - e) * loss + e * torch.where(live, mean, 0)
        return reduced(loss, share, self.reduction)

    def _log_prob(self, input: Tensor) -> tuple[Tensor, torch.dtype]:
        """Of all words, as computed, and the dtype to return."""
        self._check_input(input)
        x, weight, bias, dtype = self._operands(input)
        wide = softmax_score.log_prob(
            x.reshape(-1, self.in_features), weight, bias, self._tree(), self.hierarchy.depth
        )
        return wide.view(*input.shape[:-1], self.hierarchy.words), dtype
