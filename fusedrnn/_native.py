"""Finds and loads the native library; says why when there is none.

The library only adds kernels to ops whose schemas are defined in Python (``ops.py``), so the
package works without it: the reference implementation then serves every call.
"""

from pathlib import Path

import torch

PATH = Path(__file__).with_name("libfusedrnn.so")
LIBRARY = torch.library.Library("fusedrnn", "DEF")

LIBRARY.define("cells_table() -> str")
LIBRARY.define("build_info() -> str")
LIBRARY.define("empty_cache() -> int")
LIBRARY.define("empty_kept(Tensor like, int rows, int columns) -> Tensor")


def _outcome() -> str:
    """The line in which setup.py said what it built and why."""
    record = PATH.with_name("_build.txt")
    if not record.exists():
        return "a source tree that was never built: run `make`, or `pip install .` in its root"
    return record.read_text().strip().removeprefix("fusedrnn: ")


OUTCOME: str = _outcome()
"""What the build made, and why: one line."""


def _load() -> str | None:
    """Load the library; return None, or the reason why it is not there."""
    if not PATH.exists():
        return f"fusedrnn has no native library here ({OUTCOME})"
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        return f"{PATH} does not load beside torch {torch.__version__}: {error}"
    return None


MISSING: str | None = _load()
"""Why there is no native library, or None when it is loaded."""


def build_info() -> dict[str, str]:
    """Facts about the native library: compiler, CUDA architectures, CPU instruction sets."""
    if MISSING:
        return {}
    return dict(line.split("=", 1) for line in torch.ops.fusedrnn.build_info().splitlines())


def empty_cache() -> int:
    """Give the memory that the CPU kernels keep for their next call back to the system.

    They keep the last eight blocks of 256 KB and more: gradients of large tables, and what a layer
    holds between forward and backward. The system may take those of 2 MB and more by itself when
    memory is short. (``torch.cuda.empty_cache`` is the same for a GPU.)

    Returns:
        How many bytes were given back.

    Example:
        >>> import fusedrnn
        >>> freed = fusedrnn.empty_cache()
        >>> fusedrnn.empty_cache()
        0
    """
    return 0 if MISSING else torch.ops.fusedrnn.empty_cache()


ARCHS: tuple[str, ...] = tuple(filter(None, build_info().get("cuda_archs", "").split(",")))
"""The architectures of the library's CUDA code; of the last there is PTX too."""

HAS_CUDA: bool = bool(ARCHS)
"""Whether the library has CUDA kernels (not: whether there is a GPU)."""


def cuda_code(capability: tuple[int, int]) -> str | None:
    """Which of the library's CUDA code a GPU of this compute capability runs, or None: it has none.

    Code for ``80`` runs on every 8.x from there on, that for ``90a`` on 9.0 alone; PTX of the last
    architecture is compiled by the driver for any newer GPU.
    """
    major, minor = capability
    for arch in reversed(ARCHS):
        number = int(arch.rstrip("af"))
        exact = arch[-1] in "af"
        if number // 10 == major and (number % 10 == minor if exact else number % 10 <= minor):
            return f"sm_{arch}"
    if ARCHS and ARCHS[-1].isdigit() and int(ARCHS[-1]) <= 10 * major + minor:
        return f"PTX of compute_{ARCHS[-1]}"
    return None


def missing_code(capability: tuple[int, int]) -> str | None:
    """That no CUDA code is there for a GPU of this compute capability, and the fix; None: it is."""
    if cuda_code(capability):
        return None
    arch = f"{capability[0]}{capability[1]}"
    return f"the library has no code for it; rebuild with FUSEDRNN_CUDA=on FUSEDRNN_ARCHS={arch}"
