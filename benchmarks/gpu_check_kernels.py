"""Every sequence kernel x cell x dtype against float64 on the card, forward and backward.

The error rule is that of the tests (verify.py). The same call three times must give the same bits.
"""

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from contextlib import contextmanager
from multiprocessing import get_context

import torch

import fusedrnn
from fusedrnn.cells import CELLS
from fusedrnn.triton import plan as triton_plan

from . import gpu_check
from .case import Case
from .contender import classify
from .peers import PEERS
from .problems import Problem, Sequence, problem
from .task import Results, results
from .verify import allowed, rule

DTYPES = ("float64", "float32", "bfloat16", "float16")
STEPWISE, CLUSTER, GRID = "stepwise CUDA", "cluster CUDA", "grid CUDA"
WHOLE, STEP = "Triton whole-sequence", "Triton per-step"
RESIDENT = (CLUSTER, GRID)
"""Those with W_hh on chip: no float64, and not every cell."""
ROUNDING = (*RESIDENT, WHOLE, STEP)
"""Those that follow torch's switch for RNNs; stepwise CUDA keeps float32 whatever it says."""
TF32 = "tf32"
"""float32 where torch's switch for RNNs lets numbers be rounded before they are multiplied."""
KERNELS = {STEPWISE: "cuda", CLUSTER: "cuda", GRID: "cuda", WHOLE: "triton", STEP: "triton"}
"""Every kernel of docs/gpu-status.md, and the backend that runs it."""

Shape = tuple[int, int, int, int]
ASKED = "FUSEDRNN_CUDA_KERNEL"
"""The variable that asks for a CUDA kernel by name, where the planner would choose."""


def dtypes(kernel: str) -> tuple[str, ...]:
    """Those that a kernel has."""
    mine = DTYPES if kernel not in RESIDENT else tuple(d for d in DTYPES if d != "float64")
    return (*mine, TF32) if kernel in ROUNDING else mine


def cells(kernel: str) -> tuple[str, ...]:
    """Those that a kernel has."""
    return tuple(
        name
        for name, cell in CELLS.items()
        if (kernel != GRID or cell.resident) and (kernel != CLUSTER or cell.clustered)
    )


def sizes(kernel: str, cell: str, dtype: str, device: str) -> list[Shape]:
    """T, B, I, H: over more than one tile of rows and units, and not a multiple of any."""
    dtype = "float32" if dtype == TF32 else dtype
    wide = dtype == "float32"
    if kernel == CLUSTER:  # the second needs 16 CTAs, and has W_hh in shared memory too
        return [(33, 37, 24, 129), (17, 9, 24, 402 if wide else 602)]
    if kernel == GRID:  # number by number; 16 bytes at a time, with W_hh in shared memory too
        large = [(5, 9, 24, 632 if wide else 1096)] if device == "cuda" else []  # slow on a CPU
        return [(33, 37, 24, 129), *large]
    if kernel != WHOLE:
        return [(33, 37, 24, 129)]
    shared = triton_plan.shared_memory(torch.device(device)) if device == "cuda" else 227 << 10
    for units in (128, 64, 32, 16):
        shape = triton_plan.Shape(cell, getattr(torch, dtype), 37, units)
        if triton_plan.plan(shape, shared).whole:
            return [(33, 37, 24, units - 3)]
    raise RuntimeError(f"no size of {cell} in {dtype} fits the whole-sequence kernel")


def cases(kernel: str, cell: str, dtype: str, device: str) -> list[Case]:
    """One direction; then both, rows of unequal length, as the kernel's own options go.

    Of the grid kernel's larger size one alone: all CTAs of both would not be there at once.
    """
    options = {"dtype": "float32" if dtype == TF32 else dtype, "device": device}
    both = {"layout": "lengths", "bidirectional": True}
    return [
        Case("sequence", cell, "fwdbwd", shape, **extra, **options)
        for i, shape in enumerate(sizes(kernel, cell, dtype, device))
        for extra in (({}, both) if kernel != GRID or i == 0 else ({},))
    ]


@contextmanager
def asking_for(kernel: str) -> Iterator[None]:
    """The planner's choice among the CUDA kernels, made here."""
    before = os.environ.pop(ASKED, None)
    if KERNELS[kernel] == "cuda":
        os.environ[ASKED] = kernel.removesuffix(" CUDA")
    try:
        yield
    finally:
        os.environ.pop(ASKED, None)
        if before is not None:
            os.environ[ASKED] = before


