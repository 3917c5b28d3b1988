"""Builds the native library with CMake and ninja. Finds torch without importing it.

A build has one of three outcomes, said in one line: CUDA + CPU kernels, CPU kernels, pure Python.
That line is also left in the package (fusedrnn/_build.txt), where `python -m fusedrnn` finds it.

FUSEDRNN_CUDA=auto|on|off   CUDA kernels. auto: when nvcc is there and the torch beside it is a
                            CUDA build or the machine has an NVIDIA GPU. on: an error when they
                            cannot be built
FUSEDRNN_ARCHS="80;90a"     the CUDA architectures; PTX of the last goes with them. Default: those
                            of ARCHS below that nvcc knows
FUSEDRNN_NATIVE=0           no native library at all: pure Python
FUSEDRNN_TESTING=1          also the pybind11 modules with which the tests reach single C++ units;
                            they go into the source tree, never into a wheel
FUSEDRNN_TORCH_DIR=path     the torch package to build against
CXX, CUDACXX, CUDA_HOME, CMAKE_BUILD_PARALLEL_LEVEL   as CMake and torch understand them
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
HEADER = "include/torch/csrc/stable/library.h"
OLDEST_TORCH = (2, 11)
ARCHS = ("75", "80", "90a", "100", "120")


@dataclass(frozen=True)
class Outcome:
    """What is built, and why."""

    native: bool
    why: str
    torch: Path | None = None
    nvcc: str | None = None
    archs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The one line."""
        if not self.native:
            return f"fusedrnn: pure Python, no native library ({self.why})"
        gpus = ", ".join(f"sm_{arch}" for arch in self.archs)
        what = f"CUDA kernels ({gpus}) and CPU kernels" if gpus else "CPU kernels, no CUDA kernels"
        return f"fusedrnn: {what} ({self.why}; against torch {torch_version(self.torch)})"


def stop(message: str) -> None:
    """End the build with one clear line instead of a traceback."""
    raise SystemExit(f"fusedrnn: {message}")


def tool(name: str) -> str | None:
    """A program beside this Python, whether its venv is activated or not, or on PATH.

    So builds with and without pip's isolation, which puts a CMake of its own on PATH, have the same
    one, and what one of them compiled serves the other.
    """
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def torch_version(torch: Path) -> str:
    """The version of an installed torch, read, not imported."""
    text = (torch / "version.py").read_text()
    return re.search(r"__version__ = '(.+)'", text)[1]


def torch_dirs() -> list[Path]:
    """Where torch may be: also from inside pip's isolated build, which hides site-packages."""
    found = [Path(s.origin).parent for s in [find_spec("torch")] if s and s.origin]
    user = sysconfig.get_preferred_scheme("user")
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}  # a venv with system packages
    for key in ("purelib", "platlib"):
        found += [Path(sysconfig.get_path(key)) / "torch"]
        found += [Path(sysconfig.get_path(key, user)) / "torch"]
        found += [Path(sysconfig.get_path(key, vars=base)) / "torch"]
    return [p for p in found if (p / "version.py").exists()]


def usable_torch() -> tuple[Path | None, str]:
    """The torch package to build against, or None and why there is none."""

    def fits(torch: Path) -> bool:
        numbers = re.findall(r"\d+", torch_version(torch))
        return tuple(map(int, numbers[:2])) >= OLDEST_TORCH and (torch / HEADER).exists()

    oldest = ".".join(map(str, OLDEST_TORCH))
    if given := os.environ.get("FUSEDRNN_TORCH_DIR"):
        torch = Path(given).resolve()
        if not (torch / "version.py").exists() or not fits(torch):
            stop(
                f"FUSEDRNN_TORCH_DIR is {given!r}, which is not the package directory of a torch "
                f">= {oldest} with its headers; give .../site-packages/torch, or unset it"
            )
        return torch, ""
    there = torch_dirs()
    if torch := next(filter(fits, there), None):
        return torch, ""
    if there:
        return None, f"torch {torch_version(there[0])} is too old: {oldest} or newer is needed"
    return None, f"no torch in this environment: install torch >= {oldest} first, then this again"


