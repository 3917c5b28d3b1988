"""The hierarchical softmax in plain PyTorch: oracle of the tests and backend of last resort.

It computes the whole distribution, every row of the weight matrix for every token, and is
differentiable to any order by autograd; the kernels must agree with it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax, logsigmoid

from ._trees import Tree
from .reference import state_dtype


class _Branches(NamedTuple):
    """What the tree's tensors say, seen from its E branches, V words and R rows."""

    row: Tensor  # [E] its weight row; both branches of a sigmoid have the same
    sign: Tensor  # [E] +1 and -1 for the branches of a sigmoid, 0 for those of a softmax
    up: Tensor  # [E] the branch that leads to its node; E: there is none, the node is the root
    word: Tensor  # [V] the branch that ends at each word
    node_of_row: Tensor  # [R]
    owner: Tensor  # [E] its node


def _branches(tree: Tree, rows: int) -> _Branches:
    V, M, E = len(tree.leaf_rank), len(tree.node_rows) - 1, len(tree.branch_node)
    at = torch.arange(E, device=tree.leaf_rank.device)
    nodes, sizes = at[:M], tree.node_rows.diff()
    owner = nodes.repeat_interleave(tree.node_branches.diff(), output_size=E)
    index = at - tree.node_branches[owner]  # of the branch among its node's
    single = sizes[owner] == 1
    is_leaf = tree.branch_node < 0
    # Inverse maps; the last entry of each takes what has no place in it.
    into = at.new_full((M + 1,), E).scatter(0, torch.where(is_leaf, M, tree.branch_node), at)
    ends = at.new_zeros(V + 1).scatter(0, torch.where(is_leaf, tree.branch_leaf, V), at)
    return _Branches(
        row=tree.node_rows[owner] + torch.where(single, 0, index),
        sign=torch.where(single, 1 - 2 * index, 0),
        up=into[owner],
        word=ends[tree.leaf_rank],
        node_of_row=nodes.repeat_interleave(sizes, output_size=rows),
        owner=owner,
    )


def rows_met(target: Tensor, tree: Tree, depth: int) -> Tensor:
    """The weight rows of the nodes on the targets' paths: in order, each once."""
    sizes = tree.node_rows.diff()
    M, E = len(sizes), len(tree.branch_node)
    owner = torch.arange(M, device=target.device).repeat_interleave(tree.node_branches.diff())
    b = _branches(tree, int(tree.node_rows[-1]))
    branch, met = b.word[target], torch.zeros(M + 1, dtype=torch.bool, device=target.device)
    owner, up = (torch.cat([t, t.new_full((1,), end)]) for t, end in [(owner, M), (b.up, E)])
    for _ in range(depth):
        met[owner[branch]] = True
        branch = up[branch]
    return met[b.node_of_row].nonzero()[:, 0]


