"""Runs one wheel's op tests beside several torch and Python versions.

    python -m pip wheel --no-build-isolation --no-deps -w dist .
    python tools/check_torch_matrix.py dist/fusedrnn-*.whl

Each cell of the matrix gets a virtual environment of its own under --cache, made once and kept: a
torch from the package registry takes several GB there (it runs its CPU ops without a GPU). The
wheel is installed with --no-deps: it is the very same binary in every cell. Prints a table; the
exit status is 1 if a cell fails, or lacks its Python.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The oldest torch supported and the newest there is; the oldest Python supported and the newest.
CELLS = ("3.10:torch==2.11.0", "3.12:torch==2.11.0", "3.12:torch", "3.13:torch")
TESTS = (
    "tests/test_sequence.py",
    "tests/test_cell_modules.py",
    "tests/test_softmax.py",
    "tests/test_binary.py",
)
FACTS = (
    "import sys, torch; from fusedrnn import _native; "
    "print('Python', sys.version.split()[0], 'torch', torch.__version__, "
    "'library', _native.MISSING or 'loads')"
)


@dataclass
class Cell:
    """One pair of Python and torch."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        """Its environment's directory."""
        return f"py{self.python}-{self.torch.replace('==', '')}"


def interpreter(version: str) -> str | None:
    """A Python of this version: from PATH, or one that pyenv installed."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, installed)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def environment(cell: Cell, cache: Path) -> Path:
    """The cell's Python, made with its torch if it is not there yet."""
    python = cache / cell.name / "bin/python"
    made = cache / f"{cell.name}.made"
    if not made.exists():
        base = interpreter(cell.python)
        if base is None:
            raise RuntimeError(f"there is no Python {cell.python} here")
        print(f"{cell.name}: installing {cell.torch}, several GB ...", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", cache / cell.name], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--no-cache-dir"]
        subprocess.run([*pip, cell.torch, "numpy", "pytest"], check=True)
        made.touch()
    return python


def run(cell: Cell, wheel: Path, cache: Path, tests: list[str]) -> tuple[bool, str]:
    """Install the wheel in the cell and run the tests there; whether they pass, and in short."""
    python = environment(cell, cache)
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, wheel], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("FUSEDRNN_")}
    there = {"cwd": cache, "env": env, "text": True, "capture_output": True}  # not in the sources
    facts = subprocess.run([python, "-c", FACTS], **there)
    if facts.returncode or not facts.stdout.strip().endswith("library loads"):
        return False, (facts.stdout + facts.stderr).strip().splitlines()[-1]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    start = time.monotonic()
    done = subprocess.run([*pytest, *(ROOT / test for test in tests)], **there)
    (cache / f"{cell.name}.log").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].strip("= ")
    last = re.sub(r" in [\d.]+s.*", "", last)
    return done.returncode == 0, (
        f"{facts.stdout.strip()}; {last} in {time.monotonic() - start:.0f} s"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--cells", nargs="+", default=CELLS, metavar="PYTHON:TORCH", help=" ".join(CELLS)
    )
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, metavar="FILE", help="default: " + " ".join(TESTS)
    )
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache/fusedrnn-matrix", help="%(default)s"
    )
    args = parser.parse_args()
    if not args.wheel.is_file():
        parser.error(f"{args.wheel} is not there; see the top of {Path(__file__).name}")
    args.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for cell in (Cell(*text.split(":", 1)) for text in args.cells):
        try:
            rows.append(
                (cell.name, *run(cell, args.wheel.resolve(), args.cache.resolve(), args.tests))
            )
        except (RuntimeError, subprocess.CalledProcessError) as error:
            rows.append((cell.name, False, str(error)))
        print(f"{rows[-1][0]}: {rows[-1][2]}", flush=True)
    print(f"\n{args.wheel.name}")
    for name, passed, said in rows:
        print(f"  {'ok  ' if passed else 'FAIL'}  {name:<20}  {said}")
    return 0 if all(passed for _, passed, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
