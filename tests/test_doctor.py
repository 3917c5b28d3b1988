"""`python -m fusedrnn`: what it says here, and what it says of machines that are worse off."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import __main__ as doctor
from fusedrnn import _backend, _native

PACKAGE = Path(fusedrnn.__file__).parent
native = pytest.mark.skipif(_native.MISSING is not None, reason=f"no library: {_native.MISSING}")


def run(cwd: Path = PACKAGE.parent, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FUSEDRNN_")}
    command = [sys.executable, "-m", "fusedrnn"]
    return subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True)


def sections(text: str) -> dict[str, dict[str, str]]:
    """The report as {section: {name: value}}."""
    blocks = [block.splitlines() for block in text.split("\n\n") if "\n  " in block]
    rows = {b[0]: [re.split(r"  +", line.strip(), maxsplit=1) for line in b[1:]] for b in blocks}
    return {title: {row[0]: row[1] for row in these} for title, these in rows.items()}


def lines() -> str:
    written = []
    doctor.report(written.append)
    return "\n".join(written)


def copy_of_package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "fusedrnn", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "fusedrnn"


def test_versions_of_everything_that_matters():
    done = run()
    assert done.returncode == 0 and done.stderr == ""
    found = sections(done.stdout)["Versions"]
    assert found["fusedrnn"] == fusedrnn.__version__
    assert found["torch"].startswith(torch.__version__)
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"triton", "system", "C library"} < set(found)


@native
def test_the_library_its_code_and_its_threads():
    found = sections(run(OMP_NUM_THREADS="1").stdout)["Native library"]
    info = _native.build_info()
    assert found["built"] == _native.OUTCOME
    assert found["CUDA code"] == info.get("cuda_archs", "none").replace(",", ", ")
    assert found["CPU code"] == f"{info['cpu_compiled']}; in use: {info['cpu_in_use']}"
    assert re.fullmatch(r"lib\S+ of torch", found["OpenMP"])
    assert found["threads"].startswith("1 of ")


@native
def test_the_instruction_set_asked_for_is_the_one_in_use():
    found = sections(run(FUSEDRNN_CPU_ISA="portable").stdout)
    assert found["Native library"]["CPU code"].endswith("in use: portable")
    assert found["Environment"]["FUSEDRNN_CPU_ISA"].startswith("'portable'")


@native
def test_each_op_names_its_backend():
    ops = sections(run().stdout)["What runs for tensors on cpu"]
    assert ops["sequence, all dtypes"] == "cpu (the fastest for this device)"


def test_an_impossible_request_is_explained():
    done = run(FUSEDRNN_BACKEND="cuda", CUDA_VISIBLE_DEVICES="")
    assert "FUSEDRNN_BACKEND=cuda cannot serve here" in done.stdout.splitlines()[0]
    ops = sections(done.stdout)["What runs for tensors on cpu"]
    assert all(a.startswith("error:") and "the tensors are on cpu" in a for a in ops.values())


def test_no_library_is_an_ordinary_state_with_its_reason(tmp_path):
    package = copy_of_package(tmp_path)
    (package / "libfusedrnn.so").unlink(missing_ok=True)
    (package / "_build.txt").write_text("fusedrnn: pure Python, no native library (no g++)\n")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("there is no native library; see 'built' below")
    found = sections(done.stdout)
    assert found["Native library"] == {
        "built": "pure Python, no native library (no g++)",
        "file": "none",
    }
    answer = found["What runs for tensors on cpu"]["sequence, all dtypes"]
    assert answer.startswith("reference (not cpu: ") and "no g++" in answer


def test_a_source_tree_never_built_says_how_to_build(tmp_path):
    package = copy_of_package(tmp_path)
    for name in ("libfusedrnn.so", "_build.txt"):
        (package / name).unlink(missing_ok=True)
    assert "never built: run `make`" in sections(run(tmp_path).stdout)["Native library"]["built"]


def test_a_library_that_does_not_load_is_an_illness(tmp_path):
    package = copy_of_package(tmp_path)
    (package / "libfusedrnn.so").write_bytes(b"not a library")
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith(f"fusedrnn {fusedrnn.__version__}: ill")
    assert sections(done.stdout)["Native library"]["loads"].startswith("no: ")


def test_different_dtypes_get_lines_of_their_own(monkeypatch):
    def limits(cell, dtype, projection):
        no = "too wide" if dtype == torch.float64 else None
        return {"cpu": no, "cuda": no, "triton": no}

    monkeypatch.setattr(doctor.ops, "limits", limits)
    monkeypatch.setattr(_backend, "obstacle", lambda name, device: None)
    found = dict(doctor.choices("cpu"))
    assert found["sequence, float32, bfloat16, float16"].startswith("cpu")
    assert found["sequence, float64"] == "reference (not cpu: too wide)"


def test_different_cells_get_lines_of_their_own(monkeypatch):
    def limits(cell, dtype, projection):
        no = "not this one" if cell == "gru" else None
        return {"cpu": no, "cuda": no, "triton": no}

    monkeypatch.setattr(doctor.ops, "limits", limits)
    monkeypatch.setattr(_backend, "obstacle", lambda name, device: None)
    found = dict(doctor.choices("cpu"))
    assert found["sequence of gru, all dtypes"] == "reference (not cpu: not this one)"
    (others,) = (name for name in found if "lstm" in name)
    assert found[others].startswith("cpu")


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        ("80,90a,100,120", (8, 0), "sm_80"),
        ("80,90a,100,120", (8, 9), "sm_80"),
        ("80,90a,100,120", (9, 0), "sm_90a"),
        ("80,90a,100,120", (10, 3), "sm_100"),
        ("80,90a,100,120", (12, 1), "sm_120"),
        ("80,90a,100,120", (13, 0), "PTX of compute_120"),
        ("80,90a,100,120", (7, 5), None),
        ("80", (9, 0), "PTX of compute_80"),
        ("90a", (10, 0), None),
        ("86", (8, 0), None),
        ("", (9, 0), None),
    ],
)
def test_which_code_a_gpu_runs(monkeypatch, archs, capability, code):
    monkeypatch.setattr(_native, "ARCHS", tuple(filter(None, archs.split(","))))
    assert _native.cuda_code(capability) == code


def test_a_gpu_is_named_with_the_code_that_fits_it(monkeypatch):
    monkeypatch.setattr(_native, "ARCHS", ("80", "90a"))
    monkeypatch.setattr(_native, "HAS_CUDA", False)  # else the GPU is asked about its clusters
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (12, 0)][i])
    found = dict(doctor.gpus())
    assert found["cuda:0"] == "GPU 0, sm_90: sm_90a"
    assert found["cuda:1"].endswith(
        "has no code for it; rebuild with FUSEDRNN_CUDA=on FUSEDRNN_ARCHS=120"
    )


@pytest.fixture
def old_gpu(monkeypatch):
    """A GPU for which a library with code for 80 and 90a has none."""
    monkeypatch.setattr(_native, "ARCHS", ("80", "90a"))
    monkeypatch.setattr(_native, "HAS_CUDA", True)
    monkeypatch.setattr(_native, "MISSING", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5))
    monkeypatch.setattr(_backend, "_uncovered", {})


def test_a_gpu_without_code_is_an_obstacle_with_the_fix(old_gpu, monkeypatch):
    reason = _backend.obstacle("cuda", "cuda")
    assert reason == (
        "the GPU is sm_75, and the library has no code for it; "
        "rebuild with FUSEDRNN_CUDA=on FUSEDRNN_ARCHS=75"
    )
    monkeypatch.setattr(_backend, "_HAS_TRITON", True)
    assert _backend.choose("cuda", {}) == ("triton", f"not cuda: {reason}")
    with _backend.backend("cuda"), pytest.raises(RuntimeError, match="FUSEDRNN_ARCHS=75"):
        _backend.choose("cuda", {})


def test_the_question_does_not_break_a_compiled_graph(monkeypatch):
    monkeypatch.setattr(_native, "HAS_CUDA", True)
    monkeypatch.setattr(_native, "MISSING", None)

    def f(x):
        return x - 1 if _backend.obstacle("cuda", "cuda") else x + 1

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())) == f(torch.zeros(()))


def test_no_gpu_is_said_and_so_is_a_gpu_without_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dict(doctor.gpus()).keys() == {"none"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "HAS_CUDA", False)
    monkeypatch.setattr(_native, "MISSING", None)
    assert "no CUDA kernels for the GPU" in doctor.verdict()


def test_nothing_personal_but_the_librarys_place(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: PACKAGE.parent)
    text = lines()
    assert str(PACKAGE.parent) not in text
    assert _native.MISSING or "~/fusedrnn/libfusedrnn.so" in text
    assert text.endswith("To report a bug, paste all of this.")
