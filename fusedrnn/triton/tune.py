"""Tiles of the Triton kernels, measured: ``python -m fusedrnn.triton.tune``.

The planner's tiles follow a rule; the best ones depend on the card. For one shape this measures
others on the GPU at hand and keeps the fastest in a file, which every process reads once, at its
first call. Nothing is measured unasked: tiles decide the order of sums, and the same call shall
give the same bits.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch

from .. import _precision, random
from ..cells import CELLS
from . import plan as planner
from .plan import Plan, Shape

# What is tried, field by field. A program of more or wider tiles spills on all GPUs known so far.
WHOLE = {"rows": (16, 32, 64), "warps": (2, 4, 8), "stages": (1, 2, 3, 4)}
STEP = {**WHOLE, "units": (16, 32, 64), "depth": (16, 32, 64, 128)}


def path() -> Path:
    """The file: ``FUSEDRNN_TRITON_TILES``, else ``fusedrnn/triton-tiles.json`` in the cache."""
    given = os.environ.get("FUSEDRNN_TRITON_TILES")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(home) / "fusedrnn/triton-tiles.json"


@cache
def table() -> dict[str, Plan]:
    """What the file has, by card and shape; empty where there is no file.

    Raises:
        RuntimeError: the file is not one of ours.
    """
    try:
        return {key: Plan(**tiles) for key, tiles in json.loads(path().read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"fusedrnn: {path()} holds no tiles for Triton kernels ({error}); delete it, or set "
            "FUSEDRNN_TRITON_TILES to another file"
        ) from error


def key(shape: Shape, device: torch.device) -> str:
    """How the file names a shape on a card, by this version of Triton."""
    return f"{_compiler(device)}: {shape}"


@cache
def _compiler(device: torch.device) -> str:
    import triton

    name = "cpu"
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name(device)
    return f"{name}, triton {triton.__version__}"


def choose(shape: Shape, device: torch.device) -> Plan:
    """The tiles for a shape: those measured, else the planner's."""
    if table() and (tuned := table().get(key(shape, device))):
        return tuned
    return planner.plan(shape, planner.shared_memory(device))


def search(start: Plan, measure: Callable[[Plan], float]) -> tuple[Plan, float]:
    """Change one field at a time as long as it helps.

    Args:
        start: where to begin.
        measure: the time of a plan; infinite where it does not run.

    Returns:
        The best plan and its time.
    """
    fields = WHOLE if start.whole else STEP
    best, least, better = start, measure(start), True
    seen = {start}
    while better:
        better = False
        for name, values in fields.items():
            for value in values:
                other = replace(best, **{name: value})
                if other in seen:
                    continue
                seen.add(other)
                if (time := measure(other)) < least:
                    best, least, better = other, time, True
    return best, least


def tune(shape: Shape, device: torch.device, measure: Callable[[Plan], float]) -> Plan:
    """Find the fastest plan for a shape and put it into the table and the file."""
    shared = planner.shared_memory(device)
    starts = {planner.plan(shape, room) for room in (shared, 0)}  # both kinds of kernel
    found = [search(start, measure) for start in sorted(starts, key=lambda p: p.whole)]
    best, time = min(found, key=lambda one: one[1])
    if math.isinf(time):
        raise RuntimeError(f"fusedrnn: no tiles run {shape} on this GPU")
    best = replace(best, reason=f"the fastest measured: {time:.4g} ms")
    table()[key(shape, device)] = best
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({k: asdict(p) for k, p in table().items()}, indent=1))
    os.replace(fresh, file)  # a reader sees the old file or the new one
    return best


def stopwatch(shape: Shape, T: int, device: torch.device) -> Callable[[Plan], float]:
    """Measures forward and backward of T steps, in milliseconds."""
    from triton import TritonError
    from triton.testing import do_bench

    call = _call(shape, T, device)

    def measure(plan: Plan) -> float:
        table()[key(shape, device)] = plan
        try:
            return do_bench(call, return_mode="median")
        except TritonError:  # too much for the card
            return math.inf

    return measure


def _call(shape: Shape, T: int, device: torch.device) -> Callable[[], None]:
    from .sequence import sequence_backward, sequence_forward

    cell = CELLS[shape.cell]
    N, B, H, P = shape.directions, shape.B, shape.H, shape.P or shape.H
    G, S = len(cell.gates), len(cell.states)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, dtype=shape.dtype) * 0.1

    def of_each(*size: int) -> list[torch.Tensor]:
        return [normal(*size) for _ in range(N)]

    gx, W, b = of_each(T, B, G * H), of_each(G * H, cell.depth(P, H)), of_each(G * H)
    R = of_each(P, H) if shape.P else []
    own = of_each(cell.rows_of_units, H) if cell.rows_of_units else []
    seed = random.seeds(N, device) if cell.random else None
    h0, c0 = normal(N, B, P), normal(N, S - 1, B, H)
    spans = None, None, None, None

    def call() -> None:
        y, hn, cn, *kept = sequence_forward(cell.name, gx, W, b, R, own, seed, h0, c0, *spans, True)
        sequence_backward(cell.name, y, hn, cn, y, h0, c0, W, R, own, seed, *spans, *kept[:2])

    return call


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 for what cannot be tuned."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn.triton.tune",
        description="Measures tiles for one shape on this GPU and keeps the fastest.",
    )
    parser.add_argument("--cell", choices=tuple(CELLS), required=True)
    for size, meaning in (("T", "steps"), ("B", "batch rows"), ("H", "hidden units")):
        parser.add_argument(f"-{size}", type=int, required=True, help=meaning)
    parser.add_argument("--proj-size", type=int, default=0, metavar="P", help="of a projected h")
    names = [str(dtype).removeprefix("torch.") for dtype in planner.DTYPES]
    parser.add_argument("--dtype", choices=names, default="float32")
    parser.add_argument("--bidirectional", action="store_true", help="both directions")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("fusedrnn: torch sees no GPU to measure on", file=sys.stderr)
        return 2
    device, dtype = torch.device("cuda", torch.cuda.current_device()), getattr(torch, a.dtype)
    precision = _precision.of_recurrence(dtype, device)
    shape = Shape(a.cell, dtype, a.B, a.H, a.proj_size or None, 1 + a.bidirectional, precision)
    measure = stopwatch(shape, a.T, device)
    before = measure(planner.plan(shape, planner.shared_memory(device)))
    print(f"{shape}, T={a.T}: {before:.4g} ms by the rule; now")
    print(f"  {tune(shape, device, measure)}\n  kept in {path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
