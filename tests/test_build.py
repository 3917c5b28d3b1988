"""setup.py: what it decides, its three outcomes built for real, and what is said when it cannot.

The real builds take a tree with one cell in place of all: every file is compiled, in a fraction of
the time.
"""

import importlib.util
import os
import pty
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent
VARIABLES = ("FUSEDRNN_", "CXX", "CUDA", "TRITON_", "CMAKE_")
ONE_CELL = '#pragma once\n#include "cells/rnn.h"\n#define FRNN_FOR_EACH_CELL(X) X(RNN)\n'

spec = importlib.util.spec_from_file_location("fusedrnn_setup", ROOT / "setup.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe  # dataclasses look their module up
spec.loader.exec_module(recipe)

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
needs_nvcc = pytest.mark.skipif(not recipe.find_nvcc(), reason="nvcc is not installed")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """No setting of the caller's reaches a test; every test decides anew."""
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
    recipe.decide.cache_clear()
    recipe.announce.cache_clear()


def one_cell_tree(where: Path) -> Path:
    """The sources without what earlier builds left in them, one cell and one instruction set."""
    left = shutil.ignore_patterns("*.so", "_build.txt", "__pycache__", "*.egg-info")
    for name in ("csrc", "fusedrnn", "tools"):
        shutil.copytree(ROOT / name, where / name, ignore=left)
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, where)
    (where / "csrc/cells.h").write_text(ONE_CELL)
    cmake, every = where / "CMakeLists.txt", "set(CPU_ISAS portable avx2 avx512 avx512_bf16)"
    assert every in cmake.read_text()
    cmake.write_text(cmake.read_text().replace(every, "set(CPU_ISAS portable)"))
    return where


def pip_wheel(tree: Path, **env: str) -> subprocess.CompletedProcess:
    """`pip wheel` as offline users run it; -v shows what the build said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-build-isolation", "--no-index", "--no-deps"]
    command = [*pip, "wheel", "-v", *offline, "-w", str(tree / "out"), str(tree)]
    return subprocess.run(
        command, env=clean | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def the_wheel(tree: Path, done: subprocess.CompletedProcess) -> Path:
    assert done.returncode == 0, done.stdout
    (wheel,) = (tree / "out").iterdir()
    return wheel


def recorded(wheel: Path) -> str:
    """The one line, as the wheel carries it."""
    return zipfile.ZipFile(wheel).read("fusedrnn/_build.txt").decode().strip()


def bare_environment(where: Path, wheel: Path, *without: str) -> Path:
    """A virtual environment with the wheel and this one's packages, less some; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    (site,) = where.glob("lib/python*/site-packages")
    for item in TORCH.parent.iterdir():
        if not item.name.startswith((*without, "fusedrnn", "__editable__", "__pycache__")):
            (site / item.name).symlink_to(item)
    zipfile.ZipFile(wheel).extractall(site)
    return where / "bin/python"


def run(python: Path, program: str) -> str:
    """Run a program, or the doctor, with neither a compiler nor nvcc on PATH."""
    cwd = python.parents[1]  # not where the sources are
    env = {"PATH": str(python.parent), "HOME": str(cwd)}
    command = [python, "-c", program] if program else [python, "-m", "fusedrnn"]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """if True:
    import torch, fusedrnn
    try:
        import triton
    except ImportError:
        pass
    else:
        raise AssertionError("triton is here")
    torch.manual_seed(0)
    rnn, x = fusedrnn.RNN(5, 7), torch.randn(4, 3, 5)
    def grads(backend):
        with fusedrnn.backend(backend):
            y, h = rnn(x)
            return (y, *torch.autograd.grad(y.sum() + h.sum(), list(rnn.parameters())))
    torch.testing.assert_close(grads("auto"), grads("reference"))
    print(fusedrnn._native.MISSING)
"""


# What is decided.


