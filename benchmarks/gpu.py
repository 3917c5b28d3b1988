"""How a call is timed on an NVIDIA GPU. Never run by this project yet: no GPU was at hand.

Four times of one call, since each answers another question:

    wall    Python, launches and kernels, synchronised after each block: what a training loop sees
    cold    CUDA events around one call, L2 flushed before it: the kernels from memory
    hot     CUDA events around a block of calls: the kernels from L2, launches overlapped
    graph   CUDA events around replays of a CUDA graph: the kernels without Python and launches
"""

import subprocess
import time
from collections.abc import Callable

import torch

from .timing import BLOCK, Stepper

FLUSH = 256 * 2**20  # bytes; more than the L2 of any GPU so far (H200: 50 MB, B200: 126 MB)
REPLAYS = 20


def wall(stepper: Stepper, calls: int) -> float:
    """Seconds a call by the clock, launches included."""
    stepper.once()
    ready = [() if stepper.prepare is None else (stepper.prepare(),) for _ in range(calls)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    for arguments in ready:
        stepper.call(*arguments)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def _events(call: Callable[[], object], times: int) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(times):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / times


def cold(stepper: Stepper, flush: torch.Tensor) -> float:
    """Seconds of one call by events, the L2 cache full of something else."""
    ready = () if stepper.prepare is None else (stepper.prepare(),)
    flush.zero_()
    return _events(lambda: stepper.call(*ready), 1)


def hot(stepper: Stepper, calls: int) -> float:
    """Seconds a call by events, one after the other."""
    if stepper.prepare is not None:  # a backward alone cannot run twice
        ready = [stepper.prepare() for _ in range(calls)]
        return _events(lambda: stepper.call(ready.pop()), calls)
    return _events(stepper.call, calls)


def graphed(stepper: Stepper) -> Callable[[], float] | None:
    """Capture a call in a CUDA graph; what times its replays, or None where it cannot be."""
    if stepper.prepare is not None:
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            stepper.call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            stepper.call()
    except RuntimeError:
        return None
    return lambda: _events(graph.replay, REPLAYS)


def device_samples(stepper: Stepper, seconds: float) -> dict[str, list[float]]:
    """Samples of cold, hot and graph times, taken for this long each."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    once = hot(stepper, 1)
    calls = max(1, round(BLOCK / max(once, 1e-6)))
    ways = {"cold": lambda: cold(stepper, flush), "hot": lambda: hot(stepper, calls)}
    if replay := graphed(stepper):
        ways["graph"] = replay
    samples = {}
    for name, way in ways.items():
        way()
        start, taken = time.perf_counter(), []
        while len(taken) < 5 or (time.perf_counter() - start < seconds and len(taken) < 60):
            taken.append(way())
        samples[name] = taken
    return samples


def condition() -> dict[str, float] | None:
    """Clock of the SMs in MHz, temperature in Celsius, power in watts, now."""
    query = "clocks.sm,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return dict(zip(("mhz", "celsius", "watts"), map(float, out.split(",")), strict=True))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