def find_nvcc() -> str | None:
    """The CUDA compiler, where CMake and torch look for it too."""
    homes = [os.environ.get(k) for k in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [os.environ.get("CUDACXX"), "nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    return next(filter(None, (shutil.which(place) for place in places if place)), None)


def cuda_wanted(choice: str, nvcc: str | None, cuda_torch: bool, gpu: bool) -> tuple[bool, str]:
    """Whether to compile the CUDA kernels, and why: a pure function of what was found."""
    if choice not in ("auto", "on", "off"):
        stop(f"FUSEDRNN_CUDA is {choice!r}; it must be auto, on or off")
    if choice == "off":
        return False, "FUSEDRNN_CUDA=off"
    if not nvcc:
        if choice == "on":
            stop(
                "FUSEDRNN_CUDA=on, but no nvcc was found: install the CUDA toolkit, name its nvcc "
                "in CUDACXX, or use FUSEDRNN_CUDA=off"
            )
        return False, "no nvcc: not on PATH, nor in CUDACXX, CUDA_HOME or /usr/local/cuda"
    if choice == "on":
        return True, "FUSEDRNN_CUDA=on"
    if cuda_torch:
        return True, "nvcc, and torch is a CUDA build"
    if gpu:
        return True, "nvcc and an NVIDIA GPU"
    return (
        False,
        "nvcc, but neither a CUDA build of torch nor an NVIDIA GPU; FUSEDRNN_CUDA=on overrides",
    )


def cuda_archs(given: str | None, known: set[int]) -> tuple[str, ...]:
    """The architectures to compile for. ``known``: what nvcc can compile for, as 80, 90, ..."""

    def number(arch: str) -> int:
        return int(re.sub(r"\D", "", arch))

    if given is None:
        return tuple(arch for arch in ARCHS if number(arch) in known)
    archs = tuple(given.split(";"))
    for arch in archs:
        wrong = None
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            wrong = f"{arch!r} is not an architecture"
        elif number(arch) < 75:
            wrong = f"{arch!r} is too old: the kernels are made for 75 and newer"
        elif number(arch) not in known:
            wrong = f"this nvcc knows {', '.join(map(str, sorted(known)))}, not {arch!r}"
        if wrong:
            stop(f'FUSEDRNN_ARCHS is {given!r}: {wrong}; give a list like "80;90a;100;120"')
    return archs


def known_archs(nvcc: str) -> set[int]:
    """What this nvcc can compile for."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if listed.returncode:
        stop(f"{nvcc} --list-gpu-arch failed: {listed.stderr.strip() or listed.stdout.strip()}")
    return {int(n) for n in re.findall(r"compute_(\d+)", listed.stdout)}


@cache
def decide() -> Outcome:
    """What this build makes of this machine."""
    choice = os.environ.get("FUSEDRNN_CUDA", "auto").lower()
    switch = os.environ.get("FUSEDRNN_NATIVE", "1")
    if switch not in ("0", "1"):
        stop(f"FUSEDRNN_NATIVE is {switch!r}; it must be 0 or 1")
    compiler = shlex.split(os.environ.get("CXX") or "g++")[0]
    torch, why = usable_torch()
    if switch == "0":
        why = "FUSEDRNN_NATIVE=0"
    elif not shutil.which(compiler):
        why = f"no C++ compiler: there is no {compiler} on PATH"
    elif not tool("cmake"):
        why = "no cmake: pip install cmake ninja"
    nvcc = find_nvcc()
    gpu = Path("/dev/nvidiactl").exists()
    cuda_torch = torch is not None and (torch / "lib/libtorch_cuda.so").exists()
    cuda, cuda_why = cuda_wanted(choice, nvcc, cuda_torch, gpu)
    if why:
        if choice == "on":
            stop(f"FUSEDRNN_CUDA=on, but nothing native can be built: {why}")
        return Outcome(False, why)
    if not cuda:
        return Outcome(True, cuda_why, torch)
    archs = cuda_archs(os.environ.get("FUSEDRNN_ARCHS"), known_archs(nvcc))
    return Outcome(True, cuda_why, torch, nvcc, archs)


def record(package: Path) -> None:
    """Leave the one line in the package, and no library of an earlier build beside a pure one."""
    package.mkdir(parents=True, exist_ok=True)
    (package / "_build.txt").write_text(f"{decide()}\n")
    if not decide().native:
        (package / "libfusedrnn.so").unlink(missing_ok=True)
    announce()


@cache
def announce() -> None:
    """Say the one line where it is read: pip hides a build's output, but not the terminal."""
    print(decide(), flush=True)
    if not sys.stdout.isatty():
        try:
            Path("/dev/tty").write_text(f"\n{decide()}\n")
        except OSError:
            pass  # no terminal


def run_shown(command: list, quiet: bool) -> None:
    """Run a build command; show its output unless ``quiet``, and always if it fails."""
    into = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, text=True, errors="replace", stdout=into, stderr=subprocess.STDOUT
    )
    if done.returncode:
        if quiet:
            print(done.stdout, flush=True)
        stop(
            f"the build failed ({Path(command[0]).name}: exit status {done.returncode}); its error "
            "is above. FUSEDRNN_CUDA=off leaves out the CUDA kernels, FUSEDRNN_NATIVE=0 all of it"
        )


class Build(build_ext):
    """Runs CMake."""

    def run(self) -> None:
        """Build, and say so."""
        announce()
        super().run()
        home = Path(self.get_finalized_command("build_py").get_package_dir("fusedrnn"))
        record(home if self.inplace or self.editable_mode else Path(self.build_lib) / "fusedrnn")

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the package's directory."""
        what = decide()
        out = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        cmake, ninja = tool("cmake"), tool("ninja")
        # Beside build_temp, whose name has the Python's version: the objects serve every Python. An
        # editable install has a build_temp of its own each time and would compile all anew.
        # With and without CUDA in one place: the CPU kernels, most of the work, are the same.
        base = ROOT / "build" if self.editable_mode else Path(self.build_temp).resolve().parent
        tmp = base / ("ninja" if ninja else "make")
        tmp.mkdir(parents=True, exist_ok=True)
        testing = os.environ.get("FUSEDRNN_TESTING") == "1"
        options = {
            "FUSEDRNN_TORCH_DIR": what.torch,
            "FUSEDRNN_ARCHS": ";".join(what.archs),
            "FUSEDRNN_TESTING": "ON" if testing else "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": out,
            "Python_EXECUTABLE": sys.executable,
        }
        if not os.environ.get("CXX"):
            options["CMAKE_CXX_COMPILER"] = "g++"
        if what.nvcc:
            options["CMAKE_CUDA_COMPILER"] = what.nvcc
        if testing:
            options["pybind11_DIR"] = (
                Path(find_spec("pybind11").origin).parent / "share/cmake/pybind11"
            )
        generator = ["-G", "Ninja"] if ninja else []
        if ninja:
            # Said each time: a later build must not look in an isolated environment that is gone.
            options["CMAKE_MAKE_PROGRAM"] = ninja
        quiet = not self.distribution.verbose
        defines = [f"-D{k}={v}" for k, v in options.items()]
        run_shown([cmake, "-S", ROOT, "-B", tmp, *generator, *defines], quiet)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
        run_shown([cmake, "--build", tmp, "--parallel", jobs], quiet)
        for module in (tmp / "testing").glob("*.so") if testing else ():
            shutil.copy(module, ROOT / "fusedrnn")

    def get_ext_filename(self, fullname: str) -> str:
        """One file name for every Python: the library does not use Python's ABI."""
        return fullname.replace(".", "/") + ".so"


class Modules(build_py):
    """The Python files, and the one line beside them."""

    def run(self) -> None:
        """Copy, then record; an editable install has its line in the source tree."""
        super().run()
        home = (
            self.get_package_dir("fusedrnn") if self.editable_mode else f"{self.build_lib}/fusedrnn"
        )
        record(Path(home))


class Wheel(bdist_wheel):
    """py3-none-<platform>: one wheel serves every Python and every torch >= 2.11."""

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform, free Python and its ABI."""
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fusedrnn/__init__.py").read_text())[1]
    setup(
        version=version,
        packages=find_packages(include=["fusedrnn", "fusedrnn.*"]),
        ext_modules=[Extension("fusedrnn.libfusedrnn", [])] if decide().native else [],
        cmdclass={"build_ext": Build, "build_py": Modules, "bdist_wheel": Wheel},
    )