def judged(got: Results, of: Sequence) -> dict[str, tuple[float, float, str]]:
    """For each direction, the error nearest to its bound: error, bound, tensor."""
    return worst_errors(got, *of.judge(""), of)


def worst_errors(
    got: Results, truth: Results, yardstick: Results, of: Problem
) -> dict[str, tuple[float, float, str]]:
    """Likewise by this truth, and by torch's own operators in the dtype."""
    worst: dict[str, tuple[float, float, str]] = {}
    for name, value in got.items():
        error = rule.error(value, truth[name])
        bound = allowed(rule.error(yardstick[name], truth[name]), of)
        direction = "backward" if name.startswith("d") else "forward"
        before = worst.get(direction, (-1.0, 1.0, ""))
        if not error / bound <= before[0] / before[1]:  # a NaN is the worst
            worst[direction] = error, bound, name
    return worst


def check(kernel: str, case: Case, backend: str, dtype: str) -> list[dict[str, object]]:
    """One case: two entries, forward and backward. ``dtype``: the case's, or TF32."""
    about = {"kernel": kernel, "cell": case.cell, "dtype": dtype, "case": case.name}
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        # The yardstick is torch's operator in float32: cuDNN's own choice would be tf32.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        of = problem(case)
        of.judge("")  # which is kept
        torch.backends.cudnn.rnn.fp32_precision = "tf32" if dtype == TF32 else "ieee"
        task = PEERS["fusedrnn"].build(of)

        def once() -> Results:
            with fusedrnn.backend(backend), asking_for(kernel):
                return results(task, of)

        got, *again = once(), once(), once()
        same = all(torch.equal(got[name], other[name]) for other in again for name in got)
        names = kernels_of(gpu_check.launched(once, case.device))
        found = judged(got, of)
    except Exception as error:
        failed = {"status": "failed", "reason": classify(error).reason}
        return [about | {"direction": d} | failed for d in ("forward", "backward")]
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
    return [
        about
        | {"direction": direction, "status": "ok" if error <= bound and same else "wrong"}
        | {"error": error, "bound": bound, "tensor": tensor, "same_bits": same, "launched": names}
        for direction, (error, bound, tensor) in found.items()
    ]


OURS = re.compile(
    r"(?:fusedrnn::(?:\w+::)*)?((?:whole|cluster|grid|forward|backward|operand|project|softmax)_?\w+)\b"
)
"""The kernels of csrc/cuda and fusedrnn/triton by their names in a profile."""


def kernels_of(names: Iterable[str]) -> list[str]:
    """Which of this project's kernels are among those of a profile."""
    found = (OURS.match(name.removeprefix("void ")) for name in names)
    return sorted({one[1] for one in found if one})


def run_kernels(run: gpu_check.Run, kernels: tuple[str, ...], workers: int = 0) -> None:
    """All cells and dtypes of some kernels; where it is dry, one cell on the CPU's kernels.

    With ``workers`` the cases are spread over as many processes: Triton compiles for seconds.
    """
    tried = ("float64", TF32) if run.dry else (*DTYPES, TF32)
    todo = [
        (kernel, case, "auto" if run.dry else KERNELS[kernel], dtype)
        for cell in (("lstm",) if run.dry else CELLS)
        for dtype in tried
        for kernel in kernels
        if cell in cells(kernel) and dtype in dtypes(kernel)
        for case in cases(kernel, cell, dtype, run.device)
    ]
    if run.dry or not workers:
        for one in run.in_time(todo):
            run.add_all(check(*one))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(check, *one) for one in todo]
        for job in run.in_time(jobs):
            try:
                run.add_all(job.result(timeout=run.left))
            except TooLate:
                continue  # in_time says how many were left out
            except BrokenExecutor as error:
                run.add(status="failed", reason=f"a process died and took the rest along: {error}")
                break
        pool.shutdown(wait=False, cancel_futures=True)


def cuda(run: gpu_check.Run) -> None:
    """The CUDA kernels: what runs everywhere first; where there are no clusters, a refusal."""
    run_kernels(run, (STEPWISE, GRID, CLUSTER))


def triton(run: gpu_check.Run) -> None:
    """The Triton kernels."""
    run_kernels(run, (WHOLE, STEP), workers=min(8, os.cpu_count() or 1))
