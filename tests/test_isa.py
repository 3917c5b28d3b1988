"""Every instruction set that the library was compiled for, on a machine that has it."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import _native

TESTS = Path(__file__).parent
ROOT = TESTS.parent
pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512vl"},
    "avx512_bf16": {"avx512f", "avx512vl", "avx512_bf16"},
}


def run(isa, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "FUSEDRNN_CPU_ISA": isa},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def machine_flags():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {f for line in lines if line.startswith("flags") for f in line.split()}


def needs(isa):
    if missing := NEEDS[isa] - machine_flags():
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")


@pytest.mark.parametrize("isa", NEEDS)
def test_errors_of_the_activations_in_ulp(isa, tmp_path):
    """Over every float32 where they are more than their argument or a constant, as compiled."""
    needs(isa)
    flags = re.search(rf"CPU_FLAGS_{isa} (.*)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()
    flags += ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", f"-DFRNN_ISA={isa}"]
    source, program = ROOT / "csrc" / "testing" / "ulps.cpp", tmp_path / "ulps"
    subprocess.run(["g++", *flags, source, "-o", program, "-pthread"], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split("\n")
    worst = [(name, float(ulps)) for name, ulps, _ in map(str.split, lines[:-1])]
    assert [name for name, _ in worst] == ["tanh", "sigmoid", "sigmoid"]
    assert all(ulps <= 3.0 for _, ulps in worst), worst


@pytest.mark.parametrize("isa", NEEDS)
def test_the_ops_are_right_with(isa):
    needs(isa)
    assert isa in _native.build_info()["cpu_compiled"].split(", ")
    if isa == _native.build_info()["cpu_in_use"] and isa != "avx512_bf16":
        return  # all other tests run on it
    names, dtype = ["test_sequence.py", "test_modules.py", "test_softmax.py"], "float32"
    names += ["test_softmax_loss.py", "test_softmax_score.py", "test_adaptive.py"]
    if isa == "avx512_bf16":
        names, dtype = ["test_bf16_host.py", "test_modules.py"], "bfloat16"
    picked = f"cpu and (test_equals_reference or test_equals_torch and {dtype})"
    picked += " or test_against_float64 or test_torchs_results or test_smoothing or test_topk_is"
    files = [str(TESTS / name) for name in names]
    done = run(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", picked)
    assert done.returncode == 0, done.stdout[-3000:]
    code = "from fusedrnn import _native; print(_native.build_info()['cpu_in_use'])"
    assert run(isa, "-c", code).stdout.strip() == isa


@pytest.mark.parametrize("isa", [isa for isa in NEEDS if NEEDS[isa]])
def test_one_that_the_machine_lacks_is_refused(isa):
    if NEEDS[isa] <= machine_flags():
        pytest.skip(f"this machine has {isa}")
    done = run(isa, "-c", "import fusedrnn")
    assert done.returncode and f"FUSEDRNN_CPU_ISA={isa} cannot run on this machine" in done.stderr


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump (binutils) is not installed")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction is one of x86-64")
def test_the_dot_product_of_pairs_is_in_the_kernels_named_after_it_and_nowhere_else():
    """Seen in the library as it was built, whatever this machine can run."""
    command = ["objdump", "-d", "--no-show-raw-insn", _native.PATH]
    functions, inside = set(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            if line.endswith(">:\n"):
                inside = line
            elif "vdpbf16ps" in line:
                functions.add(inside)
    assert functions and all("avx512_bf16" in name for name in functions)


def test_an_unknown_one_is_refused():
    done = run("sse", "-c", "import fusedrnn")
    assert done.returncode and "FUSEDRNN_CPU_ISA=sse is unknown; it must be" in done.stderr


def test_an_unknown_backend_in_the_environment_is_refused():
    env = {**os.environ, "FUSEDRNN_BACKEND": "gpu"}
    command = [sys.executable, "-c", "import fusedrnn"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "FUSEDRNN_BACKEND is 'gpu'; it must be one of" in done.stderr


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_the_program_of_the_sanitizers_compiles():
    """tools/sanitize.py takes minutes; so that it is ready when it is wanted."""
    source = ROOT / "csrc" / "testing" / "sanitize.cpp"
    flags = ["-std=c++20", "-fsyntax-only", "-DFRNN_ISA=portable", "-march=x86-64-v2"]
    if platform.machine() != "x86_64":
        flags.pop()
    subprocess.run(["g++", *flags, source], check=True)
