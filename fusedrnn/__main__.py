"""``python -m fusedrnn``: the doctor. Says what is installed, what runs where, and why.

The whole output is plain text to paste into a bug report. Exit status 0: healthy; 1: the native
library is there but does not load. ``python -m fusedrnn plan`` asks the planner (plan.py).
"""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, _backend, _native, _waves, ops, softmax_ops, softmax_score
from . import plan as planner
from .cells import CELLS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

VARIABLES = {
    "FUSEDRNN_BACKEND": "which backend serves, instead of the fastest",
    "FUSEDRNN_CPU_ISA": "which CPU instruction set, instead of the best",
    "FUSEDRNN_CUDA_KERNEL": "cluster, grid or stepwise, instead of the planner's choice",
    "FUSEDRNN_PIECES": "pieces in which stacked layers take turns, instead of the planner's choice",
    "FUSEDRNN_TRITON_TILES": "the file of measured tiles for Triton kernels",
    "TRITON_INTERPRET": "1: Triton kernels run in its interpreter",
    "OMP_NUM_THREADS": "CPU threads of torch and fusedrnn",
    "CUDA_VISIBLE_DEVICES": "which GPUs torch sees",
}


def op_limits(device: str, dtype: torch.dtype) -> Iterator[tuple[str, str, dict[str, str | None]]]:
    """Every op and variant, with the reasons why a backend cannot serve it for this dtype."""
    for cell in CELLS:
        yield "sequence", cell, ops.limits(cell, dtype, False)
    yield "hierarchical softmax", "", softmax_ops.softmax_limits(device, dtype)
    yield "log_prob of all words", "", softmax_score.score_limits(device, dtype)
    yield "topk, sample", "", softmax_score.search_limits(device, dtype)


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _home(path: Path) -> str:
    """A path without the user's name."""
    home = str(Path.home())
    return f"~{str(path)[len(home) :]}" if str(path).startswith(f"{home}/") else str(path)


def openmp_runtimes() -> list[Path]:
    """The OpenMP runtimes in this process: one, unless something loads a second pool of threads."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {Path(line.split()[-1]) for line in maps if "/" in line}
    return sorted(f for f in files if f.name.startswith(("libgomp", "libomp", "libiomp")))


def versions() -> Iterator[tuple[str, str]]:
    """What is installed."""
    yield "fusedrnn", __version__
    yield "torch", f"{torch.__version__} ({_built_for()})"
    yield "triton", _package("triton")
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{_system()}, {platform.system()} {platform.release()}, {platform.machine()}"
    yield "C library", " ".join(platform.libc_ver()) or "not glibc"


def _built_for() -> str:
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def library() -> Iterator[tuple[str, str]]:
    """The native library: what the build made, and what of it is in use."""
    yield "built", _native.OUTCOME
    if not _native.PATH.exists():
        yield "file", "none"
        return
    yield "file", _home(_native.PATH)
    if _native.MISSING:
        yield "loads", f"no: {_native.MISSING.replace(str(_native.PATH), _home(_native.PATH))}"
        return
    info = _native.build_info()
    yield "compiler", f"g++ {info['compiler']}"
    yield "CUDA code", info.get("cuda_archs", "none").replace(",", ", ")
    yield "CPU code", f"{info['cpu_compiled']}; in use: {info['cpu_in_use']}"
    runtimes, inside = openmp_runtimes(), Path(torch.__file__).resolve().parent
    names = [
        f"{r.name} {'of' if inside in r.resolve().parents else 'not of'} torch" for r in runtimes
    ]
    yield "OpenMP", ", ".join(names) or "none loaded"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"


def gpus() -> Iterator[tuple[str, str]]:
    """The GPUs that torch sees, and which compiled code fits each."""
    if not torch.cuda.is_available():
        yield "none", "torch is built without CUDA" if not torch.version.cuda else "torch sees none"
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        code = _native.cuda_code((major, minor)) or _native.missing_code((major, minor))
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}: {code}"
        if _native.HAS_CUDA and major >= 9:
            with torch.cuda.device(index):  # the stepwise kernel serves where there are none
                sizes = [f"{n}: {torch.ops.fusedrnn.cluster_room(n)}" for n in (8, 16)]
            yield f"cuda:{index} clusters", f"of {', of '.join(sizes)}"


def environment() -> Iterator[tuple[str, str]]:
    """The environment variables that change what runs."""
    for name, meaning in VARIABLES.items():
        value = os.environ.get(name)
        yield name, f"not set ({meaning})" if value is None else f"{value!r} ({meaning})"


def _answer(device: str, limits: dict[str, str | None]) -> str:
    try:
        backend, why = _backend.choose(device, limits)
    except RuntimeError as error:
        return f"error: {error}"
    return f"{backend} ({why})"


def choices(device: str) -> Iterator[tuple[str, str]]:
    """For each op and dtype, which backend serves it on this type of device, and why."""
    variants: dict[str, list[str]] = {}
    served: dict[tuple[str, str, str], list[str]] = {}  # (op, dtype, answer) -> variants
    for dtype in DTYPES:
        for op, variant, limits in op_limits(device, dtype):
            if variant not in variants.setdefault(op, []):
                variants[op].append(variant)
            key = op, str(dtype).removeprefix("torch."), _answer(device, limits)
            served.setdefault(key, []).append(variant)
    merged: dict[tuple[str, str], list[str]] = {}  # what has the same answer -> dtypes
    for (op, dtype, answer), these in served.items():
        what = op if these == variants[op] else f"{op} of {', '.join(these)}"
        merged.setdefault((what, answer), []).append(dtype)
    for (what, answer), dtypes in merged.items():
        yield f"{what}, {'all dtypes' if len(dtypes) == len(DTYPES) else ', '.join(dtypes)}", answer


def verdict() -> str:
    """The doctor's opinion in one line."""
    if _native.MISSING and _native.PATH.exists():
        return "ill: the native library is there but does not load; see 'loads' below"
    if _native.MISSING:
        return "works, slowly: there is no native library; see 'built' below"
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    asked = _backend.current()
    if asked != "auto" and all(_backend.obstacle(asked, device) for device in devices):
        return f"every call will raise: FUSEDRNN_BACKEND={asked} cannot serve here; see below"
    if torch.cuda.is_available() and not _native.HAS_CUDA:
        return "works, but has no CUDA kernels for the GPU here; see 'built' below"
    return "healthy"


