"""What the library needs of torch, Python, OpenMP and the system (tools/check_binary.py)."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import _native

TOOL = Path(__file__).parents[1] / "tools/check_binary.py"
spec = importlib.util.spec_from_file_location("check_binary", TOOL)
check_binary = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_binary)

native = pytest.mark.skipif(_native.MISSING is not None, reason=f"no library: {_native.MISSING}")
ALLOWED = {"aoti_torch_get_dim", "torch_library_impl"}


@native
@pytest.mark.skipif(not shutil.which("nm"), reason="nm and readelf (binutils) are not installed")
def test_the_library_passes(capsys):
    assert check_binary.check(_native.PATH) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("aoti_torch_of_tomorrow", "no such stable shim"),
        ("torch_of_tomorrow", "no such stable shim"),
        ("_ZN2at6Tensor3addEv", "C++ symbol of torch"),
        ("_ZNK3c1010TensorImpl3dimEv", "C++ symbol of torch"),
        ("_ZTIN3c105ErrorE", "C++ symbol of torch"),
        ("_ZN5torch7LibraryD1Ev", "C++ symbol of torch"),
        ("PyErr_SetString", "symbol of Python"),
        ("_PyObject_New", "symbol of Python"),
    ],
)
def test_a_wrong_symbol_is_found(symbol, said):
    (problem,) = check_binary.problems({symbol: ""}, [], ALLOWED)
    assert problem.startswith(symbol) and said in problem


@pytest.mark.parametrize(
    ("symbol", "version"),
    [
        ("aoti_torch_get_dim", ""),
        ("torch_library_impl", ""),
        ("GOMP_parallel", ""),
        ("_ZNSt13runtime_errorD1Ev", "@GLIBCXX_3.4"),
        ("_ZN12attachment_xE", ""),
        ("exp", "@GLIBC_2.29"),
        ("_ZSt24__throw_out_of_range_fmtPKcz", "GLIBCXX_3.4.29"),
    ],
)
def test_a_right_symbol_is_not(symbol, version):
    libraries = ["libtorch.so", "libtorch_cpu.so", "libstdc++.so.6", "libc.so.6"]
    assert check_binary.problems({symbol: version}, libraries, ALLOWED) == []


@pytest.mark.parametrize(
    ("symbols", "libraries", "said"),
    [
        ({"f": "GLIBC_2.38"}, [], "GLIBC_2.38"),
        ({"f": "GLIBCXX_3.4.30"}, [], "GLIBCXX_3.4.30"),
        ({}, ["libgomp.so.1"], "OpenMP must come from torch"),
        ({}, ["libpython3.11.so.1.0"], "not on every Linux"),
        ({}, ["libtorch_cuda.so"], "not on every Linux"),
    ],
)
def test_a_wrong_dependency_is_found(symbols, libraries, said):
    (problem,) = check_binary.problems(symbols, libraries, ALLOWED)
    assert said in problem


def test_the_list_is_that_of_a_torch_with_cuda():
    listed = check_binary.LIST.read_text().split()
    assert {"torch_call_dispatcher", "aoti_torch_get_current_cuda_stream"} <= set(listed)
    assert listed == sorted(set(listed))


@native
def test_one_openmp_runtime_and_torch_rules_it():
    """After a native kernel ran on two threads, the one OpenMP runtime is still torch's."""
    program = """if True:
        import torch
        from fusedrnn import _backend, ops
        from fusedrnn._call import Weights
        from fusedrnn.__main__ import openmp_runtimes
        from fusedrnn.cells import CELLS
        before = openmp_runtimes()
        torch.set_num_threads(2)
        H, B = 256, 8
        with _backend.backend("cpu"):
            ops.sequence(CELLS["rnn_tanh"], torch.randn(3, B, 5),
                         (Weights(torch.randn(H, 5), torch.randn(H, H)),),
                         torch.zeros(1, B, H), torch.zeros(1, 0, B, H))
        assert len(before) == 1 and openmp_runtimes() == before, openmp_runtimes()
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
