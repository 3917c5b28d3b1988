"""``gpu-check``: on a machine with a card, checks and measures everything there in 8 minutes.

Needs torch, a build with CUDA kernels, and for some parts triton, nvcc, pytest and
compute-sanitizer; no network. Each part is a process of its own and writes DIR/PART.json as it
goes. ``gpu-status --add DIR`` then brings docs/gpu-status.md up to date. Exit status 1 if anything
was wrong or failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from . import (
    gpu_check_cudnn,
    gpu_check_kernels,
    gpu_check_micro,
    gpu_check_programs,
    gpu_check_softmax,
)
from .case import CaseError
from .environment import ROOT
from .gpu_check import Part, Record, Run, load

PARTS = {
    "cuda": Part("CUDA kernels against float64", 75, gpu_check_kernels.cuda),
    "triton": Part("Triton kernels against float64", 80, gpu_check_kernels.triton),
    "micro": Part("exchanges, products, launches, copies", 40, gpu_check_micro.micro),
    "cudnn": Part("which kernels cuDNN runs", 45, gpu_check_cudnn.cudnn),
    "tests": Part("the tests marked gpu", 80, gpu_check_programs.tests),
    "sequence": Part("the suite of layers, beside its peers", 65, gpu_check_programs.sequence),
    "softmax": Part("output layers: kernels, suite", 50, gpu_check_softmax.softmax),
    "sanitizer": Part("compute-sanitizer over small calls", 45, gpu_check_programs.sanitizer),
}
"""In this order: what a later session needs most comes first. Eight files, 480 seconds."""

GRACE = 15  # seconds that a part has to end in good order


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gpu-check``."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the JSON files go")
    add("--part", metavar="NAMES", help=f"only these, of {', '.join(PARTS)}")
    add("--minutes", type=float, default=8.0, help="for all of it (default: %(default)s)")
    add("--seconds", type=float, help="of a part, instead of its own share")
    add("--commit", default="", help="what is checked, where there is no git repository")
    add("--dry", action="store_true", help="on the CPU, a little of everything: shows that "
        "gpu-check works, nothing of a GPU")  # fmt: skip
    add("--in-process", action="store_true", help="run one part here, without an end by force: for "
        "a debugger, and what gpu-check starts itself")  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Run the parts, each on its own."""
    names = [n.strip() for n in options.part.split(",")] if options.part else list(PARTS)
    for name in names:
        if name not in PARTS:
            raise CaseError(f"--part {name}: there is none; known are {', '.join(PARTS)}")
    if not options.dry and not torch.cuda.is_available():
        raise CaseError("torch sees no GPU; --dry tries gpu-check itself on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.in_process:
        if len(names) != 1:
            raise CaseError("--in-process takes one --part")
        return here(names[0], options)
    bad, begin, shares = False, time.monotonic(), 0.0
    for name in names:
        # What the parts before it left of theirs is a part's too.
        shares += options.seconds or PARTS[name].seconds
        seconds = min(shares, 60 * options.minutes) - (time.monotonic() - begin)
        if seconds < 5:
            print(f"{name}: left out, the {options.minutes:g} minutes are over")
            continue
        print(f"{name}: {PARTS[name].about} ({seconds:.0f} s) ...", flush=True)
        record = child(name, options, seconds)
        print(summary(record), flush=True)
        bad = bad or bool(record.bad) or record.status == "failed"
    return int(bad)


def here(name: str, options: argparse.Namespace) -> int:
    """One part in this process."""
    run = Run(name, options.out, options.seconds or PARTS[name].seconds, options.dry,
              options.commit)  # fmt: skip
    try:
        PARTS[name].run(run)
    except Exception as error:
        run.close("failed", f"{type(error).__name__}: {error}")
        raise
    run.close()
    return int(bool(run.record.bad))


def start(name: str, options: argparse.Namespace, seconds: float) -> list[str]:
    """The command that runs one part."""
    command = [sys.executable, "-m", "benchmarks", "gpu-check", "--in-process", "--part", name]
    command += ["--out", str(options.out.resolve()), "--seconds", str(seconds)]
    return command + ["--dry"] * options.dry + ["--commit", options.commit] * bool(options.commit)


def end(process: subprocess.Popen) -> None:
    """End whatever is left of a part's own processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def child(name: str, options: argparse.Namespace, seconds: float) -> Record:
    """One part in a process of its own, which ends by force if it must; its record."""
    path = options.out / f"{name}.json"
    path.unlink(missing_ok=True)
    process = subprocess.Popen(start(name, options, seconds), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)  # fmt: skip
    try:
        # Its own clock ends it in good order; this is for what hangs.
        text, _ = process.communicate(timeout=seconds + GRACE)
        late = ""
    except subprocess.TimeoutExpired:
        end(process)
        text, _ = process.communicate()
        late = f"ended by force after {seconds + GRACE:.0f} s"
    end(process)
    if not path.exists():
        status = "cut off" if late else "failed"
        return Record(name, options.dry, "", {}, status, late or text[-3000:])
    record = load(path)
    if record.status == "running":
        record.status = "cut off" if late else "failed"
        record.reason = late or f"exit status {process.returncode}: {text[-3000:]}"
        record.save(path)
    return record


def summary(record: Record) -> str:
    """One part in a few lines: how many entries of each status, then what is bad."""
    counts: dict[str, int] = {}
    for entry in record.entries:
        status = str(entry.get("status", "ok"))
        counts[status] = counts.get(status, 0) + 1
    said = ", ".join(f"{n} {status}" for status, n in counts.items()) or "nothing"
    lines = [f"  {record.status} in {record.seconds:.0f} s: {said}"]
    lines += [f"  {record.reason}"] if record.reason else []
    for entry in record.bad[:10]:
        values = [str(v)[-300:] for k, v in entry.items() if k not in ("launched", "status")]
        lines.append(f"  {entry['status']}: {', '.join(values)}")
    return "\n".join(lines)
