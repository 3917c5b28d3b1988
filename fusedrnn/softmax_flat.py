"""The loss of a flat softmax in tiles of words: N x V logits are never in memory.

    z = x W^T + b,  lse = log sum_j exp z_j,  log p = z_target - lse
    dz_j = d ((1 - e) 1[j = target] + e / V - (1 + 2 c lse) p_j),  dW = dz^T x,  dx = dz W

d is the gradient of the token's objective, (1 - e) log p + e mean_j log p(j) - c lse^2. All tokens
meet all rows, so the products are torch's. Forward keeps two numbers a token, and backward makes
the logits of each tile anew: four products for three. Where the logits are few, the kernels of
``softmax_ops.py``, which keep them, are faster.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend, _native, softmax_reference
from ._second_order import differentiable
from ._trees import Tree
from .hierarchy import Hierarchy
from .reference import state_dtype
from .softmax_ops import Training, softmax_limits

_TILE = 1 << 20
"""Logits of a tile: 4 MB in float32. Twice and half as many took as long (docs/notebook-cpu.md)."""

_LEAST = 256
"""Words of a tile, however many tokens there are: fewer make no product of a good size."""

KEPT = 8 << 20
"""Bytes of logits from which on they are not kept for backward."""

_NUMBERS = "Tensor target, Tensor leaf_rank, int ignore_index, float label_smoothing, float z_loss"
_native.LIBRARY.define(
    f"flat_softmax_forward(Tensor input, Tensor weight, Tensor? bias, {_NUMBERS}) "
    "-> (Tensor output, Tensor objective, Tensor saved)"
)
_native.LIBRARY.define(
    f"flat_softmax_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, {_NUMBERS}, "
    "Tensor saved, bool need_input, bool need_weight, bool need_bias) "
    "-> (Tensor dinput, Tensor dweight, Tensor dbias)"
)


def serves(hierarchy: Hierarchy, input: Tensor) -> bool:
    """Whether this is a flat softmax with more logits than should be kept for backward."""
    if hierarchy.nodes > 1 or hierarchy.rows != hierarchy.words:
        return False
    device, dtype = input.device.type, input.dtype
    if _backend.choose(device, softmax_limits(device, dtype))[0] == "reference":
        return False
    return input.shape[0] * hierarchy.words * state_dtype(dtype).itemsize > KEPT


class _Tokens(NamedTuple):
    """The tokens of a call; those that are ignored have no features, whatever they were."""

    x: Tensor  # [N, H] in the dtype of the products
    row: Tensor  # [N] the target's; of ignored tokens 0
    live: Tensor  # [N] whether they are not ignored


class _Tile(NamedTuple):
    """Some rows of the weight, with the logits of all tokens."""

    rows: slice
    weight: Tensor  # [rows, H] in the dtype of the products
    logits: Tensor  # [N, rows] float32 or float64
    place: Tensor  # [N, 1] the target's row within the tile, or any other ...
    inside: Tensor  # [N] ... where this is False


def _operand_dtype(input: Tensor) -> torch.dtype:
    """That of products: GPUs multiply 16-bit numbers as they are and add them up in float32."""
    return input.dtype if input.is_cuda else state_dtype(input.dtype)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """In float32 or float64, or in the dtype of ``out``."""
    wide = state_dtype(a.dtype)
    if out is not None and out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    result = torch.mm(a, b) if a.dtype == wide else torch.mm(a, b, out_dtype=wide)
    return result if out is None else out.copy_(result)


def _tokens(input: Tensor, target: Tensor, leaf_rank: Tensor, ignore_index: int) -> _Tokens:
    live, words = target != ignore_index, len(leaf_rank)
    bad = live & ((target < 0) | (target >= words))
    if target.device.type == "cpu" and bool(bad.any()):
        place = int(bad.nonzero()[0])
        raise RuntimeError(
            f"fusedrnn: target[{place}] is {int(target[place])}; it must be in 0..{words - 1} or "
            f"{ignore_index}, the ignore_index"
        )
    x = torch.where(live.unsqueeze(1), input, 0).to(_operand_dtype(input))
    return _Tokens(x, torch.where(live, leaf_rank[torch.where(live, target, 0)], 0), live)


def _tiles(tokens: _Tokens, weight: Tensor, bias: Tensor | None) -> Iterator[_Tile]:
    N, V = len(tokens.x), len(weight)
    step = max(_LEAST, _TILE // max(N, 1))
    for begin in range(0, V, step):
        rows = slice(begin, min(begin + step, V))
        w = weight[rows].to(tokens.x.dtype)
        z = _product(tokens.x, w.T)
        if bias is not None:
            z += bias[rows]
        place = tokens.row - begin
        inside = (place >= 0) & (place < len(w))
        yield _Tile(rows, w, z, place.clamp(0, len(w) - 1).unsqueeze(1), inside)


def _finite(top: Tensor) -> Tensor:
    """A maximum to subtract: 0 where all logits so far are -infinity (words masked by a bias)."""
    return torch.where(top == -torch.inf, 0, top)


@torch.no_grad()
def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    leaf_rank: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log p and the objective ``[N]``, and, ``[2, N]``, the maximum and the log of the sum."""
    tokens = _tokens(input, target, leaf_rank, ignore_index)
    wide = {"dtype": state_dtype(input.dtype), "device": input.device}
    top = torch.full((len(input),), -torch.inf, **wide)
    total, of_target, shifted = torch.zeros(3, len(input), **wide).unbind()
    with torch.autocast(input.device.type, enabled=False):
        for tile in _tiles(tokens, weight, bias):
            z, before = tile.logits, _finite(top)
            of_target = torch.where(tile.inside, z.gather(1, tile.place).squeeze(1), of_target)
            highest = torch.maximum(top, z.amax(1))
            shift = _finite(highest)
            z -= shift.unsqueeze(1)
            if label_smoothing:  # of z - maximum, that it does not drown at large logits
                shifted = shifted + z.sum(1) + tile.rows.start * (before - shift)
            total = total * (top - shift).exp() + z.exp_().sum(1)
            top = highest
    # (z - M) - log S, not z - (M + log S): the second rounds log S away at large logits.
    log_sum = total.log()
    output = objective = torch.where(tokens.live, (of_target - top) - log_sum, 0)
    if label_smoothing:
        mean = shifted / len(weight) - log_sum
        objective = (1 - label_smoothing) * objective + label_smoothing * mean
    if z_loss:
        objective = objective - z_loss * (top + log_sum).square()
    objective = torch.where(tokens.live, objective, 0)
    return output, objective, torch.stack([top, log_sum])


