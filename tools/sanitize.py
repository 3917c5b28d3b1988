"""The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    python tools/sanitize.py [--isa portable avx2 avx512 avx512_bf16] [--sanitizer memory threads]

Compiles csrc/cpu and csrc/testing/sanitize.cpp with g++ once for each, without torch and with an
OpenMP runtime of its own (csrc/testing/openmp.cpp), and runs every kernel. Ends with status 1 when
a sanitizer complains or bits depend on the number of threads. Up to five minutes for each on
two cores; what it last printed is in docs/notebook-cpu.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = (
    "cpu/sequence.cpp", "cpu/normed.cpp", "testing/sanitize.cpp", "testing/openmp.cpp",
    "cpu/softmax.cpp", "cpu/matrix.cpp",
)  # fmt: skip
# As in CMakeLists.txt.
ISAS = {
    "portable": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    # Without -mavx512bf16: the stand-in for the instruction (csrc/cpu/operand.h) runs anywhere.
    "avx512_bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-DFRNN_BF16_DOT"],
}
SANITIZERS = {
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


def check(isa: str, sanitizer: str) -> bool:
    """Build and run one combination; print a line for it."""
    began = time.monotonic()
    flags = ["-std=c++20", "-O1", "-g", "-fopenmp", f"-DFRNN_ISA={isa}", "-fno-math-errno"]
    flags += ["-fno-trapping-math", *ISAS[isa], *SANITIZERS[sanitizer]]
    sources = SOURCES[:-2] if isa == "avx512_bf16" else SOURCES  # it has no softmax of its own
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{i}.o" for i in range(len(sources))]

        def compile_one(pair: tuple[str, str]) -> None:
            subprocess.run(["g++", *flags, "-c", CSRC / pair[0], "-o", pair[1]], check=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, zip(sources, objects, strict=True)))
        program = f"{folder}/sanitize"
        link = ["g++", *SANITIZERS[sanitizer], *objects, "-o", program, "-pthread"]
        subprocess.run(link, check=True)
        run = subprocess.run([program], capture_output=True, text=True)
    said = (run.stdout + run.stderr).strip()
    verdict = "clean" if run.returncode == 0 else "FAILED"
    seconds = time.monotonic() - began
    print(f"{isa:12}{sanitizer:8}{verdict}: {said} ({seconds:.0f} s)", flush=True)
    return run.returncode == 0


def main() -> int:
    """Run the combinations asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=list(ISAS))
    parser.add_argument("--sanitizer", nargs="+", choices=SANITIZERS, default=list(SANITIZERS))
    asked = parser.parse_args()
    return not all([check(isa, which) for isa in asked.isa for which in asked.sanitizer])


if __name__ == "__main__":
    sys.exit(main())
