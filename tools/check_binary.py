"""Checks that one build of the library serves every supported torch, Python and a stated Linux.

    python tools/check_binary.py fusedrnn/libfusedrnn.so

Every torch symbol that the library needs must be one of the C shims that torch 2.11 exports (the
list beside this file); none may be a mangled C++ name of torch, and none Python's. OpenMP must come
from torch: the library must not load a runtime of its own. The glibc and libstdc++ it needs are
printed and must be no newer than those of manylinux_2_34 (Debian 12, Ubuntu 22.04, RHEL 9). Uses nm
and readelf.

The list was written, beside an installed torch 2.11.0 (CUDA build, for the CUDA shims), by

    python tools/check_binary.py --write-list .../site-packages/torch
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("stable_symbols_2_11.txt")
SHIM = re.compile(r"(aoti_)?torch_\w+")
CXX_OF_TORCH = re.compile(r"_Z(T[A-Z]|G[A-Z])?N?[KVRO]*(2at|3c10|5torch|6caffe2)")
OF_PYTHON = re.compile(r"_?Py[A-Z]\w*")
OPENMP = re.compile(r"(GOMP|omp)_\w+")
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13)}
# Beside torch itself: what every Linux with glibc and libstdc++ has.
LIBRARIES = re.compile(
    r"libtorch(_cpu)?\.so|lib(stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so\.\d|ld-linux-.*"
)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def undefined(library: Path) -> dict[str, str]:
    """The dynamic symbols that a library needs, with their version (or an empty string)."""
    names = (line.split()[-1] for line in _run("nm", "-D", "-u", library).splitlines())
    return {name: version for name, _, version in (n.partition("@") for n in names)}


def needed(library: Path) -> list[str]:
    """The libraries that a library loads."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _run("readelf", "-dW", library))


def newest(versions: set[str]) -> dict[str, tuple[int, ...]]:
    """Of symbol versions such as GLIBC_2.29, the newest of each kind."""
    found: dict[str, tuple[int, ...]] = {}
    for version in versions:
        if match := re.fullmatch(r"@?(GLIBC|GLIBCXX|CXXABI)_([\d.]+)", version):
            numbers = tuple(map(int, match[2].split(".")))
            found[match[1]] = max(found.get(match[1], ()), numbers)
    return found


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def problems(symbols: dict[str, str], libraries: list[str], allowed: set[str]) -> list[str]:
    """What is wrong with a library that needs these symbols and libraries; empty: nothing."""
    found = []
    for name in sorted(symbols):
        if SHIM.fullmatch(name) and name not in allowed:
            found.append(f"{name}: torch 2.11 has no such stable shim")
        elif CXX_OF_TORCH.match(name):
            found.append(f"{name}: a C++ symbol of torch, which changes with each torch")
        elif OF_PYTHON.fullmatch(name):
            found.append(f"{name}: a symbol of Python, which ties the wheel to one Python")
    for library in libraries:
        if not LIBRARIES.fullmatch(library):
            why = "OpenMP must come from torch" if "omp" in library else "not on every Linux"
            found.append(f"loads {library}: {why}")
    for kind, numbers in newest(set(symbols.values())).items():
        if numbers > NEWEST[kind]:
            found.append(
                f"needs {kind}_{_dotted(numbers)}, newer than manylinux_2_34's "
                f"{_dotted(NEWEST[kind])}: build on an older distribution"
            )
    return found


def write_list(torch: Path) -> None:
    """Write the C shims that this torch exports to the list beside this file."""
    names: set[str] = set()
    for library in ("libtorch_cpu.so", "libtorch_cuda.so"):
        for line in _run("nm", "-D", "--defined-only", torch / "lib" / library).splitlines():
            name = line.split()[-1].partition("@")[0]
            if SHIM.fullmatch(name):
                names.add(name)
    LIST.write_text("".join(f"{name}\n" for name in sorted(names)))
    print(f"{LIST}: {len(names)} symbols")


def check(library: Path) -> int:
    """Print what a library needs and what is wrong with it; return the exit status."""
    symbols, libraries = undefined(library), needed(library)
    shims = [name for name in symbols if SHIM.fullmatch(name)]
    openmp = [name for name in symbols if OPENMP.fullmatch(name)]
    versions = newest(set(symbols.values()))
    print(f"{library.name}: {len(shims)} stable shims of torch, {len(openmp)} of its OpenMP")
    print(f"  loads {', '.join(libraries)}")
    print(f"  needs {', '.join(f'{k} {_dotted(v)}' for k, v in sorted(versions.items()))}")
    wrong = problems(symbols, libraries, set(LIST.read_text().split()))
    for line in wrong:
        print(f"  WRONG: {line}")
    print(f"  {len(wrong)} problems" if wrong else "  serves torch >= 2.11 and any Python 3")
    return 1 if wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="libfusedrnn.so")
    parser.add_argument(
        "--write-list", action="store_true", help="PATH is a torch package: write the list from it"
    )
    args = parser.parse_args()
    if args.write_list:
        write_list(args.path)
        return 0
    return check(args.path)


if __name__ == "__main__":
    sys.exit(main())
