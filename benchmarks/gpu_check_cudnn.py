"""Which kernels cuDNN runs for a layer of torch.nn, and how long they take.

The kernels' names come from torch's profiler. What ATen's source lets one expect of each row
(aten/src/ATen/native/cudnn/RNN.cpp) stands beside them, so that the table proves or corrects it.
"""

from dataclasses import dataclass, replace
from functools import partial

from . import gpu_check
from .case import Case
from .contender import classify
from .gpu import hot
from .peers import PEERS
from .problems import problem
from .task import results
from .timing import stepper

T = 64
PERSISTENT = "persist"
"""What the names of cuDNN's persistent kernels have in common, in lower case."""


@dataclass(frozen=True)
class Row:
    """One layer of the table; I = H."""

    dtype: str
    cell: str
    H: int
    B: int
    layers: int = 1
    bidirectional: bool = False
    layout: str = "padded"

    def case(self, device: str) -> Case:
        """As the suites have it."""
        shape = (T, self.B, self.H, self.H)
        return Case("sequence", self.cell, "fwdbwd", shape, self.dtype, device, self.layers,
                    self.bidirectional, layout=self.layout)  # fmt: skip

    def expected(self, backward: bool) -> str:
        """The algorithm that ATen's source chooses."""
        elman = self.cell.startswith("rnn")
        if self.layout != "padded":
            return "standard"
        if (
            self.dtype == "float16"
            and self.cell != "gru"
            and self.layers == 1
            and not self.bidirectional
            and self.H % 128 == 0
            and self.H <= 1024
            and self.B % 8 == 0
            and self.B <= 128
            and not (elman and self.B >= 96 and self.H >= 896)
        ):
            return "persistent"
        limit = (256 if elman else 128) if backward else (384 if elman else 192)
        return "persistent, small H" if self.H <= limit else "standard"


def table() -> list[Row]:
    """The rows, those that tell most first."""
    base = [
        Row(dtype, cell, H, 16)
        for H in (512, 128, 1024, 192, 256, 768)
        for dtype in ("float16", "bfloat16", "float32")
        for cell in ("lstm", "gru", "rnn_tanh")
    ]
    middle = [row for row in base if row.H == 512 and row.cell != "rnn_tanh"]
    variants = [
        replace(row, **change)
        for change in (
            {"layout": "packed"}, {"bidirectional": True}, {"layers": 2}, {"B": 1}, {"B": 64},
            {"B": 128}, {"B": 13}, {"H": 500},
        )
        for row in middle
    ]  # fmt: skip
    small = [
        replace(row, **change)
        for row in base
        if row.H == 128 and row.cell != "rnn_tanh"
        for change in ({"layers": 2}, {"bidirectional": True}, {"layout": "packed"}, {"B": 1})
    ]
    return [*base[:9], *variants, *base[9:], *small]


def cudnn(run: gpu_check.Run) -> None:
    """Two entries a row, forward and backward: algorithm expected and seen, kernels, time."""
    rows = [replace(table()[0], dtype="float32", H=8, B=3)] if run.dry else table()
    for row in run.in_time(rows):
        for direction, mode in (("forward", "fwd"), ("backward", "bwd")):
            about = {**vars(row), "direction": direction}
            about["expected"] = row.expected(direction == "backward")
            try:
                run.add(**about, status="ok", **seen(row, mode, run.device))
            except Exception as error:
                failure = classify(error)
                run.add(**about, status=failure.status, reason=failure.reason)


def seen(row: Row, mode: str, device: str) -> dict[str, object]:
    """What ran, and how long it took."""
    of = problem(row.case(device).on(mode=mode))
    task = PEERS["torch.nn"].build(of)
    results(task, of)  # cuDNN's plans, the allocator
    steps = stepper(task, of)
    ready = () if steps.prepare is None else (steps.prepare(),)
    kernels = gpu_check.launched(lambda: steps.call(*ready), device)
    once = partial(hot, steps, 1) if device == "cuda" else partial(steps.seconds, 1)
    us = round(min(once() for _ in range(5)) * 1e6 / T, 3)
    kind = "persistent" if PERSISTENT in " ".join(kernels).lower() else "standard"
    return {"seen": kind, "us_per_step": us, "kernels": kernels}
