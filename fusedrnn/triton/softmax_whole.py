"""The Triton backend of the log-probabilities of all words: arguments checked, kernels launched.

Importing this registers the ops' implementations. Nothing waits for the device.
"""

from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._trees import Tree
from ..reference import state_dtype
from ._call import on
from .softmax import checked, checked_tree

BRANCHES = 256  # of a block
NODES = 512  # of a block whose log-probabilities are summed up together
TILE = 1024  # logits of some nodes


def _next_power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _tiles(M: int, R: int) -> dict[str, int]:
    """Nodes and columns of a tile: small nodes many at a time, one large node alone."""
    columns = min(64, _next_power(-(-R // M)))
    nodes = min(_next_power(M), TILE // columns)
    return {"SN": nodes, "SC": TILE // nodes, "BN": NODES, "num_warps": 4}


def _programs(N: int, M: int) -> int:
    """Eight an SM of the largest GPUs, fewer where their scratch memory would be too much."""
    return min(N, max(148, min(1184, (1 << 26) // (3 * M))))


def _constants(like: Tensor, M: int, R: int) -> dict[str, Any]:
    import triton.language as tl

    return {"ACC": tl.float64 if like.dtype == torch.float64 else tl.float32, **_tiles(M, R)}


def _links(tree: Tree, R: int) -> tuple[Tensor, ...]:
    """The tree seen from below, and from its rows: see the kernels' file."""
    from .softmax_whole_kernels import softmax_links

    V, M, E = len(tree.leaf_rank), len(tree.node_rows) - 1, len(tree.branch_node)
    links = tuple(tree.leaf_rank.new_empty(n, dtype=torch.int32) for n in (M, M, R, R, V))
    softmax_links[(-(-E // BRANCHES),)](
        *links,
        *(tree.leaf_rank, tree.node_rows, tree.node_branches, tree.branch_node),
        *(V, M, E, (M + 1).bit_length()),
        BE=BRANCHES,
    )
    return links


def _ends(tree: Tree) -> Tensor:
    """One past the last node below each."""
    from .softmax_whole_kernels import softmax_ends

    M = len(tree.node_rows) - 1
    end = tree.node_rows.new_empty(M, dtype=torch.int32)
    low = tree.branch_leaf[tree.node_branches[:-1]]
    softmax_ends[(-(-M // BRANCHES),)](
        *(end, low, tree.node_branches, tree.branch_leaf, tree.branch_node, M, M.bit_length()),
        BE=BRANCHES,
    )
    return end


def _operands(logits: Tensor, tree: Tree) -> tuple[Tensor, Tree]:
    """Both, checked."""
    if logits.dim() != 2:
        raise RuntimeError("fusedrnn: logits must be [N, rows]")
    wide = state_dtype(logits.dtype)
    return checked(logits, "logits", logits, tuple(logits.shape), wide), checked_tree(logits, tree)


def log_softmax(
    logits: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
) -> Tensor:
    """``fusedrnn::hierarchical_log_softmax.triton``."""
    from .softmax_whole_kernels import softmax_whole_forward

    tree = Tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node)
    logits, tree = _operands(logits, tree)
    (N, R), V, M = logits.shape, len(leaf_rank), len(node_rows) - 1
    out, programs = logits.new_empty(N, V), _programs(N, M)
    if N > 0:
        with on(logits.device):
            softmax_whole_forward[(programs,)](
                *(logits, out, logits.new_empty(programs, 3, M), *_links(tree, R)),
                *(*tree[1:], N, V, M, R),
                **_constants(logits, M, R),
            )
    return out


def log_softmax_backward(
    grad: Tensor,
    logits: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
) -> Tensor:
    """``fusedrnn::hierarchical_log_softmax_backward.triton``."""
    from .softmax_whole_kernels import softmax_whole_backward

    tree = Tree(leaf_rank, node_rows, node_branches, branch_leaf, branch_node)
    logits, tree = _operands(logits, tree)
    (N, R), V, M = logits.shape, len(leaf_rank), len(node_rows) - 1
    grad = checked(logits, "grad", grad, (N, V), logits.dtype)
    out, programs = torch.empty_like(logits), _programs(N, M)
    if N > 0:
        with on(logits.device):
            scratch = logits.new_empty(programs, 3, M)
            running = logits.new_empty(programs, M + 1, dtype=torch.float64)
            softmax_whole_backward[(programs,)](
                *(logits, grad, out, scratch, running, _ends(tree), *_links(tree, R)[2:]),
                *(*tree[1:], N, V, M, R),
                **_constants(logits, M, R),
            )
    return out


for _key in ("CUDA", "XPU", "CPU"):
    _native.LIBRARY.impl("hierarchical_log_softmax.triton", log_softmax, _key)
    _native.LIBRARY.impl("hierarchical_log_softmax_backward.triton", log_softmax_backward, _key)
