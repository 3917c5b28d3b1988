"""Which implementation serves a call, and why: automatic, or as the user asks.

``FUSEDRNN_BACKEND`` or ``fusedrnn.backend(...)`` names one; a request that cannot be served raises.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from . import _native

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
    return name


_HAS_TRITON = find_spec("triton") is not None
_current = _checked(os.environ.get("FUSEDRNN_BACKEND", "auto"), "FUSEDRNN_BACKEND")


def current() -> str:
    """The name in force: that of the innermost ``backend()``, or of the environment variable."""
    return _current


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the implementation for every fusedrnn call inside a ``with`` block.

    Args:
        name: ``"auto"`` takes the fastest that can serve each call. ``"cuda"``, ``"cpu"``: the
            native kernels. ``"triton"``: the Triton kernels. ``"reference"``: plain PyTorch, step
            by step.

    Raises:
        ValueError: ``name`` is none of these. A call inside the block raises ``RuntimeError`` with
            the reason when the backend cannot serve it; nothing falls back silently.

    The choice is the process's, like that of ``torch.backends.cudnn.flags``, not the thread's.

    Example:
        >>> import torch, fusedrnn
        >>> lstm = fusedrnn.LSTM(3, 5)
        >>> with fusedrnn.backend("reference"):
        ...     y, _ = lstm(torch.randn(7, 2, 3))
        >>> y.shape
        torch.Size([7, 2, 5])
    """
    global _current
    before, _current = _current, _checked(name, "backend name")
    try:
        yield
    finally:
        _current = before


_uncovered: dict[int, str | None] = {}  # by GPU: what _no_code found


def _no_code() -> str | None:
    """Why the library's CUDA kernels cannot run on torch's current GPU, or None."""
    if not torch.cuda.is_initialized() and not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device()
    if index not in _uncovered:
        major, minor = torch.cuda.get_device_capability(index)
        reason = _native.missing_code((major, minor))
        _uncovered[index] = reason and f"the GPU is sm_{major}{minor}, and {reason}"
    return _uncovered[index]


def obstacle(name: str, device: str) -> str | None:
    """Why backend ``name`` cannot run on this type of device at all, or None."""
    if name == "reference":
        return None
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active, for which only plain PyTorch has rules"
    if name in ("cpu", "cuda"):
        if device != name:
            return f"the tensors are on {device}"
        if _native.MISSING:
            return _native.MISSING
        if name == "cuda" and not _native.HAS_CUDA:
            return "the native library was built without CUDA kernels (see `python -m fusedrnn`)"
        return _no_code() if name == "cuda" else None
    if not _HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on cpu, where Triton runs under TRITON_INTERPRET=1 only"
    return None


# In order of speed. Triton on a CPU is an interpreter, for tests: never chosen, only asked for.
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


def choose(device: str, limits: dict[str, str | None]) -> tuple[str, str]:
    """Pick the backend for a call.

    Args:
        device: the type of device the tensors are on, as ``torch.device.type``.
        limits: for each backend that cannot serve this very problem, why (None: it can).

    Returns:
        The backend and the reason for it.

    Raises:
        RuntimeError: the backend asked for cannot serve the call.
    """
    if _current != "auto":
        if reason := obstacle(_current, device) or limits.get(_current):
            raise RuntimeError(
                f"fusedrnn backend {_current!r} was asked for but cannot serve this call: {reason}."
                ' Use fusedrnn.backend("auto") or unset FUSEDRNN_BACKEND to let it choose.'
            )
        return _current, "asked for"
    passed = []
    for name in _ORDER.get(device, ("triton", "reference")):
        reason = obstacle(name, device) or limits.get(name)
        if reason is None:
            return name, "; ".join(passed) or "the fastest for this device"
        passed.append(f"not {name}: {reason}")
    raise AssertionError("the reference serves every call")
