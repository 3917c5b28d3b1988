"""Output layers of PyTorch: the full softmax in three ways, and the adaptive one."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..problems import Softmax, results
from ..task import Results, Task, Unsupported
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


@peer(
    "AdaptiveLogSoftmax",
    "softmax",
    what="loss and all gradients; clusters at V/50, V/10, V/2, div_value 4",
    note="a model of its own, smaller for rare words: its loss is not the full softmax's",
)
def adaptive(problem: Softmax) -> Task:
    """nn.AdaptiveLogSoftmaxWithLoss, verified against itself in float64."""
    V, H, _ = problem.case.shape
    if V < 200:
        raise Unsupported(f"V is {V}; its clusters need at least 200 words")
    like = {"device": problem.case.device, "dtype": problem.case.torch_dtype}
    torch.manual_seed(0)
    layer = nn.AdaptiveLogSoftmaxWithLoss(H, V, [V // 50, V // 10, V // 2], **like)
    leaves = {"x": problem.leaf} | dict(layer.named_parameters())

    def truth() -> Results:
        wide = copy.deepcopy(layer).double()
        x = problem.x.double().requires_grad_(problem.case.mode != "infer")
        inner = {"x": x} | dict(wide.named_parameters())
        return results(Task(lambda: {"loss": wide(x, problem.target).loss}, inner), problem)

    return Task(lambda: {"loss": layer(problem.leaf, problem.target).loss}, leaves, truth=truth)
