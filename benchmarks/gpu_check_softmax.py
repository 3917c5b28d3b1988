"""The kernels of output layers x tree x dtype against float64 on the card, then their suite.

As gpu_check_kernels.py: the error rule of the tests, and the same call three times must give the
same bits.
"""

import torch

import fusedrnn

from . import gpu_check, gpu_check_programs
from .case import Case
from .contender import classify
from .gpu_check_kernels import DTYPES, judged, kernels_of
from .peers.ours import output_layer
from .problems import problem, results
from .task import Results

KERNELS = {"softmax CUDA": "cuda", "softmax Triton": "triton"}
"""Rows of docs/gpu-status.md, and the backend that runs them."""
TREES = ("flat", "two-level", "huffman")
SHAPE = (1500, 129, 700)
"""V, H, N: over more than one tile, and not a multiple of any."""


def check(kernel: str, tree: str, case: Case, backend: str) -> list[dict[str, object]]:
    """One case: two entries, forward and backward."""
    about = {"kernel": kernel, "cell": tree, "dtype": case.dtype, "case": case.name}
    try:
        of = problem(case)
        task = output_layer(of, tree)

        def once() -> Results:
            with fusedrnn.backend(backend):
                return results(task, of)

        got, *again = once(), once(), once()
        same = all(torch.equal(got[name], other[name]) for other in again for name in got)
        names = kernels_of(gpu_check.launched(once, case.device))
        found = judged(got, of, tree)
    except Exception as error:
        failed = {"status": "failed", "reason": classify(error).reason}
        return [about | {"direction": d} | failed for d in ("forward", "backward")]
    return [
        about
        | {"direction": direction, "status": "ok" if error <= bound and same else "wrong"}
        | {"error": error, "bound": bound, "tensor": tensor, "same_bits": same, "launched": names}
        for direction, (error, bound, tensor) in found.items()
    ]


def kernels(run: gpu_check.Run) -> None:
    """All trees and dtypes; where it is dry, little of it on the CPU's kernels."""
    todo = [
        (kernel, tree, Case("softmax", "", "fwdbwd", SHAPE, device=run.device, dtype=dtype))
        for kernel in KERNELS
        for dtype in (DTYPES[:1] if run.dry else DTYPES)
        for tree in (TREES[1:2] if run.dry else TREES)
    ]
    for kernel, tree, case in run.in_time(todo):
        run.add_all(check(kernel, tree, case, "auto" if run.dry else KERNELS[kernel]))


def softmax(run: gpu_check.Run) -> None:
    """The kernels, then the suite."""
    kernels(run)
    gpu_check_programs.softmax(run)
