"""The most memory that a call has in use beyond what was there before it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

import fusedrnn


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak(call: Callable[[], object], device: str) -> int | None:
    """Bytes at the peak of one call, less those before it; None where nothing tells.

    On a CPU the process's own resident memory, which counts every allocator, after malloc and
    fusedrnn have given back what they kept; on a GPU torch's allocator. Memory that is never
    touched does not count.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        fusedrnn.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, not glibc, or not allowed
        return None
