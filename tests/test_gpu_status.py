"""docs/gpu-status.md says of every GPU kernel whether it has run on a card."""

from itertools import product
from pathlib import Path

from fusedrnn.cells import CELLS

PAGE = (Path(__file__).parents[1] / "docs/gpu-status.md").read_text()
KERNELS = ("stepwise CUDA", "Triton whole-sequence", "Triton per-step")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def test_every_kernel_dtype_and_direction_has_one_row():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    title, rule, *body = rows
    assert title == ["kernel", "dtype", "direction", "on a GPU", "shown without one"]
    expected = product(KERNELS, DTYPES, ("forward", "backward"))
    assert [tuple(row[:3]) for row in body] == list(expected)
    assert all(row[3].strip() and row[4].strip() for row in body)


def test_every_cell_is_named():
    assert not [name for name in CELLS if f"`{name}`" not in PAGE]
