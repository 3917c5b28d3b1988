"""Every CUDA kernel compiles without a GPU, and fits: registers, spills, shared memory.

FUSEDRNN_TEST_ARCHS names the architectures ("75 80 90a 100 120" are all that are shipped).
FUSEDRNN_KERNEL_TABLE names the kernel-table.md in the folder of a build that has been made already:
then its kernels are looked at, and nothing is compiled.
"""

import os
import sys
from pathlib import Path

import pytest

from fusedrnn.cells import CELLS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import kernel_table  # noqa: E402

VERSION = kernel_table.nvcc_version()
BUILT = os.environ.get("FUSEDRNN_KERNEL_TABLE")
ARCHS = tuple(os.environ.get("FUSEDRNN_TEST_ARCHS", "80 90a").split())
SOURCES = kernel_table.ROOT / "csrc/cuda"

needs_nvcc = pytest.mark.skipif(VERSION is None, reason="no nvcc on PATH (the CUDA toolkit)")
COMMITTED = kernel_table.read_markdown((ROOT / "docs/kernel-table.md").read_text())

CLUSTER = ("forward[0, 1]", "forward[0, 2]", "forward[1, 1]", "backward[0, 1]", "backward[1, 1]")
LARGEST = ("forward[0, 4]", "forward[1, 2]", "backward[0, 4]")  # cells of one gate have half of it

FLOAT32 = ("forward[0, 1]", "forward[0, 2]", "backward[0, 1]")


def registers(name: str, dtype: str, arch: str) -> int:
    """What __launch_bounds__ leaves of an SM's 65536: 2, 3 or 4 CTAs of 128 threads.

    Cluster and grid kernels are alone on an SM, with 256 threads (shape 1 of a cluster: 384).
    Kernels that see no data ("-") have up to 512.
    """
    if name.startswith("grid"):
        return 255
    if name.startswith("cluster"):
        return 255 if "[0" in name else 168
    if dtype == "-":
        return 128
    if dtype == "float64":
        return 255
    steps = not name.startswith("softmax_")
    return 128 if dtype.endswith("16") and arch != "75" and steps else 168


STATIC_SHARED = 48 << 10


PLAN = ("keys", "sort_count", "scan", "sort_scatter", "walk", "block_rows", "met_rows")
LOSS = ("logits", "paths", "input_grad", "weight_grad", "bias_grad")
SEARCH = ("search", "draw", "marked_logits")


def expected() -> set[tuple[str, str, str]]:
    """(kernel, cell, dtype) of all that the registry asks for."""
    keys = {(f"softmax_{name}", "-", "-") for name in (*PLAN, "upward", "mark")}
    wide, whole = ("float64", "float32"), ("whole_forward", "whole_backward", "marked_best")
    keys |= {(f"softmax_{name}", "-", dtype) for name in whole for dtype in wide}
    for dtype in kernel_table.DTYPES.values():
        every = ("begin", "end")
        keys |= {(f"{way}_{name}", "-", dtype) for way in ("forward", "backward") for name in every}
        more = ("forward_projection", "forward_product", "backward_arrive", "backward_hidden")
        keys |= {(name, "-", dtype) for name in more}
        keys |= {(f"softmax_{name}", "-", dtype) for name in LOSS + SEARCH}
        for cell in CELLS.values():
            names = ["forward_step", "backward_step", "backward_state"]
            if cell.second:
                names += ["forward_operand", "backward_operand"]
            if f"{cell.name}:layer_norm=True" in CELLS:
                names += ["forward_row", "backward_row"]
            if dtype != "float64" and cell.clustered:
                more = LARGEST if len(cell.gates) > 1 else ("backward[0, 2]",)
                tiles = FLOAT32 if dtype == "float32" else CLUSTER + more
                names += [f"cluster_{name}" for name in tiles]
            if dtype != "float64" and cell.resident:
                names += ["grid_forward", "grid_backward"]
            keys |= {(name, cell.kernel, dtype) for name in names}
    return keys


