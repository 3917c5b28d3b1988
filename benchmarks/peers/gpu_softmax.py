"""Full-softmax losses of others that run on GPUs alone, by their published interfaces.

None has been run by this project yet: no GPU was at hand.
"""

from ..task import Results, Task, Unsupported
from ..words import Softmax
from ._base import peer
from .gpu_layers import NEVER
from .torch_softmax import full, full_flops, with_loss

ALL = "loss and the gradients of x, weight, bias; all V words, no logits in memory"


@peer("Cut Cross-Entropy", "softmax", what=ALL, needs="cut_cross_entropy",
      get="pip install cut-cross-entropy", devices=("cuda",), note=NEVER)  # fmt: skip
def cut(problem: Softmax) -> Task:
    """Apple's, without its gradient filter, which would skip part of the work."""
    if problem.case.dtype == "float32":
        raise Unsupported("its kernels take bfloat16 and float16")
    from cut_cross_entropy import linear_cross_entropy

    def loss(x: object, weight: object, bias: object, target: object) -> object:
        return linear_cross_entropy(x, weight, target, bias=bias, impl="cce_exact")

    return with_loss(problem, loss)


@peer("Liger", "softmax", what="loss and the gradients of x, weight, bias; logits in chunks",
      needs="liger_kernel", get="pip install liger-kernel", devices=("cuda",),
      note=NEVER)  # fmt: skip
def liger(problem: Softmax) -> Task:
    """LinkedIn's fused linear and cross entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    layer = LigerFusedLinearCrossEntropyLoss()
    return with_loss(problem, lambda x, weight, bias, target: layer(weight, x, target, bias))


@peer("quack", "softmax", what="loss and the gradients of x and weight; no bias",
      needs="quack", get="pip install quack-kernels (Hopper or newer)", devices=("cuda",),
      note=NEVER)  # fmt: skip
def quack(problem: Softmax) -> Task:
    """Its chunked loss: bfloat16, no bias, so its truth has none either."""
    if problem.case.dtype != "bfloat16":
        raise Unsupported("its products take bfloat16")
    if problem.case.shape[2] % 8:
        raise Unsupported(f"N is {problem.case.shape[2]}; it needs a multiple of 8")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    leaves = full(problem)
    del leaves["bias"]

    def forward() -> Results:
        x, weight = leaves.values()
        return {"loss": chunked_linear_cross_entropy(x, weight, problem.target)}

    return Task(forward, leaves, kind="flat without bias", flops=full_flops(problem))
