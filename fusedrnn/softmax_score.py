"""Ops that score all words or search among them: schemas, fake kernels, autograd, the choice.

``hierarchical_log_softmax``: from the logits of all rows, which are one product, to the
log-probabilities of all words. ``hierarchical_softmax_search``: the most probable words, or words
drawn at random, from the rows of few nodes. Sizes are as in ``softmax_ops.py``.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _backend, _native, softmax_reference
from ._second_order import differentiable
from ._trees import Tree
from .reference import state_dtype
from .softmax_ops import TREE, softmax_limits
from .triton import softmax_whole  # noqa: F401  registers its ops

# The overload that has its kernels already comes last: torch unregisters in this order, and an
# overload without a schema among others of its name is an assertion at exit (torch 2.13).
_native.LIBRARY.define(
    f"hierarchical_log_softmax.native_out(Tensor logits, {TREE}, *, Tensor(a!) out) -> ()"
)
_native.LIBRARY.define(
    f"hierarchical_log_softmax.native_in_place(Tensor root, {TREE}, *, Tensor(a!) out) -> ()"
)
_native.LIBRARY.define(
    "word_logits(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> ()"
)
for _overload in ("native", "triton"):
    _native.LIBRARY.define(f"hierarchical_log_softmax.{_overload}(Tensor logits, {TREE}) -> Tensor")
    _native.LIBRARY.define(
        f"hierarchical_log_softmax_backward.{_overload}(Tensor grad, Tensor logits, {TREE}) "
        "-> Tensor"
    )
_native.LIBRARY.define(
    "hierarchical_softmax_search.native(Tensor root, Tensor input, Tensor weight, Tensor? bias, "
    f"Tensor? uniform, {TREE}, int path_rows, int k, int budget, float scale) "
    "-> (Tensor log_prob, Tensor words, Tensor rows)"
)
_native.LIBRARY.define(
    f"hierarchical_softmax_topk(Tensor input, Tensor weight, Tensor? bias, {TREE}, int root_rows, "
    "int path_rows, int k) -> (Tensor log_prob, Tensor words, Tensor rows)"
)

_BLOCK = 64
"""Tokens whose words are all scored at a time: 25 MB of logits at V = 100,000; more fell out of the
cache that both cores share, fewer made the products slower (docs/notebook-cpu.md)."""

_FEW = 8
"""Tokens below which a product is torch's: ``kFewRows`` in csrc/ops/product.h."""


MOST_ON_GPU = 128
"""The k up to which a GPU searches: ``kMostBest`` in csrc/softmax.h. All words are scored above."""