@pytest.fixture(scope="module")
def kernels():
    if BUILT is None:
        return kernel_table.compile_kernels(ARCHS)
    _, rows = kernel_table.read_markdown(Path(BUILT).read_text())
    return [
        kernel_table.Kernel(*key, arch, row[f"sm_{arch}"], row["shared"], row["spilled"])
        for key, row in rows.items()
        for arch in ARCHS
    ]


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles(kernels, arch):
    assert {k.key for k in kernels if k.arch == arch} == expected()


@needs_nvcc
def test_every_kernel_keeps_its_budget(kernels):
    for kernel in kernels:
        assert kernel.spilled == 0, f"spills, or keeps an array in memory: {kernel}"
        assert kernel.registers <= registers(kernel.name, kernel.dtype, kernel.arch), kernel
        assert kernel.shared <= STATIC_SHARED, kernel


@needs_nvcc
def test_the_committed_table_is_what_the_compiler_says(kernels):
    version, rows = COMMITTED
    if version != VERSION:
        pytest.skip(f"docs/kernel-table.md is of nvcc {version}, this is {VERSION}")
    for kernel in kernels:
        said = rows[kernel.key]
        now = {f"sm_{kernel.arch}": kernel.registers, "shared": kernel.shared}
        assert {column: said[column] for column in now} == now, (
            f"{kernel}; python tools/kernel_table.py compile -o docs/kernel-table.md writes it anew"
        )


def test_the_committed_table_is_complete_and_in_budget():
    """Also where there is no nvcc."""
    _, rows = COMMITTED
    assert rows.keys() == expected()
    for (name, cell, dtype), row in rows.items():
        for arch in kernel_table.ARCHS:
            assert row[f"sm_{arch}"] <= registers(name, dtype, arch), (name, cell, dtype, arch)
        assert row["spilled"] == 0, (name, cell, dtype)
        assert row["shared"] <= STATIC_SHARED, (name, cell, dtype)


def test_the_tool_reads_what_ptxas_writes():
    """One message each of a kernel that spills and of one that has no cell and no shared memory."""
    log = """
ptxas info    : Compiling entry function '_ZN8fusedrnn4cuda12forward_stepINS_4base3RNNINS2_4TanhEEE6__halfEEvNS0_5LayerINS_15SequenceForwardENS0_12ForwardStateIT0_EEEEl' for 'sm_90a'
ptxas info    : Function properties for _ZN8fusedrnn4cuda12forward_stepINS_4base3RNNINS2_4TanhEEE6__halfEEvNS0_5LayerINS_15SequenceForwardENS0_12ForwardStateIT0_EEEEl
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 13824 bytes smem
ptxas info    : Compiling entry function '_ZN8fusedrnn4cuda11forward_endIdEEvNS0_5LayerINS_15SequenceForwardENS0_12ForwardStateIT_EEEE' for 'sm_80'
ptxas info    : Function properties for _ZN8fusedrnn4cuda11forward_endIdEEvNS0_5LayerINS_15SequenceForwardENS0_12ForwardStateIT_EEEE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 380 bytes cmem[0]
"""  # noqa: E501
    one, two = kernel_table.parse(log)
    assert one.key == ("forward_step", "rnn_tanh", "float16")
    assert (one.arch, one.registers, one.shared, one.spilled) == ("90a", 96, 13824, 28)
    assert two.key == ("forward_end", "-", "float64")
    assert (two.arch, two.registers, two.shared, two.spilled) == ("80", 8, 0, 0)


def test_there_is_a_source_for_every_dtype():
    shorts = ("f64", "f32", "bf16", "f16")
    expected = {f"{op}_{short}" for op in ("sequence", "softmax") for short in shorts}
    expected |= {f"{op}_{short}" for op in ("cluster", "grid") for short in shorts[1:]}
    expected |= {"gpu", "softmax_plan", "softmax_whole"}
    assert {p.stem for p in SOURCES.glob("*.cu")} == expected
