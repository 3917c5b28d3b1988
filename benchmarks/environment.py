"""What the figures of a run depend on, and what the machine can do at most, measured anew."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

import fusedrnn
from fusedrnn import _native

from . import gpu

ROOT = Path(__file__).parent.parent
MEASURED = ("fusedrnn", "csrc", "benchmarks/*.py", "benchmarks/peers", "setup.py", "CMakeLists.txt")
"""What a figure depends on; a change elsewhere leaves a checkout clean."""


def processor() -> str:
    """The processor's name, as far as the machine tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git(*command: str) -> str:
    """What git says in the project's directory, or nothing."""
    try:
        return subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _first(pattern: str) -> str | None:
    for path in sorted(Path("/").glob(pattern)):
        try:
            return path.read_text().strip()
        except OSError:
            continue
    return None


def clock() -> dict[str, object]:
    """Governor, clock and temperature now, as far as the machine tells."""
    mhz = None
    try:
        found = re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())
        mhz = max(map(float, found), default=None)
    except OSError:
        pass
    millidegrees = _first("sys/class/thermal/thermal_zone*/temp")
    return {
        "governor": _first("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mhz": mhz,
        "celsius": int(millidegrees) / 1000 if millidegrees else None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def slug(device: str) -> str:
    """A folder's name for the machine: processor and cores, or the GPU."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{processor()} {cores()}c"
    name = re.sub(r"\((?:r|tm)\)|processor|cpu|@", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def _best(call: object, device: str, seconds: float) -> float:
    """The shortest of the calls made in this time."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call(), wait()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call(), wait()
        best = min(best, time.perf_counter() - before)
    return best


def peaks(device: str, dtype: str = "float32") -> dict[str, float]:
    """GFLOP/s of torch's own large product and GB/s of a large copy: the ceilings of a roofline.

    The best of half a second each. The copy's bytes are read once and written once.
    """
    kind = getattr(torch, dtype)
    n = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    product = _best(lambda: torch.mm(a, b, out=out), device, 0.5)
    source = torch.ones(2**26 if device == "cpu" else 2**29, device=device)
    copy = _best(lambda: source.clone(), device, 0.1)  # touches the pages that it will reuse
    target = torch.empty_like(source)
    copy = min(copy, _best(lambda: target.copy_(source), device, 0.5))
    return {
        "gflops": round(2 * n**3 / product / 1e9, 1),
        "gb_per_s": round(2 * source.nbytes / copy / 1e9, 1),
    }


def describe(device: str) -> dict[str, object]:
    """Everything that is told beside the figures."""
    dirty = bool(git("status", "--porcelain", "--", *MEASURED))
    facts: dict[str, object] = {
        "device": device,
        "slug": slug(device),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fusedrnn": fusedrnn.__version__,
        "commit": git("rev-parse", "--short=9", "HEAD") or "unknown",
        "dirty": dirty,
        "library": _native.MISSING or _native.OUTCOME,
        "cpu_code": None if _native.MISSING else _native.build_info().get("cpu_in_use"),
        "clock_at_start": clock(),
        "variables": {k: v for k, v in os.environ.items() if re.match("FUSEDRNN|OMP|MKL|KMP", k)},
    }
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_at_start": gpu.condition(),
        }
    return facts
