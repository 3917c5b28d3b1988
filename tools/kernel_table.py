"""Registers, spills, stack and shared memory of every CUDA kernel, from what ptxas says.

    kernel_table.py compile --archs "80 90a" -o FILE     compiles csrc/cuda/*.cu itself
    kernel_table.py record nvcc ... -o x.o     runs a compiler, keeps its messages in x.o.ptxas
    kernel_table.py gather DIR --nvcc 13.0.88 -o FILE     the table of all *.ptxas files under DIR

The build records and gathers (CMakeLists.txt); tests/test_cuda_compile.py compiles and compares
with the committed docs/kernel-table.md. Needs no GPU.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("75", "80", "90a", "100", "120")
DTYPES = {
    "double": "float64",
    "float": "float32",
    "__nv_bfloat16": "bfloat16",
    "__half": "float16",
}
HEAD = """# What the compiler says of every CUDA kernel

Written by `python tools/kernel_table.py compile -o docs/kernel-table.md`; a test compares it with
the compiler. Registers a thread, by architecture; static shared memory in bytes. "Spilled" adds
spill stores, spill loads and stack over all architectures: 0 means that all stays in registers.

Cluster kernels have the number of their shape (csrc/cluster_tile.h) and of tiles of eight batch
rows in brackets. They are empty but on sm_90a and sm_100, grid kernels before sm_80. The shared
memory of both is dynamic, and `python -m fusedrnn plan` says how much.

"""


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture."""

    name: str
    cell: str
    dtype: str
    arch: str
    registers: int
    shared: int
    spilled: int

    @property
    def key(self) -> tuple[str, str, str]:
        """Which kernel it is, whatever the architecture."""
        return self.name, self.cell, self.dtype


def _snake(name: str) -> str:
    """The C++ name of a cell as the registry writes it: GRUResetBefore -> gru_reset_before."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _identify(function: str) -> tuple[str, str, str]:
    """Kernel, cell and dtype from a demangled name; "-" for what it does not have.

    Numbers among the template's arguments say which tile it is: ``cluster_forward[0, 4]``.
    """
    found = re.search(r"fusedrnn::(?:\w+::)*(\w+)(?:<(.*)>)?\(", function)
    if not found:
        sys.exit(f"kernel_table: no kernel of fusedrnn: {function}")
    arguments = re.sub(r"fusedrnn::(\w+::)*", "", found[2] or "").split(", ")
    tile = [a for a in arguments if a.isdigit()]
    *cell, dtype = (a for a in arguments if not a.isdigit())
    inner = "_".join(_snake(part) for part in re.findall(r"\w+", cell[0])) if cell else "-"
    name = f"{found[1]}[{', '.join(tile)}]" if tile else found[1]
    return name, inner, DTYPES.get(dtype, "-")


def parse(log: str) -> list[Kernel]:
    """The kernels that ptxas -v speaks of in a compiler's messages."""
    log = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True).stdout
    kernels = []
    entry = r"Compiling entry function '(.+?)' for 'sm_(\w+)'(.*?Used (\d+) registers[^\n]*)"
    for function, arch, text, registers in re.findall(entry, log, re.DOTALL):
        spilled = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", text)
        shared = re.search(r"(\d+) bytes smem", text)
        kernels.append(
            Kernel(
                *_identify(function),
                arch,
                int(registers),
                int(shared[1]) if shared else 0,
                sum(map(int, spilled)),
            )
        )
    return kernels


def nvcc_version() -> str | None:
    """The release of the nvcc on PATH, or None."""
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"release .*?V([\d.]+)", text)
    return found[1] if found else None


def compile_kernels(archs: tuple[str, ...], jobs: int = 2) -> list[Kernel]:
    """Compile every .cu file for each architecture with the build's flags; keep nothing.

    Raises:
        RuntimeError: nvcc fails; the text is its messages.
    """

    def one(source: Path, arch: str, out: str) -> str:
        code = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            "-DNDEBUG",
            "-Xptxas=-v",
            *code,
            "-cubin",
            str(source),
        ]
        command += ["-o", f"{out}/{source.stem}.{arch}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(jobs) as pool:
        logs = [pool.submit(one, source, arch, out) for source in sources for arch in archs]
        return [kernel for log in logs for kernel in parse(log.result())]


def to_markdown(kernels: list[Kernel], version: str) -> str:
    """The table; ``version`` is nvcc's."""
    archs = sorted({k.arch for k in kernels}, key=lambda a: int(re.match(r"\d+", a)[0]))
    title = ["kernel", "cell", "dtype", *(f"sm_{a}" for a in archs), "shared", "spilled"]
    rows = [title, ["---"] * 3 + ["---:"] * (len(title) - 3)]
    for key in sorted({k.key for k in kernels}):
        mine = {k.arch: k for k in kernels if k.key == key}
        registers = [str(mine[a].registers) if a in mine else "" for a in archs]
        shared = max(k.shared for k in mine.values())
        rows.append([*key, *registers, str(shared), str(sum(k.spilled for k in mine.values()))])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{HEAD}nvcc {version}\n\n{lines}\n"


def read_markdown(text: str) -> tuple[str, dict[tuple[str, str, str], dict[str, int]]]:
    """nvcc's version, and the numbers of each (kernel, cell, dtype) by column."""
    version = re.search(r"^nvcc ([\d.]+)$", text, re.MULTILINE)[1]
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    title, _, *body = rows
    return version, {
        tuple(row[:3]): {c: int(v) for c, v in zip(title[3:], row[3:], strict=True) if v}
        for row in body
    }


def record(command: list[str]) -> int:
    """Run a compiler; pass its messages on and keep them beside the object file."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.write(done.stdout)
    if "-o" in command:
        Path(command[command.index("-o") + 1] + ".ptxas").write_text(done.stdout)
    return done.returncode


def main() -> int:
    """The command line: see above."""
    if sys.argv[1:2] == ["record"]:
        return record(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile")
    compiling.add_argument("--archs", default=" ".join(ARCHS), help="default: %(default)s")
    compiling.add_argument("--jobs", type=int, default=2)
    gathering = commands.add_parser("gather")
    gathering.add_argument("directory", type=Path)
    gathering.add_argument(
        "--nvcc", required=True, metavar="VERSION", help="of the compiler that ran"
    )
    for sub in (compiling, gathering):
        sub.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "gather":
        logs = sorted(options.directory.rglob("*.ptxas"))
        kernels, version = [k for log in logs for k in parse(log.read_text())], options.nvcc
    elif (version := nvcc_version()) is None:
        sys.exit("kernel_table: there is no nvcc on PATH; install the CUDA toolkit")
    else:
        kernels = compile_kernels(tuple(options.archs.split()), options.jobs)
    options.output.write_text(to_markdown(kernels, version))
    return 0


if __name__ == "__main__":
    sys.exit(main())