def _log_softmax(z: Tensor, node: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Within each node's columns of z ``[N, R]``: z - lse, its mean, and lse ``[N, nodes]``."""
    if nodes == 1:  # Inductor (torch 2.13) cannot scatter sums into a dimension of size 1
        log_p = log_softmax(z, 1)
        return log_p, log_p.mean(1, keepdim=True), z.logsumexp(1, keepdim=True)
    N, R = z.shape
    top = z.new_full((N, nodes), -torch.inf)
    top = top.scatter_reduce(1, node.expand(N, R), z.detach(), "amax")
    shifted = z - top[:, node]
    sums = z.new_zeros(N, nodes).index_add(1, node, shifted.exp())
    rows = z.new_zeros(nodes).index_add(0, node, z.new_ones(R))
    mean = z.new_zeros(N, nodes).index_add(1, node, shifted) / rows - sums.log()
    return shifted - sums.log()[:, node], mean, top + sums.log()


class _Scores(NamedTuple):
    """Log-probabilities of branches, and what there is to know of nodes."""

    branches: _Branches
    log_prob: Tensor  # [N, E]
    mean: Tensor  # [N, M] of their branches' log-probabilities
    lse: Tensor  # [N, M] of nodes of one row: 0


def logits(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of all rows, ``[N, R]``: float64 for float64 input, else float32."""
    wide = state_dtype(input.dtype)
    with torch.autocast(input.device.type, enabled=False):
        return linear(input.to(wide), weight.to(wide), None if bias is None else bias.to(wide))


def _scores(z: Tensor, tree: Tree) -> _Scores:
    b, M = _branches(tree, z.shape[1]), len(tree.node_rows) - 1
    softmax, mean, lse = _log_softmax(z, b.node_of_row, M)
    # Zero where it is not used: 0 * inf there would be NaN, and reach the gradients.
    sigmoid = logsigmoid(torch.where(b.sign == 0, 0, z[:, b.row] * b.sign))
    single = tree.node_rows.diff() == 1
    pairs = z.new_zeros(len(z), M).index_add(1, b.owner, sigmoid)
    return _Scores(
        b,
        log_prob=torch.where(b.sign == 0, softmax[:, b.row], sigmoid),
        mean=torch.where(single, pairs / 2, mean),
        lse=torch.where(single, 0, lse),
    )


def _along_paths(branch: Tensor, b: _Branches, depth: int) -> Tensor:
    """Sums of ``[N, E]`` over the branches of each word's path: ``[N, V]``.

    After i rounds a branch holds the sum of 2^i steps up from itself.
    """
    total, up = branch, torch.cat([b.up, b.up.new_full((1,), len(b.up))])
    for _ in range((depth - 1).bit_length()):
        above = torch.cat([total, total.new_zeros(len(total), 1)], 1)
        total = total + above[:, up[:-1]]
        up = up[up]
    return total[:, b.word]


def log_prob_of_logits(z: Tensor, tree: Tree, depth: int) -> Tensor:
    """The log-probabilities of all words ``[N, V]`` from the logits of all rows ``[N, R]``."""
    scores = _scores(z, tree)
    return _along_paths(scores.log_prob, scores.branches, depth)


def log_prob(input: Tensor, weight: Tensor, bias: Tensor | None, tree: Tree, depth: int) -> Tensor:
    """The log-probabilities of all words. See ``softmax_ops.target_log_prob`` for the arguments.

    Returns:
        ``[N, V]``, in order of word ids: float64 for float64 input, else float32.
    """
    return log_prob_of_logits(logits(input, weight, bias), tree, depth)


def target_log_prob(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    tree: Tree,
    depth: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """As ``softmax_ops.target_log_prob``."""
    scores = _scores(logits(input, weight, bias), tree)
    ignored = target == ignore_index
    word = torch.where(ignored, 0, target).unsqueeze(1)

    def of_target(branch: Tensor) -> Tensor:
        every = _along_paths(branch, scores.branches, depth)
        return torch.where(ignored, 0, every.gather(1, word).squeeze(1))

    output = of_target(scores.log_prob)
    if label_smoothing == 0 and z_loss == 0:
        return output, output
    objective = scores.log_prob
    owner = scores.branches.owner
    if label_smoothing:
        mean = scores.mean[:, owner]
        objective = (1 - label_smoothing) * objective + label_smoothing * mean
    if z_loss:
        objective = objective - z_loss * scores.lse.square()[:, owner]
    return output.detach(), of_target(objective)


def topk(log_prob: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of ``[N, V]``, of equals the first: what the search must find."""
    values, words = log_prob.sort(dim=1, descending=True, stable=True)
    return values[:, :k], words[:, :k]


def draw(log_prob: Tensor, tree: Tree, uniform: Tensor) -> Tensor:
    """The word in whose share of [0, 1), by the order of leaves, each number falls."""
    word = torch.argsort(tree.leaf_rank)
    total = log_prob[:, word].double().exp().cumsum(1)
    rank = torch.searchsorted(total, (uniform * total[:, -1]).unsqueeze(1), right=True)
    return word[rank.squeeze(1).clamp(max=len(word) - 1)]
