"""Ops that score all words or search among them: schemas, fake kernels, autograd, the choice.

``hierarchical_log_softmax``: from the logits of all rows, which are one product, to the
log-probabilities of all words. ``hierarchical_softmax_search``: the most probable words, or words
drawn at random, from the rows of few nodes. Sizes are as in ``softmax_ops.py``.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _backend, _native, softmax_reference
from ._trees import Tree
from .softmax_ops import TREE, softmax_limits

_native.LIBRARY.define(f"hierarchical_log_softmax.native(Tensor logits, {TREE}) -> Tensor")
_native.LIBRARY.define(
    f"hierarchical_log_softmax.native_out(Tensor logits, {TREE}, *, Tensor(a!) out) -> ()"
)
_native.LIBRARY.define(
    f"hierarchical_log_softmax_backward.native(Tensor grad, Tensor logits, {TREE}) -> Tensor"
)
_native.LIBRARY.define(
    "hierarchical_softmax_search.native(Tensor root, Tensor input, Tensor weight, Tensor? bias, "
    f"Tensor? uniform, {TREE}, int k, float scale) -> (Tensor log_prob, Tensor words, Tensor rows)"
)


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.native")
def _fake_log_softmax(logits: Tensor, leaf_rank: Tensor, *rest: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], leaf_rank.shape[0])


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax_backward.native")
def _fake_log_softmax_backward(grad: Tensor, logits: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("fusedrnn::hierarchical_softmax_search.native")
def _fake_search(
    root: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    uniform: Tensor | None,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
    k: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    N = input.shape[0]
    return root.new_empty(N, k), leaf_rank.new_empty(N, k), leaf_rank.new_empty(N)


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.native_out")
def _fake_log_softmax_out(logits: Tensor, *rest: Tensor, out: Tensor) -> None:
    return None


class LogSoftmax(torch.autograd.Function):
    """The native op with the gradient of the logits."""

    @staticmethod
    def forward(ctx: object, logits: Tensor, *tree: Tensor) -> Tensor:
        """Keep the logits for backward."""
        ctx.save_for_backward(logits, *tree)
        return torch.ops.fusedrnn.hierarchical_log_softmax.native(logits, *tree)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward op."""
        op = torch.ops.fusedrnn.hierarchical_log_softmax_backward.native
        return op(grad, *ctx.saved_tensors), *[None] * len(Tree._fields)


def score_limits(device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each backend, why it cannot score all words on such tensors, or None.

    Args:
        device: the type of device the tensors are on, as ``torch.device.type``.
        dtype: that of input and weight.
    """
    triton = "no Triton kernel that scores all words is written yet"
    return softmax_limits(device, dtype) | {"triton": triton}


def search_limits(device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """Likewise of ``topk`` and ``sample``. The reference scores all words, by any backend."""
    gpu = "no GPU kernel that searches or samples is written yet: all words are scored"
    return softmax_limits(device, dtype) | {"cuda": gpu, "triton": gpu}


def scoring(input: Tensor) -> str:
    """The backend that scores all words for such an input."""
    device = input.device.type
    return _backend.choose(device, score_limits(device, input.dtype))[0]


def _searching(input: Tensor) -> str:
    device = input.device.type
    return _backend.choose(device, search_limits(device, input.dtype))[0]


def log_prob_of_logits(logits: Tensor, tree: Tree, depth: int) -> Tensor:
    """From the logits of all rows ``[N, R]``, float32 or float64, to ``[N, V]``."""
    if scoring(logits) == "reference":
        return softmax_reference.log_prob_of_logits(logits, tree, depth)
    if torch.is_grad_enabled() and logits.requires_grad:
        return LogSoftmax.apply(logits, *tree)
    return torch.ops.fusedrnn.hierarchical_log_softmax.native(logits, *tree)


def log_prob(input: Tensor, weight: Tensor, bias: Tensor | None, tree: Tree, depth: int) -> Tensor:
    """The log-probabilities of all words. See ``softmax_ops.target_log_prob`` for the arguments.

    Returns:
        ``[N, V]``, in order of word ids: float64 for float64 input, else float32.
    """
    return log_prob_of_logits(softmax_reference.logits(input, weight, bias), tree, depth)


def _search(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    root_rows: int,
    k: int,
    uniform: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    root_bias = None if bias is None else bias[:root_rows]
    root = softmax_reference.logits(input, weight[:root_rows], root_bias)
    return torch.ops.fusedrnn.hierarchical_softmax_search.native(
        root, input, weight, bias, uniform, *tree, k, scale
    )


@torch.no_grad()
def topk(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    depth: int,
    root_rows: int,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable words, of equals the first: their log p and ids ``[N, k]``.

    The third, ``[N]``, is how many rows of the weight were needed.
    """
    if _searching(input) == "reference":
        every = log_prob(input, weight, bias, tree, depth)
        rows = tree.leaf_rank.new_full((len(input),), weight.shape[0])
        return *softmax_reference.topk(every, k), rows
    return _search(input, weight, bias, tree, root_rows, k, None, 1.0)


@torch.no_grad()
def draw(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    depth: int,
    root_rows: int,
    uniform: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A word for each of ``uniform`` ``[N]``, float64 in [0, 1), and its log-probability.

    All logits are multiplied by ``scale``.
    """
    if _searching(input) == "reference":
        z = scale * softmax_reference.logits(input, weight, bias)
        every = log_prob_of_logits(z, tree, depth)
        words = softmax_reference.draw(every, tree, uniform)
        return words, every.gather(1, words.unsqueeze(1)).squeeze(1)
    log_p, words, _ = _search(input, weight, bias, tree, root_rows, 1, uniform, scale)
    return words.squeeze(1), log_p.squeeze(1)