def _budget(rows: int, tokens: int, device: str = "cpu") -> int:
    """Rows below the root that a search may cost before a product scores all words instead.

    As many as take as long as the token's share of the product, so that both together take at most
    twice as long as the better one. A product reads the weight once for all tokens, and computes a
    row in a 16th of what reading it in a search takes (docs/notebook-cpu.md, Search). Of more
    tokens than those that try first, up to four times as many: if it is in vain, it is for these.
    On a GPU a token has one SM, which reads a 64th of what all of them do; a model, nothing of it
    is measured.
    """
    if device != "cpu":
        return max(1 << 12, rows // 64)
    share = rows // 16 + rows // max(tokens, 1)
    return max(1 << 8, share * min(max(tokens, _FEW), 4 * _FEW) // _FEW)


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.triton")
@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.native")
def _fake_log_softmax(logits: Tensor, leaf_rank: Tensor, *rest: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], leaf_rank.shape[0])


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax_backward.triton")
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
    path_rows: int,
    k: int,
    budget: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    N = input.shape[0]
    return root.new_empty(N, k), leaf_rank.new_empty(N, k), leaf_rank.new_empty(N)


@torch.library.register_fake("fusedrnn::hierarchical_softmax_topk")
def _fake_topk(
    input: Tensor, weight: Tensor, bias: Tensor | None, leaf_rank: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    N, k, wide = input.shape[0], rest[-1], state_dtype(input.dtype)
    words = leaf_rank.new_empty(N, k)
    return input.new_empty(N, k, dtype=wide), words, leaf_rank.new_empty(N)


@torch.library.register_fake("fusedrnn::word_logits")
def _fake_word_logits(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    return None


@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.native_in_place")
@torch.library.register_fake("fusedrnn::hierarchical_log_softmax.native_out")
def _fake_log_softmax_out(logits: Tensor, *rest: Tensor, out: Tensor) -> None:
    return None


def _op(name: str, backend: str) -> torch._ops.OpOverload:
    packet = getattr(torch.ops.fusedrnn, name)
    return packet.triton if backend == "triton" else packet.native


class LogSoftmax(torch.autograd.Function):
    """The op of a backend with the gradient of the logits."""

    @staticmethod
    def forward(ctx: object, backend: str, logits: Tensor, depth: int, *tree: Tensor) -> Tensor:
        """Keep the logits for backward."""
        ctx.backend, ctx.depth = backend, depth
        ctx.save_for_backward(logits, *tree)
        return _op("hierarchical_log_softmax", backend)(logits, *tree)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward op."""
        logits, *tree = ctx.saved_tensors

        def kernel() -> tuple[Tensor]:
            op = _op("hierarchical_log_softmax_backward", ctx.backend)
            return (op(grad, logits, *tree),)

        def reference(logits: Tensor) -> Tensor:
            return softmax_reference.log_prob_of_logits(logits, Tree(*tree), ctx.depth)

        return None, *differentiable(kernel, reference, grad, logits), *[None] * (1 + len(tree))


def score_limits(device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each backend, why it cannot score all words on such tensors, or None.

    Args:
        device: the type of device the tensors are on, as ``torch.device.type``.
        dtype: that of input and weight.
    """
    return softmax_limits(device, dtype)


def search_limits(device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """Likewise of ``topk`` and ``sample``. The reference scores all words, by any backend."""
    triton = "no Triton kernel that searches or samples is written: all words are scored"
    return softmax_limits(device, dtype) | {"triton": triton}


def scoring(input: Tensor) -> str:
    """The backend that scores all words for such an input."""
    device = input.device.type
    return _backend.choose(device, score_limits(device, input.dtype))[0]


def _searching(input: Tensor) -> str:
    device = input.device.type
    return _backend.choose(device, search_limits(device, input.dtype))[0]


def log_prob_of_logits(logits: Tensor, tree: Tree, depth: int) -> Tensor:
    """From the logits of all rows ``[N, R]``, float32 or float64, to ``[N, V]``."""
    backend = scoring(logits)
    if backend == "reference":
        return softmax_reference.log_prob_of_logits(logits, tree, depth)
    if torch.is_grad_enabled() and logits.requires_grad:
        return LogSoftmax.apply(backend, logits, depth, *tree)
    return _op("hierarchical_log_softmax", backend)(logits, *tree)


class Part(NamedTuple):
    """Some of the rows whose logits are wanted."""

    weight: Tensor  # [rows, H]
    bias: Tensor | None = None  # [rows]
    project: Tensor | None = None  # [H, I], by which the input is multiplied before


def log_prob_in_blocks(
    input: Tensor, parts: list[Part], tree: Tree, places: list[int] | None = None
) -> Tensor:
    """Of all words, on the CPU, without gradients: the logits of a few tokens stay in the caches.

    Args:
        input: ``[N, I]``.
        parts: all rows of the tree in their order, weights in float32 or float64.
        tree: over the rows.
        places: where words lie in the order of rows, and those of each part but the first, the
            root, are leaves of one node: the first word of each of these parts. Their logits are
            then where their log-probabilities will be.

    Returns:
        ``[N, V]`` of the weights' dtype.
    """
    like, op = parts[0].weight, torch.ops.fusedrnn.hierarchical_log_softmax
    rows = len(like) if places else sum(len(part.weight) for part in parts)
    # New pages for both were a fifth of the call (docs/notebook-cpu.md).
    out, z = (
        torch.ops.fusedrnn.empty_kept(like, *size)
        for size in ((len(input), len(tree.leaf_rank)), (min(len(input), _BLOCK), rows))
    )
    with torch.autocast(input.device.type, enabled=False):
        for block, into in zip(input.split(_BLOCK), out.split(_BLOCK), strict=True):
            row, logits = 0, z[: len(block)]
            for i, (weight, bias, project) in enumerate(parts):
                x = block if project is None else linear(block, project)
                to, at = (into, places[i - 1]) if i and places else (logits, row)
                columns = to[:, at : at + len(weight)]
                torch.ops.fusedrnn.word_logits(x.to(like.dtype), weight, bias, out=columns)
                row += len(weight)
            (op.native_in_place if places else op.native_out)(logits, *tree, out=into)
    return out


def _part(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Part:
    return Part(weight.to(dtype), None if bias is None else bias.to(dtype))


def without_gradients() -> bool:
    """Whether a call's tensors are read by nobody's backward, nor traced."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def log_prob(input: Tensor, weight: Tensor, bias: Tensor | None, tree: Tree, depth: int) -> Tensor:
    """The log-probabilities of all words. See ``softmax_ops.target_log_prob`` for the arguments.

    Returns:
        ``[N, V]``, in order of word ids: float64 for float64 input, else float32.
    """
    if without_gradients() and len(input) >= _FEW and scoring(input) == "cpu":
        part = _part(weight, bias, state_dtype(input.dtype))
        return log_prob_in_blocks(input, [part], tree)
    return log_prob_of_logits(softmax_reference.logits(input, weight, bias), tree, depth)


def _search(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    root_rows: int,
    path_rows: int,
    k: int,
    *,
    budget: int = 0,
    uniform: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    root_bias = None if bias is None else bias[:root_rows]
    root = softmax_reference.logits(input, weight[:root_rows], root_bias)
    return torch.ops.fusedrnn.hierarchical_softmax_search.native(
        root, input, weight, bias, uniform, *tree, path_rows, k, budget, scale
    )


@torch.no_grad()
def _search_or_score(
    input: Tensor, weight: Tensor, bias: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The op: a search for each token, and all words where that would take longer.

    On a GPU the search scores them by itself, so that the host need not wait to learn of whom.
    """
    *tree, root_rows, path_rows, k = rest
    tree, device = Tree(*tree), input.device.type
    budget = _budget(len(weight), len(input), device)

    def search(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _search(tokens, weight, bias, tree, root_rows, path_rows, k, budget=budget)

    if device != "cpu":
        return search(input)
    # Where most of the first few search in vain, the others do not try.
    log_p, words, rows = search(input[:_FEW])
    if len(input) > _FEW:
        if 2 * int((rows < 0).sum()) > _FEW:
            size = len(input) - _FEW, k
            rest = log_p.new_empty(size), words.new_empty(size), rows.new_full(size[:1], -1)
        else:
            rest = search(input[_FEW:])
        log_p, words, rows = map(torch.cat, zip((log_p, words, rows), rest, strict=True))
    part = None
    for tokens in (rows < 0).nonzero().squeeze(1).split(_BLOCK):
        part = part or _part(weight, bias, log_p.dtype)
        every = log_prob_in_blocks(input[tokens], [part], tree)
        log_p[tokens], words[tokens] = _largest(every, k)
        rows[tokens] = len(weight)
    return log_p, words, rows


_native.LIBRARY.impl("hierarchical_softmax_topk", _search_or_score, "CompositeExplicitAutograd")


def _largest(every: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``softmax_reference.topk``, without sorting all words."""
    values, words = every.topk(k, 1)
    # Of equals torch.topk takes any: the first, where some were left out, and in order.
    last = values[:, -1:]
    left_out = (every >= last).sum(1) != k  # also of NaN, which is above all
    words = words.sort(1).values
    values, order = every.gather(1, words).sort(dim=1, descending=True, stable=True)
    words = words.gather(1, order)
    if left_out.any():
        values[left_out], words[left_out] = softmax_reference.topk(every[left_out], k)
    return values, words


@torch.no_grad()
def topk(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    depth: int,
    root_rows: int,
    path_rows: int,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable words, of equals the first: their log p and ids ``[N, k]``.

    The third, ``[N]``, is how many rows of the weight were needed: all, where so many nodes are
    likely that a product for all words is faster than a search.
    """
    backend = _searching(input)
    if backend == "reference" or (backend == "cuda" and k > MOST_ON_GPU):
        every = log_prob(input, weight, bias, tree, depth)
        rows = tree.leaf_rank.new_full((len(input),), weight.shape[0])
        return *softmax_reference.topk(every, k), rows
    if torch.compiler.is_compiling():
        op = torch.ops.fusedrnn.hierarchical_softmax_topk
        return op(input, weight, bias, *tree, root_rows, path_rows, k)
    return _search_or_score(input, weight, bias, *tree, root_rows, path_rows, k)


@torch.no_grad()
def draw(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tree: Tree,
    depth: int,
    root_rows: int,
    path_rows: int,
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
    log_p, words, _ = _search(
        input, weight, bias, tree, root_rows, path_rows, 1, uniform=uniform, scale=scale
    )
    return words.squeeze(1), log_p.squeeze(1)
