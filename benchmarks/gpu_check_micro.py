"""The microbenchmarks (benchmarks/micro/*.cu): compiled here and now, run one after the other."""

import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from . import environment, gpu_check

SOURCES = Path(__file__).parent / "micro"
PATIENCE = 30  # seconds for one program; its own waits end after one


def arch() -> str:
    """nvcc's name of the card's architecture; that of an H200 where there is no card."""
    if not torch.cuda.is_available():
        return "90a"
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def compiled(source: Path, into: Path, arch: str) -> tuple[Path | None, str]:
    """The program, or None; and what the compiler said."""
    program = into / source.stem
    code = f"arch=compute_{arch},code=sm_{arch}"
    command = ["nvcc", "-std=c++17", "-O3", "-gencode", code, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    return (program if done.returncode == 0 else None), done.stdout + done.stderr


def output(program: Path) -> list[dict[str, object]]:
    """What a program says, one entry a line; how it ended, if not well."""
    try:
        done = subprocess.run([program], capture_output=True, text=True, timeout=PATIENCE)
        text, ended = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        text, ended = (late.stdout or b"").decode(), "too late"
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for entry in entries:
        entry["status"] = "wrong" if entry.get("wrong") else "ok"
        if "error" in entry:
            entry["status"] = "unsupported" if " needs " in entry["error"] else "failed"
            if re.search("no CUDA-capable device|driver version is insufficient", entry["error"]):
                entry["status"] = "no device"
    if ended and not any("error" in entry for entry in entries):
        entries.append({"error": f"ended with {ended}", "status": "failed"})
    return entries


def micro(run: gpu_check.Run) -> None:
    """Compile all of them side by side, run each; torch's own large products and copy beside it."""
    if shutil.which("nvcc") is None:
        run.add(name="micro", status="unsupported", reason="no nvcc on PATH (the CUDA toolkit)")
        return
    sources = sorted(SOURCES.glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as pool:
        jobs: dict[str, Future] = {
            source.stem: pool.submit(compiled, source, Path(folder), arch()) for source in sources
        }
        for name in run.in_time(list(jobs)):
            program, said = jobs[name].result()
            if program is None:
                run.add(program=name, status="failed", reason=said[-2000:])
                continue
            for entry in output(program):
                run.add(program=name, **entry, **({"warnings": said} if said else {}))
    for dtype in run.in_time(() if run.dry else ("bfloat16", "float16", "float32")):
        run.add(program="torch", name=f"mm_{dtype}", status="ok",
                **environment.peaks("cuda", dtype))  # fmt: skip
