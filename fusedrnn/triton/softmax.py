"""The Triton backend of the hierarchical softmax: arguments checked, kernels launched.

Importing this registers the ops' implementations; triton itself is imported by the first call.
The plan is that of the CUDA kernels (``SoftmaxGpuPlan`` in csrc/softmax.h); what of it is sorting
and summing, torch does. Nothing waits for the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _native, _precision
from .._trees import Tree
from ..reference import state_dtype
from . import plan as planner
from ._call import on

TOKENS = 32  # of a block
ROWS = 64  # of a tile of logits
COLUMNS = 64
WEIGHT_ROWS = 32  # of a tile of their gradient
SHARES = 32  # programs for the rows that one block of tokens meets: as in csrc/cuda
COLUMNS_OF_PATHS = 256


def plan_size(N: int, nodes: int, depth: int) -> int:
    """How many int32 the plan is: SoftmaxGpuPlan::size."""
    return N * (2 + 3 * depth) + 3 * nodes


@dataclass(frozen=True)
class _Plan:
    """Views into the plan: SoftmaxGpuPlan."""

    order: Tensor
    rank: Tensor
    path: Tensor
    branch: Tensor
    prefix: Tensor
    begin: Tensor
    end: Tensor
    column: Tensor
    depth: int

    @staticmethod
    def of(plan: Tensor, N: int, nodes: int, depth: int) -> "_Plan":
        pairs = N * depth
        return _Plan(*plan.split([N, N, pairs, pairs, pairs, nodes, nodes, nodes]), depth)

    @property
    def steps(self) -> int:
        """Of a search among the (token, level) pairs of a block."""
        return (TOKENS * self.depth).bit_length()


def _constants(like: Tensor, **blocks: int) -> dict[str, Any]:
    """What every product takes, ``blocks`` among them; BK fits into shared memory on any GPU."""
    import triton.language as tl

    dtype = like.dtype
    return {
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BK": 16 if dtype == torch.float64 else 32,
        "PRECISION": _precision.of_output(dtype, like.device),
        "UPCAST": planner.INTERPRETED and dtype == torch.bfloat16,
        "num_warps": 4,
        "num_stages": 2,
        **blocks,
    }


def checked(input: Tensor, name: str, t: Tensor, size: tuple[int, ...], dtype: Any) -> Tensor:
    """The tensor, contiguous, if its shape, dtype and device fit."""
    if tuple(t.shape) != size:
        raise RuntimeError(f"fusedrnn: {name} has shape {list(t.shape)}, must be {list(size)}")
    if t.dtype != dtype or t.device != input.device:
        raise RuntimeError(
            f"fusedrnn: {name} is {t.dtype} on {t.device}, must be {dtype} on {input.device}"
        )
    return t.contiguous()


def checked_tree(input: Tensor, tree: Tree) -> Tree:
    """The tree, contiguous, if its shapes, dtypes and devices fit."""
    V, M = len(tree.leaf_rank), len(tree.node_rows) - 1
    sizes = Tree((V,), (M + 1,), (M + 1,), (V + M - 1,), (V + M - 1,))
    return Tree(
        *(
            checked(input, name, tensor, size, torch.int64)
            for name, tensor, size in zip(Tree._fields, tree, sizes, strict=True)
        )
    )


def _operands(input: Tensor, weight: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tree]:
    """Input, weight and tree, checked."""
    if input.dim() != 2 or weight.dim() != 2:
        raise RuntimeError("fusedrnn: input must be [N, H] and weight [rows, H]")
    weight = checked(input, "weight", weight, (len(weight), input.shape[1]), input.dtype)
    return input.contiguous(), weight, checked_tree(input, tree)


def _make_plan(target: Tensor, ignored: int, tree: Tree, depth: int) -> Tensor:
    """Sort the tokens by leaf, send each down its path, and count the rows that blocks meet."""
    from .softmax_kernels import softmax_walk

    N, V, M = len(target), len(tree.leaf_rank), len(tree.node_rows) - 1
    plan = torch.zeros(plan_size(N, M, depth), dtype=torch.int32, device=target.device)
    if N == 0:
        return plan
    p = _Plan.of(plan, N, M, depth)
    is_ignored = target == ignored
    # gather asserts on the device that targets are words.
    leaf = tree.leaf_rank.gather(0, torch.where(is_ignored, 0, target))
    rank, order = torch.where(is_ignored, V, leaf).sort(stable=True)
    p.rank.copy_(rank)
    p.order.copy_(order)
    softmax_walk[(-(-N // TOKENS),)](
        *(p.rank, p.path, p.branch, p.begin, p.end, p.column),
        *(tree.node_rows, tree.node_branches, tree.branch_leaf, tree.branch_node),
        *(N, V, depth, len(tree.branch_leaf).bit_length()),
        BT=TOKENS,
    )
    path = p.path.view(N, depth)
    new = path >= 0
    new[1:] &= (path[1:] != path[:-1]) | (torch.arange(1, N, device=path.device) % TOKENS == 0)[
        :, None
    ]
    rows = torch.where(new, tree.node_rows.diff()[path.clamp_min(0)], 0)
    blocks = -(-N // TOKENS)
    padded = rows.new_zeros(blocks * TOKENS, depth)
    padded[:N] = rows
    p.prefix.copy_(padded.view(blocks, -1).cumsum(1).view(-1)[: N * depth])
    return plan


def softmax_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
    path_rows: int,
    depth: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fusedrnn::hierarchical_softmax_forward.triton``."""
    tree = Tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node)
    input, weight, tree = _operands(input, weight, tree)
    N, R, wide = len(input), len(weight), state_dtype(input.dtype)
    target = checked(input, "target", target, (N,), torch.int64)
    if bias is not None:
        bias = checked(input, "bias", bias, (R,), input.dtype)
    plain = label_smoothing == 0 and z_loss == 0
    output = input.new_empty(N, dtype=wide)
    objective = input.new_empty(0 if plain else N, dtype=wide)
    saved = input.new_empty(N, path_rows, dtype=wide)
    with on(input.device):
        plan = _make_plan(target, ignore_index, tree, depth)
        if N > 0:
            p = _Plan.of(plan, N, len(node_rows) - 1, depth)
            _score(p, input, weight, bias, tree, saved)
            goal = None if plain else objective
            _descend(p, saved, output, goal, tree, label_smoothing, z_loss)
    if not save:
        return output, objective, saved.new_empty(0, path_rows), plan.new_empty(0)
    return output, objective, saved, plan


