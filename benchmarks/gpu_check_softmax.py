"""The kernels of output layers x tree x dtype against float64 on the card, then their suite.

As gpu_check_kernels.py: the error rule of the tests, and the same call three times must give the
same bits.
"""

from collections.abc import Callable

import torch

import fusedrnn

from . import gpu_check, gpu_check_programs
from .case import Case
from .contender import classify
from .gpu_check_kernels import DTYPES, kernels_of, worst_errors
from .peers.ours import output_layer
from .problems import problem
from .task import Results, results
from .words import Scores, Softmax

ALL_WORDS = {"softmax CUDA, all words": "cuda", "softmax Triton, all words": "triton"}
SEARCH = "softmax CUDA, search"
KERNELS = {"softmax CUDA": "cuda", "softmax Triton": "triton"} | ALL_WORDS | {SEARCH: "cuda"}
"""Rows of docs/gpu-status.md, and the backend that runs them."""
TREES = ("flat", "two-level", "huffman")
Judged = tuple[Results, Results]
"""Truth, and torch's own operators in the case's dtype."""
SHAPE = (1500, 129, 700)
"""V, H, N: over more than one tile, and not a multiple of any."""


def directions(kernel: str) -> tuple[str, ...]:
    """The rows of a kernel: a search has no backward."""
    return ("forward",) if kernel == SEARCH else ("forward", "backward")


def of_loss(of: Softmax, tree: str) -> tuple[Callable[[], Results], Judged]:
    """The loss and its gradients, and what they are judged by."""
    task = output_layer(of, tree)
    return lambda: results(task, of), of.judge(tree)


def of_all_words(of: Softmax, tree: str) -> tuple[Callable[[], Results], Judged]:
    """The log-probabilities of all words, and the gradients of a fixed functional of them."""
    case, device = of.case, of.x.device
    hierarchy = of.tree(tree)
    weights = of.weights(hierarchy.rows)

    def run(dtype: torch.dtype) -> Results:
        layer = fusedrnn.HierarchicalSoftmax(case.shape[1], hierarchy, device=device, dtype=dtype)
        layer.weight.data, layer.bias.data = (w.to(dtype) for w in weights)
        x = of.x.to(dtype, copy=True).requires_grad_()
        every = layer.log_prob(x)
        random = torch.Generator().manual_seed(7)
        grad = torch.randn(every.shape, generator=random).to(every)
        leaves = {"x": x} | dict(layer.named_parameters())
        grads = torch.autograd.grad(every, list(leaves.values()), grad)
        named = {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
        return {"log_prob": every.detach()} | named

    with fusedrnn.backend("reference"):
        judged_by = run(torch.float64), run(case.torch_dtype)
    return lambda: run(case.torch_dtype), judged_by


def of_search(of: Scores, tree: str) -> tuple[Callable[[], Results], Judged]:
    """The best words of all: their log-probabilities, and what the words are worth."""
    task = output_layer(of, tree)
    return lambda: of.comparable(results(task, of), tree), of.judge(tree)


def check(kernel: str, tree: str, case: Case, backend: str) -> list[dict[str, object]]:
    """One case: an entry for each direction."""
    about = {"kernel": kernel, "cell": tree, "dtype": case.dtype, "case": case.name}
    try:
        of = problem(case)
        how = of_all_words if kernel in ALL_WORDS else of_search if kernel == SEARCH else of_loss
        call, judged_by = how(of, tree)

        def once() -> Results:
            with fusedrnn.backend(backend):
                return call()

        got, *again = once(), once(), once()
        same = all(torch.equal(got[name], other[name]) for other in again for name in got)
        names = kernels_of(gpu_check.launched(once, case.device))
        found = worst_errors(got, *judged_by, of)
    except Exception as error:
        failed = {"status": "failed", "reason": classify(error).reason}
        return [about | {"direction": d} | failed for d in directions(kernel)]
    return [
        about
        | {"direction": direction, "status": "ok" if error <= bound and same else "wrong"}
        | {"error": error, "bound": bound, "tensor": tensor, "same_bits": same, "launched": names}
        for direction, (error, bound, tensor) in found.items()
    ]


def kernels(run: gpu_check.Run) -> None:
    """All trees and dtypes; where it is dry, little of it on the CPU's kernels."""
    todo = [
        (kernel, tree, Case(*case, SHAPE, device=run.device, dtype=dtype))
        for kernel in KERNELS
        for case in [("topk", "", "infer") if kernel == SEARCH else ("softmax", "", "fwdbwd")]
        for dtype in (DTYPES[:1] if run.dry else DTYPES)
        for tree in (TREES[1:2] if run.dry else TREES)
    ]
    for kernel, tree, case in run.in_time(todo):
        run.add_all(check(kernel, tree, case, "auto" if run.dry else KERNELS[kernel]))


def softmax(run: gpu_check.Run) -> None:
    """The kernels, then the suite."""
    kernels(run)
    gpu_check_programs.softmax(run)
