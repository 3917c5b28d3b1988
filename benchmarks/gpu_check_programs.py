"""The parts of gpu-check that run programs there are already: tests, sanitizers, suites."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

from fusedrnn import plan
from fusedrnn._waves import planned

from . import gpu_check
from .case import Case
from .environment import ROOT
from .results import ResultsError
from .results import load as load_run

SANITIZERS = ("memcheck", "racecheck", "synccheck")
REFUSALS = ("Device not supported", "not supported on this device", "Unable to find injection")
"""What compute-sanitizer says where the machine does not let it work."""


class Recorder:
    """A pytest plugin that keeps each outcome as it comes."""

    def __init__(self, run: gpu_check.Run) -> None:
        self.run = run

    def pytest_runtest_logreport(self, report: object) -> None:
        """Called by pytest for setup, call and teardown of each test."""
        if report.when != "call" and report.outcome == "passed":
            return
        if report.when == "teardown" and report.outcome != "failed":
            return
        status = {"passed": "ok", "failed": "failed", "skipped": "skipped"}[report.outcome]
        entry = {"test": report.nodeid, "status": status, "seconds": round(report.duration, 2)}
        if report.outcome != "passed":
            entry["reason"] = str(report.longrepr)[-1500:]
        self.run.add(**entry)


def tests(run: gpu_check.Run) -> None:
    """pytest over what is marked ``gpu``, the file made for it first; in parallel with xdist."""
    if importlib.util.find_spec("pytest") is None:
        run.add(test="all", status="unsupported", reason="pytest is not installed")
        return
    import pytest

    first = ROOT / "tests" / "test_gpu.py"
    if run.dry:
        chosen = [str(first), "-k", "same_input and rnn_relu and float32 and cpu"]
    else:
        others = sorted(str(p) for p in first.parent.glob("test_*.py") if p != first)
        chosen = ["-m", "gpu", str(first), *others]
    parallel = importlib.util.find_spec("xdist") is not None and not run.dry
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if parallel else []
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    options = ["-q", "-p", "no:cacheprovider", "--no-header", *workers]
    ended = pytest.main([*options, *chosen], plugins=[Recorder(run)])
    if ended not in (0, 1):
        run.add(test="pytest itself", status="failed", reason=f"ended with {int(ended)}")


def sanitizer(run: gpu_check.Run) -> None:
    """compute-sanitizer's tools over small calls of every CUDA kernel (gpu_check_exercise.py)."""
    program = shutil.which("compute-sanitizer")
    exercise = [sys.executable, "-m", "benchmarks.gpu_check_exercise", run.device]
    if run.dry:
        done = subprocess.run(exercise, cwd=ROOT, capture_output=True, text=True)
        status = "failed" if done.returncode else "ok"
        run.add(tool="none", status=status, reason=done.stderr[-1500:])
        return
    if program is None:
        run.add(tool="all", status="unsupported", reason="no compute-sanitizer on PATH")
        return
    for tool in run.in_time(SANITIZERS):
        # torch's own kernels only cost time here. Where this tool has no such option, all of them.
        for only in (["--kernel-name", "kernel_substring=fusedrnn"], []):
            command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            try:
                done = subprocess.run([*command, *only, *exercise], cwd=ROOT, text=True,
                                      capture_output=True, timeout=max(1, run.left))  # fmt: skip
            except subprocess.TimeoutExpired:
                found = {"status": "unmeasured", "reason": "its time was over"}
                break
            found = sanitized(done.returncode, done.stdout + done.stderr)
            if "errors" in found:
                break
        run.add(tool=tool, **found)


def sanitized(code: int, text: str) -> dict[str, object]:
    """What a sanitizer's output means."""
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    errors = int(found[1]) if found else None
    if errors:
        return {"status": "wrong", "errors": errors, "reason": text[-3000:]}
    if any(refusal in text for refusal in REFUSALS):
        return {"status": "unsupported", "reason": text[-500:]}
    if code or errors is None:
        return {"status": "failed", "reason": f"exit status {code}: {text[-1500:]}"}
    return {"status": "ok", "errors": 0}


def suite(run: gpu_check.Run, *options: str) -> None:
    """``python -m benchmarks run`` with these options; each row that it kept is an entry."""
    out = run.folder / f"suite-{run.record.part}.json"
    command = [sys.executable, "-m", "benchmarks", "run", "--out", str(out), "--seconds", "0.1"]
    command += [*options, "--device", run.device]
    reason = ""
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        text, _ = process.communicate(timeout=max(1, run.left - 5))
        if process.returncode not in (0, 1):
            reason = text[-1500:]
    except subprocess.TimeoutExpired:
        process.kill()  # the file is written after each case
        process.communicate()
        run.record.status, run.record.reason = "cut off", "its time was over"
    try:
        rows = load_run(out).rows
    except ResultsError as error:
        run.add(peer="all", status="failed", reason=reason or str(error))
        return
    for row in rows:
        keep = ("peer", "status", "reason", "error", "bound", "ours")
        fields = {key: getattr(row, key) for key in keep if getattr(row, key) is not None}
        if row.status == "ok":
            fields["ms"] = round(row.median * 1e3, 5)
            fields["device_ms"] = {
                k: round(min(v) * 1e3, 5) for k, v in row.device_samples.items() if v
            }
            if row.ours and row.case.op == "sequence" and not row.twin:
                fields |= predicted(row.case)
        if not row.ours and fields["status"] in gpu_check.BAD:
            fields["status"] = f"{fields['status']} (a peer's)"
        run.add(case=row.case.name, **fields)
    out.unlink()


def predicted(case: Case) -> dict[str, float]:
    """What the planner's model says of the recurrence alone, beside which its row can be held."""
    T, B, _, H = case.shape
    passes = {"fwdbwd": (False, True), "bwd": (True,)}.get(case.mode, (False,))
    device = plan.HERE if case.device == "cuda" else "h200"
    if case.layers > 1 and not case.bidirectional and False in passes:
        waves = planned(
            case.cell, case.layers, T, B, H, proj_size=0, dtype=case.torch_dtype,
            backward=True in passes, precision=None, device=device,
        )  # fmt: skip
        return {"predicted_us_per_step": round(waves.us / T, 3)}
    us = sum(
        plan.plans(
            *(case.cell, T, B, H), dtype=case.torch_dtype, backward=backward,
            bidirectional=case.bidirectional, device=device,
        )[0].us_per_step
        for backward in passes
    )  # fmt: skip
    return {"predicted_us_per_step": round(us * case.layers, 3)}


def sequence(run: gpu_check.Run) -> None:
    """The layers' suite, beside cuDNN and the fused peers that are there.

    Not beside torch.compile, which unrolls T steps: that takes minutes to compile.
    """
    if run.dry:
        suite(run, "--shape", "T=3,B=2,H=8", "--peer", "torch.nn")
    else:
        suite(
            run, "--suite", "gpu", "--peer", "torch.nn,fusedrnn one by one,FlashRNN,haste,TorchRL"
        )


def softmax(run: gpu_check.Run) -> None:
    """The output layers' suite, but for the sizes whose truth takes minutes."""
    peers = "linear+cross_entropy,F.linear_cross_entropy"
    if run.dry:
        suite(run, "--shape", "V=40,H=8,N=9", "--peer", peers)
    else:
        peers += ",compiled linear+cross_entropy,Cut Cross-Entropy,Liger,quack,linear+log_softmax"
        small = ("--shape", "V=10000", "--shape", "V=100000,N=1024", "--shape", "V=100000,N=64")
        suite(run, "--suite", "softmax-gpu", *small, "--peer", peers)
