"""Output layers of PyTorch: the full softmax in three ways, and the adaptive one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedrnn import Hierarchy

from ..task import Results, Task, Unsupported
from ..words import Scores, Softmax
from ._base import peer

ALL = "loss and the gradients of x, weight, bias; all V words"


def full(problem: Softmax) -> dict[str, Tensor]:
    """The leaves of a full softmax."""
    train = problem.case.mode != "infer"
    weight, bias = problem.weights(problem.case.shape[0])
    return {
        "x": problem.leaf,
        "weight": weight.requires_grad_(train),
        "bias": bias.requires_grad_(train),
    }


def full_flops(problem: Softmax) -> int:
    """Of the products of a full softmax."""
    V, H, N = problem.case.shape
    return 2 * V * H * N * {"fwd": 1, "infer": 1, "bwd": 2, "fwdbwd": 3}[problem.case.mode]


def with_loss(problem: Softmax, loss: object) -> Task:
    """The task of a function ``loss(x, weight, bias, target)``."""
    leaves = full(problem)

    def forward() -> Results:
        return {"loss": loss(*leaves.values(), problem.target)}

    return Task(forward, leaves, kind="flat", flops=full_flops(problem))


def linear_loss(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """What everyone writes."""
    return F.cross_entropy(F.linear(x, weight, bias), target)


@peer("linear+cross_entropy", "softmax", what=ALL)
def linear(problem: Softmax) -> Task:
    """Two calls, the logits in memory."""
    return with_loss(problem, linear_loss)


@peer("compiled linear+cross_entropy", "softmax", what=f"{ALL}; compilation is not timed")
def compiled(problem: Softmax) -> Task:
    """The same through Inductor."""
    torch._dynamo.reset()
    return with_loss(problem, torch.compile(linear_loss, fullgraph=True))


@peer("F.linear_cross_entropy", "softmax", what=f"{ALL}; logits in chunks, options 'auto'")
def chunked(problem: Softmax) -> Task:
    """torch's own fused loss."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has none; 2.13 does")
    options = nn.LinearCrossEntropyOptions()
    return with_loss(
        problem,
        lambda x, weight, bias, target: F.linear_cross_entropy(
            x, weight, target, linear_bias=bias, options=options
        ),
    )


SCORES = "log_prob: of all V words; topk: of those the ten best"


@peer("linear+log_softmax", "log_prob", "topk", what=SCORES)
def scores(problem: Scores) -> Task:
    """What everyone writes."""
    leaves = full(problem)

    def forward() -> Results:
        x, weight, bias = leaves.values()
        return problem.answer(F.log_softmax(F.linear(x, weight, bias), 1))

    return Task(forward, leaves, kind="flat", flops=full_flops(problem))


def adaptive(problem: Softmax, make: Callable[..., nn.Module], compiled: bool = False) -> Task:
    """torch.nn's module, or ours with its parameters."""
    layer = problem.adaptive(make, problem.case.torch_dtype)
    leaves = {"x": problem.leaf} | dict(layer.named_parameters())
    x, target = problem.leaf, problem.target
    call = torch.compile(layer) if compiled else layer

    def forward() -> Results:
        if problem.case.op == "softmax":
            return {"loss": call(x, target).loss}
        return problem.answer(layer.log_prob(x))

    return Task(forward, leaves, kind="adaptive")


CLUSTERS = "clusters at V/50, V/10, V/2, div_value 4"


@peer(
    "AdaptiveLogSoftmax",
    "softmax",
    "log_prob",
    "topk",
    what=f"softmax: loss and all gradients; {SCORES}; {CLUSTERS}",
    note="a model of its own, smaller for rare words: its loss is not the full softmax's",
)
def torchs(problem: Softmax) -> Task:
    """nn.AdaptiveLogSoftmaxWithLoss."""
    return adaptive(problem, nn.AdaptiveLogSoftmaxWithLoss)


@peer(
    "compiled AdaptiveLogSoftmax",
    "softmax",
    what=f"loss and all gradients; {CLUSTERS}; compilation is not timed",
    note="a model of its own, as AdaptiveLogSoftmax",
)
def compiled_torchs(problem: Softmax) -> Task:
    """The same through Inductor, in several graphs: torch's cannot be one."""
    torch._dynamo.reset()
    return adaptive(problem, nn.AdaptiveLogSoftmaxWithLoss, compiled=True)


def padded_paths(tree: Hierarchy) -> tuple[Tensor, Tensor]:
    """Of each word of a binary tree the nodes above it and, as +1 and -1, the branches.

    ``[V, depth]`` both; paths begin at the leaf, and where they have ended there is sign 0.
    """
    tensors = tree.tensors()
    to, V, M = tensors["branch_node"], tree.words, tree.nodes
    at = torch.arange(2 * M)
    into = torch.full((M + 1,), 2 * M)  # the branch that leads to each node; 2 M: none, the root
    into[torch.where(to < 0, M, to)] = at
    into[0] = into[M] = 2 * M
    ends = torch.empty(V, dtype=torch.int64)
    ends[tensors["branch_leaf"][to < 0]] = at[to < 0]
    branch, nodes, signs = ends[tensors["leaf_rank"]], [], []
    for _ in range(tree.depth):
        on = branch < 2 * M
        node = torch.where(on, branch // 2, 0)
        nodes.append(node)
        signs.append(torch.where(on, 1 - 2 * (branch % 2), 0))
        branch = torch.where(on, into[node], 2 * M)
    return torch.stack(nodes, 1), torch.stack(signs, 1)


@peer(
    "padded-path Huffman",
    "softmax",
    what="loss and the gradients of x, weight, bias; every path padded to the longest",
)
def padded(problem: Softmax) -> Task:
    """How it is usually written in PyTorch: gather the rows of each path, mask what is padding."""
    case = problem.case
    tree = problem.tree("huffman")
    nodes, signs = (t.to(case.device) for t in padded_paths(tree))
    weight, bias = problem.weights(tree.rows)
    leaves = {"x": problem.leaf, "weight": weight, "bias": bias}
    if case.mode != "infer":
        weight.requires_grad_()
        bias.requires_grad_()

    def forward() -> Results:
        rows, sign = nodes[problem.target], signs[problem.target]  # [N, depth]
        z = (weight[rows] @ leaves["x"].unsqueeze(2)).squeeze(2) + bias[rows]
        return {"loss": -torch.where(sign == 0, 0, F.logsigmoid(sign * z)).sum(1).mean()}

    return Task(forward, leaves, kind="huffman")