@pytest.mark.parametrize(
    ("choice", "nvcc", "cuda_torch", "gpu", "wanted", "why"),
    [
        ("auto", None, True, True, False, "no nvcc"),
        ("auto", "nvcc", False, False, False, "neither a CUDA build of torch nor an NVIDIA GPU"),
        ("auto", "nvcc", True, False, True, "torch is a CUDA build"),
        ("auto", "nvcc", False, True, True, "an NVIDIA GPU"),
        ("on", "nvcc", False, False, True, "FUSEDRNN_CUDA=on"),
        ("off", "nvcc", True, True, False, "FUSEDRNN_CUDA=off"),
        ("off", None, False, False, False, "FUSEDRNN_CUDA=off"),
    ],
)
def test_whether_cuda_is_wanted(choice, nvcc, cuda_torch, gpu, wanted, why):
    answer, reason = recipe.cuda_wanted(choice, nvcc, cuda_torch, gpu)
    assert answer is wanted and why in reason


@pytest.mark.parametrize(
    ("choice", "said"), [("on", "no nvcc was found"), ("yes", "must be auto, on or off")]
)
def test_a_choice_that_cannot_be_met(choice, said):
    with pytest.raises(SystemExit, match=said):
        recipe.cuda_wanted(choice, None, True, True)


@pytest.mark.parametrize(
    ("given", "known", "archs"),
    [
        (None, {75, 80, 86, 90, 100, 120}, ("75", "80", "90a", "100", "120")),
        (None, {80, 90}, ("80", "90a")),
        ("90a", {80, 90}, ("90a",)),
        ("80;100f", {80, 90, 100}, ("80", "100f")),
    ],
)
def test_architectures(given, known, archs):
    assert recipe.cuda_archs(given, known) == archs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sm_80", "'sm_80' is not an architecture"),
        ("80,90", "'80,90' is not an architecture"),
        ("80;", "'' is not an architecture"),
        ("", "'' is not an architecture"),
        ("70", "too old"),
        ("80;120", "this nvcc knows 80, 90, not '120'"),
    ],
)
def test_architectures_that_cannot_be(given, said):
    with pytest.raises(SystemExit, match=said):
        recipe.cuda_archs(given, {80, 90})


@needs_nvcc
def test_nvcc_says_what_it_knows():
    assert 80 in recipe.known_archs(recipe.find_nvcc())


def test_an_nvcc_that_is_not_on_path(monkeypatch, tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert recipe.find_nvcc() == str(nvcc)


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"FUSEDRNN_NATIVE": "0"}, "FUSEDRNN_NATIVE=0"),
        ({"PATH": "/nowhere"}, "no C\\+\\+ compiler: there is no g\\+\\+ on PATH"),
        ({"CXX": "/nowhere/c++ -O2"}, "no C\\+\\+ compiler: there is no /nowhere/c\\+\\+ on PATH"),
    ],
)
def test_pure_python_has_a_reason_and_never_meets_cuda_on(monkeypatch, env, why):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = recipe.decide()
    assert not found.native and why.replace("\\", "") in str(found)
    assert "\n" not in str(found)
    monkeypatch.setenv("FUSEDRNN_CUDA", "on")
    monkeypatch.setattr(recipe, "find_nvcc", lambda: "nvcc")
    recipe.decide.cache_clear()
    with pytest.raises(SystemExit, match=f"nothing native can be built: {why}"):
        recipe.decide()


@pytest.mark.parametrize(
    ("version", "why"),
    [(None, "no torch in this environment"), ("2.8.0", "torch 2.8.0 is too old")],
)
def test_no_torch_or_an_old_one(monkeypatch, tmp_path, version, why):
    if version:
        (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.setattr(recipe, "torch_dirs", lambda: [tmp_path] if version else [])
    found = recipe.decide()
    assert not found.native and why in str(found)


def test_a_torch_dir_that_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEDRNN_TORCH_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="give .../site-packages/torch, or unset it"):
        recipe.decide()