def _score(
    p: _Plan, input: Tensor, weight: Tensor, bias: Tensor | None, tree: Tree, saved: Tensor
) -> None:
    """The logits of all rows on the tokens' paths."""
    from .softmax_kernels import softmax_logits

    (N, H), path_rows = input.shape, saved.shape[1]
    shares = min(SHARES, -(-min(len(weight), TOKENS * path_rows) // ROWS))
    softmax_logits[(-(-N // TOKENS) * shares,)](
        *(input, weight, bias, saved, p.order, p.path, p.prefix, p.begin, p.end, p.column),
        *(tree.node_rows, N, H, p.depth, path_rows, shares, p.steps),
        **_constants(input, BT=TOKENS, BR=ROWS),
    )


def _descend(
    p: _Plan,
    saved: Tensor,
    output: Tensor,
    objective: Tensor | None,
    tree: Tree,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """log p and the objective; logits become derivatives."""
    import triton.language as tl

    from .softmax_kernels import softmax_paths

    softmax_paths[(len(output),)](
        *(saved, output, objective, p.order, p.path, p.branch, p.column, tree.node_rows),
        *(p.depth, saved.shape[1]),
        SMOOTHING=label_smoothing,
        Z_LOSS=z_loss,
        ACC=tl.float64 if output.dtype == torch.float64 else tl.float32,
        BC=COLUMNS_OF_PATHS,
    )


def softmax_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
    saved: Tensor,
    plan: Tensor,
    ignore_index: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    sparse: bool,
    met: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fusedrnn::hierarchical_softmax_backward.triton``."""
    if sparse != (met is not None):
        raise RuntimeError(
            "fusedrnn: on a GPU sparse gradients need their rows, and dense ones have none"
        )
    tree = Tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node)
    input, weight, tree = _operands(input, weight, tree)
    (N, H), wide = input.shape, state_dtype(input.dtype)
    R = len(weight) if met is None else len(met)
    M = len(node_rows) - 1
    grad = checked(input, "grad", grad, (N,), wide)
    saved = checked(input, "saved", saved, (N, saved.shape[-1]), wide)
    depth = 1 if N == 0 else (len(plan) - 3 * M - 2 * N) // (3 * N)
    plan = checked(input, "plan", plan, (plan_size(N, M, depth),), torch.int32)
    p = _Plan.of(plan, N, M, depth)
    dinput = input.new_empty(N if need_input else 0, H)
    dweight = weight.new_empty(R if need_weight else 0, H)
    dbias = weight.new_empty(R if need_bias else 0)
    with on(input.device):
        if dinput.numel():
            _input_grad(p, grad, weight, saved, dinput, tree)
        if dweight.numel() or dbias.numel():
            given = [t if t.numel() else None for t in (dweight, dbias)]
            _weight_grad(p, grad, input, saved, *given, tree, len(weight), met)
    return dinput, dweight, dbias, target.new_empty(0)


def _input_grad(
    p: _Plan, grad: Tensor, weight: Tensor, saved: Tensor, dinput: Tensor, tree: Tree
) -> None:
    from .softmax_kernels import softmax_input_grad

    N, H = dinput.shape
    softmax_input_grad[(-(-N // TOKENS) * -(-H // COLUMNS),)](
        *(grad, weight, saved, dinput, p.order, p.rank, p.path, p.prefix, p.begin, p.end),
        *(p.column, tree.node_rows, N, len(tree.leaf_rank), H, p.depth, saved.shape[1], p.steps),
        **_constants(weight, BT=TOKENS, BH=COLUMNS),
    )


def _weight_grad(
    p: _Plan,
    grad: Tensor,
    input: Tensor,
    saved: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
    tree: Tree,
    R: int,
    met: Tensor | None,
) -> None:
    from .softmax_kernels import softmax_weight_grad

    H = input.shape[1]
    nodes = torch.arange(len(tree.node_rows) - 1, device=input.device)
    owner = nodes.repeat_interleave(tree.node_rows.diff(), output_size=R)
    if met is not None:
        R = len(met)
    across = 1 if dweight is None else -(-H // COLUMNS)
    softmax_weight_grad[(-(-R // WEIGHT_ROWS) * across,)](
        *(grad, input, saved, dweight, dbias, p.order, p.begin, p.end, p.column),
        *(tree.node_rows, owner, met, R, H, saved.shape[1]),
        **_constants(input, BR=WEIGHT_ROWS, BH=COLUMNS),
    )


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("hierarchical_softmax_forward.triton", softmax_forward, _key)
    _native.LIBRARY.impl("hierarchical_softmax_backward.triton", softmax_backward, _key)