@torch.no_grad()
def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    leaf_rank: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    saved: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = _tokens(input, target, leaf_rank, ignore_index)
    (N, H), V = input.shape, len(weight)
    dinput = saved.new_zeros(N if need_input else 0, H)
    dweight = torch.empty_like(weight) if need_weight else weight.new_empty(0, H)
    dbias = weight.new_empty(V if need_bias else 0)
    top, log_sum = saved.unsqueeze(2)
    d = torch.where(tokens.live, grad, 0).unsqueeze(1)
    with torch.autocast(input.device.type, enabled=False):
        for rows, w, dz, place, inside in _tiles(tokens, weight, bias):
            dz.sub_(top).sub_(log_sum).exp_().mul_(-d * (1 + 2 * z_loss * (top + log_sum)))
            if label_smoothing:
                dz += d * (label_smoothing / V)
            own = torch.where(inside.unsqueeze(1), (1 - label_smoothing) * d, 0)
            dz.scatter_(1, place, dz.gather(1, place) + own)
            if need_bias:
                dbias[rows] = dz.sum(0)
            dz = dz.to(w.dtype)
            if need_weight:
                _product(dz.T, tokens.x, out=dweight[rows])
            if need_input:
                dinput += _product(dz, w)
    return dinput.to(input.dtype), dweight, dbias


for _name, _of in (("forward", _forward), ("backward", _backward)):
    _native.LIBRARY.impl(f"flat_softmax_{_name}", _of, "CompositeExplicitAutograd")


@torch.library.register_fake("fusedrnn::flat_softmax_forward")
def _fake_forward(input: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    N, wide = input.shape[0], state_dtype(input.dtype)
    return tuple(input.new_empty(size, dtype=wide) for size in ((N,), (N,), (2, N)))


@torch.library.register_fake("fusedrnn::flat_softmax_backward")
def _fake_backward(
    grad: Tensor, input: Tensor, weight: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    (N, H), V = input.shape, weight.shape[0]
    need_input, need_weight, need_bias = rest[-3:]
    return (
        input.new_empty(N if need_input else 0, H),
        weight.new_empty(V if need_weight else 0, H),
        weight.new_empty(V if need_bias else 0),
    )


class FlatLogProb(torch.autograd.Function):
    """The ops with gradients of input, weight and bias: log p, and the objective if it differs."""

    @staticmethod
    def forward(
        ctx: object,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        leaf_rank: Tensor,
        training: Training,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the forward op, and keep what each token's probabilities are made from."""
        operands = (input, weight, bias, target, leaf_rank)
        output, objective, saved = torch.ops.fusedrnn.flat_softmax_forward(*operands, *training)
        ctx.training = training
        ctx.save_for_backward(*operands, saved)
        if training.plain:
            return output
        ctx.mark_non_differentiable(output)
        return output, objective

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward op; it computes only what is needed."""
        *leaves, target, leaf_rank, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]

        def kernel() -> tuple[Tensor | None, ...]:
            found = torch.ops.fusedrnn.flat_softmax_backward(
                grads[-1], *leaves, target, leaf_rank, *ctx.training, saved, *needs
            )
            return tuple(g if need else None for g, need in zip(found, needs, strict=True))

        def reference(*leaves: Tensor | None) -> Tensor:
            ends = leaf_rank.new_tensor([0, len(leaf_rank)])
            ranks = torch.arange(len(leaf_rank), device=ends.device)
            tree = Tree(leaf_rank, ends, ends, ranks, torch.full_like(ranks, -1))
            return softmax_reference.target_log_prob(*leaves, target, tree, 1, *ctx.training)[1]

        return *differentiable(kernel, reference, grads[-1], *leaves), *[None] * 3


def log_prob(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    leaf_rank: Tensor,
    training: Training,
) -> tuple[Tensor, Tensor]:
    """As ``softmax_ops.target_log_prob`` of a tree of one node, with a row for each word."""
    operands = (input, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        result = FlatLogProb.apply(*operands, target, leaf_rank, training)
        return (result, result) if training.plain else result
    output, objective, _ = torch.ops.fusedrnn.flat_softmax_forward(
        *operands, target, leaf_rank, *training
    )
    return output, objective