def test_torch_is_found_from_inside_an_isolated_build(tmp_path):
    """Site-packages are hidden there; setup.py still finds the torch of the environment."""
    for name in ("setuptools", "_distutils_hack"):  # what pip would put there
        (tmp_path / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    hide = "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')]"
    (tmp_path / "sitecustomize.py").write_text(hide)  # as pip does
    program = (
        "import importlib.util, runpy\n"
        "assert importlib.util.find_spec('torch') is None\n"
        f"print(runpy.run_path({str(ROOT / 'setup.py')!r})['usable_torch']()[0])\n"
    )
    command = [sys.executable, "-c", program]
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(TORCH), done.stderr


def test_the_terminal_is_told_though_pip_hides_the_output():
    """A build whose output goes elsewhere still says its one line on the terminal, once."""
    program = (
        "import os, runpy, sys; os.environ['FUSEDRNN_NATIVE'] = '0'\n"
        "sys.stdout = open(os.devnull, 'w')\n"
        f"r = runpy.run_path({str(ROOT / 'setup.py')!r}); r['announce'](); r['announce']()\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    said = b""
    try:
        while chunk := os.read(terminal, 4096):
            said += chunk
    except OSError:
        pass  # the other end is closed: all is read
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, said
    assert said.decode().split("\r\n").count(
        "fusedrnn: pure Python, no native library (FUSEDRNN_NATIVE=0)"
    ) == 1, said  # fmt: skip


# What is built.


def test_pure_python(tmp_path):
    tree = one_cell_tree(tmp_path / "tree")
    (tree / "fusedrnn/libfusedrnn.so").write_bytes(b"left by an earlier build")
    done = pip_wheel(tree, PATH="/nowhere")
    wheel = the_wheel(tree, done)
    line = "fusedrnn: pure Python, no native library (no C++ compiler: there is no g++ on PATH)"
    assert line in done.stdout and recorded(wheel) == line
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    python = bare_environment(tmp_path / "venv", wheel, "triton")
    assert line.removeprefix("fusedrnn: ") in run(python, USE)
    assert line.removeprefix("fusedrnn: ") in run(python, "")


@needs_compiler
def test_cpu_kernels(tmp_path):
    tree = one_cell_tree(tmp_path / "tree")
    done = pip_wheel(tree, FUSEDRNN_CUDA="off")
    wheel = the_wheel(tree, done)
    line = recorded(wheel)
    assert line in done.stdout
    assert line.startswith("fusedrnn: CPU kernels, no CUDA kernels (FUSEDRNN_CUDA=off; against")
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    assert "fusedrnn/libfusedrnn.so" in zipfile.ZipFile(wheel).namelist()
    python = bare_environment(tmp_path / "venv", wheel, "triton")
    assert run(python, USE).strip() == "None"
    assert ": healthy" in run(python, "").splitlines()[0]


@needs_compiler
@needs_nvcc
def test_cuda_and_cpu_kernels(tmp_path):
    tree = one_cell_tree(tmp_path / "tree")
    done = pip_wheel(tree, FUSEDRNN_CUDA="on", FUSEDRNN_ARCHS="80")
    wheel = the_wheel(tree, done)
    line = recorded(wheel)
    assert line in done.stdout
    assert line.startswith("fusedrnn: CUDA kernels (sm_80) and CPU kernels (FUSEDRNN_CUDA=on")
    python = bare_environment(tmp_path / "venv", wheel, "triton")
    assert run(python, USE).strip() == "None"  # loads beside any torch, GPU or not
    assert "CUDA code  80" in run(python, "")
    check = [sys.executable, ROOT / "tools/check_binary.py"]
    (library,) = (tmp_path / "venv").glob("lib/python*/site-packages/fusedrnn/libfusedrnn.so")
    checked = subprocess.run([*check, library], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@needs_compiler
def test_the_compilers_own_words_when_it_fails(tmp_path):
    tree = one_cell_tree(tmp_path / "tree")
    (tree / "csrc/cell.h").write_text("#error broken for this test\n")
    done = pip_wheel(tree, FUSEDRNN_CUDA="off")
    assert done.returncode != 0
    assert "error: #error broken for this test" in done.stdout
    assert "fusedrnn: the build failed (cmake: exit status 1)" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list((tree / "out").glob("*"))
