"""Builds the native library with CMake and ninja. Finds torch without importing it.

FUSEDRNN_CUDA=auto|on|off   CUDA kernels. auto: when nvcc is there and the torch beside it is a CUDA
                            build or the machine has an NVIDIA GPU.
FUSEDRNN_ARCHS="80;90a"     the CUDA architectures (default: the list in CMakeLists.txt)
FUSEDRNN_NATIVE=0           no native library at all: pure Python
FUSEDRNN_TESTING=1          also the pybind11 module with which the tests reach single C++ units
FUSEDRNN_TORCH_DIR=path     the torch package to build against
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
HEADER = "include/torch/csrc/stable/library.h"


def torch_dir() -> Path | None:
    """The torch package that has the stable-ABI headers: also from inside pip's isolated build."""
    if given := os.environ.get("FUSEDRNN_TORCH_DIR"):
        if not (Path(given) / HEADER).exists():
            sys.exit(
                f"FUSEDRNN_TORCH_DIR is {given!r}, which has no {HEADER}; "
                "give the directory of an installed torch >= 2.11, or unset it"
            )
        return Path(given)
    found = [Path(s.origin).parent for s in [find_spec("torch")] if s and s.origin]
    # pip's isolated environment hides site-packages; sysconfig still names the real one.
    found += [Path(sysconfig.get_path(k)) / "torch" for k in ("purelib", "platlib")]
    return next((p for p in found if (p / HEADER).exists()), None)


def cuda_wanted(torch: Path) -> tuple[bool, str]:
    """Whether to compile the CUDA kernels, and why."""
    choice = os.environ.get("FUSEDRNN_CUDA", "auto").lower()
    if choice not in ("auto", "on", "off"):
        sys.exit(f"FUSEDRNN_CUDA is {choice!r}; it must be auto, on or off")
    nvcc = shutil.which("nvcc") or shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if choice == "off":
        return False, "FUSEDRNN_CUDA=off"
    if not nvcc:
        if choice == "on":
            sys.exit(
                "FUSEDRNN_CUDA=on, but there is no nvcc on PATH: install the CUDA toolkit, "
                "set CUDACXX, or use FUSEDRNN_CUDA=off"
            )
        return False, "no nvcc"
    if choice == "on":
        return True, "FUSEDRNN_CUDA=on"
    if (torch / "lib/libtorch_cuda.so").exists():
        return True, "nvcc, and torch is a CUDA build"
    if Path("/dev/nvidiactl").exists():
        return True, "nvcc and an NVIDIA GPU"
    return False, "nvcc, but neither a CUDA build of torch nor an NVIDIA GPU"


class Build(build_ext):
    """Runs CMake; says in one line what is built and why."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the package's directory."""
        torch = torch_dir()
        cuda, why = cuda_wanted(torch)
        say(
            f"{'CUDA + CPU kernels' if cuda else 'CPU kernels only'} ({why}); torch headers: {torch}"
        )
        out = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        tmp = Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu")
        testing = os.environ.get("FUSEDRNN_TESTING") == "1"
        options = {
            "FUSEDRNN_TORCH_DIR": torch,
            "FUSEDRNN_CUDA": "ON" if cuda else "OFF",
            "FUSEDRNN_TESTING": "ON" if testing else "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": out,
            "Python_EXECUTABLE": sys.executable,
        }
        if archs := os.environ.get("FUSEDRNN_ARCHS"):
            options["FUSEDRNN_ARCHS"] = archs
        if testing:
            options["pybind11_DIR"] = (
                Path(find_spec("pybind11").origin).parent / "share/cmake/pybind11"
            )
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        defines = [f"-D{k}={v}" for k, v in options.items()]
        tmp.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cmake", "-S", ROOT, "-B", tmp, *generator, *defines], check=True)
        build = ["cmake", "--build", tmp, "--parallel", str(os.cpu_count() or 2)]
        log = subprocess.run(
            build, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout
        (tmp / "build.log").write_text(log)

    def get_ext_filename(self, fullname: str) -> str:
        """One file name for every Python: the library does not use Python's ABI."""
        return fullname.replace(".", "/") + ".so"


class Wheel(bdist_wheel):
    """py3-none-<platform>: one wheel serves every Python and every torch >= 2.11."""

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform, free Python and its ABI."""
        return "py3", "none", super().get_tag()[2]


def say(line: str) -> None:
    """One line that pip shows without -v (its build output is hidden, /dev/tty is not)."""
    print(f"fusedrnn: building {line}", flush=True)


def native() -> list[Extension]:
    """The extension to build, or none."""
    if os.environ.get("FUSEDRNN_NATIVE") == "0":
        say("pure Python (FUSEDRNN_NATIVE=0)")
    elif not (shutil.which(os.environ.get("CXX", "c++")) and shutil.which("cmake")):
        say("pure Python (no C++ compiler or no cmake)")
    elif torch_dir() is None:
        say("pure Python (no torch >= 2.11 with headers in this environment: install torch first)")
    else:
        return [Extension("fusedrnn.libfusedrnn", [])]
    return []


version = re.search(r'__version__ = "(.+)"', (ROOT / "fusedrnn/__init__.py").read_text())[1]
setup(
    version=version,
    packages=["fusedrnn", "fusedrnn.cells", "fusedrnn.triton"],
    ext_modules=native(),
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