def _section(title: str, rows: Iterator[tuple[str, str]], write: Callable[[str], None]) -> None:
    lines = list(rows)
    width = max(len(name) for name, _ in lines)
    write(f"\n{title}")
    for name, value in lines:
        write(f"  {name:<{width}}  {value}")


def report(write: Callable[[str], None] = print) -> int:
    """Write the report line by line; return the exit status."""
    write(f"fusedrnn {__version__}: {verdict()}")
    _section("Versions", versions(), write)
    _section("Native library", library(), write)
    _section("GPUs", gpus(), write)
    _section("Environment", environment(), write)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        _section(f"What runs for tensors on {device}", choices(device), write)
    write("\nTo report a bug, paste all of this.")
    return 1 if _native.MISSING and _native.PATH.exists() else 0


def _cell(name: str) -> str:
    """``name``, if the registry has it."""
    try:
        return CELLS[name].name
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from None


def _plan(options: argparse.Namespace) -> int:
    """Print what the planner says; 2 for what it cannot plan."""
    if options.layers > 1 and options.bidirectional:
        print("layers of both directions run one after the other: no --layers", file=sys.stderr)
        return 2
    problem = {
        "proj_size": options.proj_size,
        "dtype": planner.DTYPES[SHORT.get(options.dtype, options.dtype)],
        "backward": options.backward,
        "precision": options.precision,
        "device": options.device,
    }
    sizes = options.T, options.B, options.H
    try:
        both = options.bidirectional
        found = planner.plans(options.cell, *sizes, bidirectional=both, **problem)
        waves = _waves.planned(options.cell, options.layers, *sizes, **problem)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    for plan in found:
        print("\n".join(planner.describe(plan)))
    if options.layers > 1:
        print("\n".join(_waves.describe(waves, options.layers)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn",
        description="Says what is installed, which kernels run where, and why.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "which GPU kernel would run a sequence, with which tiles, and why; needs no GPU"
    plan = commands.add_parser("plan", help=about, description=about.capitalize() + ".")
    known = f"{', '.join(CELLS)}; with options, as a layer's .cell: lstm:peephole=diagonal"
    plan.add_argument("--cell", type=_cell, required=True, metavar="NAME", help=known)
    for size, meaning in (("T", "steps"), ("B", "batch rows"), ("H", "hidden units")):
        plan.add_argument(f"-{size}", type=int, required=True, help=meaning)
    plan.add_argument("--proj-size", type=int, default=0, metavar="P", help="of a projected h")
    plan.add_argument("--dtype", choices=(*planner.DTYPES, *SHORT), default="float32")
    switch = "torch.backends.cudnn.rnn.fp32_precision"
    plan.add_argument(
        "--precision", choices=planner.PRECISIONS, help=f"of float32 products; default: {switch}"
    )
    plan.add_argument("--backward", action="store_true", help="the backward pass")
    plan.add_argument("--bidirectional", action="store_true", help="both directions")
    plan.add_argument(
        "--layers", type=int, default=1, metavar="L", help="stacked: whether they take turns"
    )
    plan.add_argument(
        "--device",
        default=planner.HERE,
        metavar="NAME",
        help="a card by name (a100, h100, h200, b200, l4, 4090, 5090, t4), or 'here': torch's own",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(argv)
    return _plan(options) if options.command == "plan" else report()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
