"""The machine code of the cluster and grid kernels: it has the instructions they are made for."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = """
#include "cluster.cuh"
namespace fusedrnn { namespace cuda {
template __global__ void cluster_forward<LSTM, __nv_bfloat16, 0, 1>(
    const __grid_constant__ ClusterCall<SequenceForward>);
template __global__ void cluster_backward<LSTM, __nv_bfloat16, 0, 1>(
    const __grid_constant__ ClusterCall<SequenceBackward>);
}}
"""
GRID = """
#include "grid.cuh"
namespace fusedrnn { namespace cuda {
template __global__ void grid_forward<LSTM, __nv_bfloat16>(
    const __grid_constant__ GridCall<SequenceForward>);
template __global__ void grid_backward<LSTM, __nv_bfloat16>(
    const __grid_constant__ GridCall<SequenceBackward>);
}}
"""
# In float32 a span has two products of rounded numbers, and six of parts.
PRODUCTS_TF32 = 8 * 12
PRODUCTS = (
    32  # of a warp and step with all its weights in registers: 128 of them, four to a product
)


def disassembler() -> str | None:
    """cuobjdump of the CUDA toolkit, or of Triton."""
    triton = find_spec("triton")
    mine = triton and Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return shutil.which("cuobjdump") or (str(mine) if mine and mine.exists() else None)


pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None or disassembler() is None, reason="no nvcc, or no cuobjdump"
)


def machine_code(folder: Path, arch: str, text: str = SOURCE) -> dict[str, str]:
    """The text of each kernel."""
    source, binary = folder / "one.cu", folder / "one.cubin"
    source.write_text(text)
    code = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    flags = ["-std=c++17", "-O3", "-DNDEBUG", f"-I{ROOT / 'csrc/cuda'}"]
    subprocess.run(["nvcc", *flags, *code, "-cubin", source, "-o", binary], check=True)
    text = subprocess.run(
        [disassembler(), "-sass", binary], check=True, capture_output=True, text=True
    ).stdout
    _, *functions = re.split(r"Function : ", text)
    return {re.search(r"(cluster|grid)_\w+?ward", body)[0]: body for body in functions}


def test_instructions_of_hopper(tmp_path):
    for name, text in machine_code(tmp_path, "90a").items():
        count = {
            what: len(re.findall(pattern, text))
            for what, pattern in {
                "tensor cores": r"HMMA\.16816\.F32\.BF16",
                "stores into other CTAs": r"STAS\.64",
                "waits for what they count": r"SYNCS\.PHASECHK\S*TRYWAIT",
                "cluster barriers": r"UCGABAR_ARV",
                "loads of 16 bytes": r"LDS\.128",
                "stack": r"LDL|STL",
            }.items()
        }
        assert count["tensor cores"] >= PRODUCTS, (name, count)
        assert count["stores into other CTAs"] >= 4, (name, count)
        assert count["waits for what they count"] and count["loads of 16 bytes"], (name, count)
        assert count["cluster barriers"] == 1 and count["stack"] == 0, (name, count)


def test_nothing_where_there_are_no_clusters(tmp_path):
    for name, text in machine_code(tmp_path, "80").items():
        assert len(re.findall(r"^\s+/\*[0-9a-f]{4}\*/", text, re.MULTILINE)) < 30, name
        assert "HMMA" not in text


def test_what_ctas_of_a_grid_exchange_takes_no_fence(tmp_path):
    """Loads and stores at the scope of the GPU, which pass by L1; nothing that waits for memory."""
    found = machine_code(tmp_path, "80", GRID)
    assert set(found) == {"grid_forward", "grid_backward"}
    for name, text in found.items():
        count = {
            what: len(re.findall(pattern, text))
            for what, pattern in {
                "tensor cores": r"HMMA\.16816\.F32\.BF16",
                "looks": r"LDG\.E\.128\.STRONG\.GPU",
                "words": r"STG\.E\.STRONG\.GPU",
                "fences": r"MEMBAR|CCTL\.IVALL|ERRBAR",
                "stack": r"LDL|STL",
            }.items()
        }
        assert count["tensor cores"] >= PRODUCTS - 4, (name, count)  # backward: 14 spans a tile
        assert count["looks"] and count["words"], (name, count)
        assert count["fences"] == count["stack"] == 0, (name, count)


def test_float32_multiplies_in_tf32(tmp_path):
    """Both ways, by a switch that is read when the kernel runs."""
    for name, text in machine_code(tmp_path, "80", GRID.replace("__nv_bfloat16", "float")).items():
        count = {
            what: len(re.findall(pattern, text))
            for what, pattern in {
                "tensor cores": r"HMMA\.1688\.F32\.TF32",
                "others": r"HMMA\.16816",
                "looks": r"LDG\.E\.128\.STRONG\.GPU",
                "words": r"STG\.E\.STRONG\.GPU",
                "fences": r"MEMBAR|CCTL\.IVALL|ERRBAR",
                "stack": r"LDL|STL",
            }.items()
        }
        assert count["tensor cores"] >= PRODUCTS_TF32, (name, count)
        assert count["looks"] and count["words"], (name, count)
        assert count["others"] == count["fences"] == count["stack"] == 0, (name, count)
