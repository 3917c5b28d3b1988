"""Finds and loads the native library; says why when there is none.

The library only adds kernels to ops whose schemas are defined in Python (``ops.py``), so the package
works without it: the reference implementation then serves every call.
"""

from pathlib import Path

import torch

PATH = Path(__file__).with_name("libfusedrnn.so")
LIBRARY = torch.library.Library("fusedrnn", "DEF")

LIBRARY.define("cells_table() -> str")
LIBRARY.define("build_info() -> str")


def _load() -> str | None:
    """Load the library; return None, or the reason why it is not there."""
    if not PATH.exists():
        return (
            f"there is no {PATH.name} beside {PATH.parent}: fusedrnn was installed as pure Python "
            "(no C++ compiler, or no torch in the environment, when it was built)"
        )
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


HAS_CUDA: bool = "cuda_archs" in build_info()
"""Whether the library has CUDA kernels (not: whether there is a GPU)."""
