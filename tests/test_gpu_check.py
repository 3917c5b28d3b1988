"""gpu-check works: every part in its dry mode, so that no typing error stops it on the day."""

import json
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cli, gpu_check_micro, gpu_check_programs
from benchmarks import command_gpu_check as command
from benchmarks.gpu_check import Part, Run, load
from benchmarks.gpu_check_kernels import KERNELS, dtypes, kernels_of, sizes
from benchmarks.problems import Sequence
from benchmarks.results import ResultsError
from benchmarks.verify import allowed, rule
from fusedrnn.cells import CELLS


@pytest.mark.parametrize("part", [part for part in command.PARTS if part != "micro"])
def test_every_part_runs_dry(part, tmp_path):
    """All but the microbenchmarks, see below."""
    how = [] if part == "tests" else ["--in-process"]  # pytest inside pytest would share modules
    options = ["--dry", "--out", str(tmp_path), "--part", part, "--commit", "abc"]
    options += ["--seconds", "300"]  # a busy machine is not what is tested
    assert cli.main(["gpu-check", *options, *how]) == 0
    record = load(tmp_path / f"{part}.json")
    assert (record.part, record.dry, record.status) == (part, True, "complete"), record
    assert record.environment["commit"] == "abc" and record.environment["torch"]
    assert record.entries and not record.bad, record
    assert [path.name for path in tmp_path.iterdir()] == [f"{part}.json"]


def test_all_parts_have_room_in_the_time_and_in_eight_files():
    assert sum(part.seconds for part in command.PARTS.values()) <= 480
    assert len(command.PARTS) == 8


def test_a_part_that_hangs_dies_or_says_nothing_is_told(tmp_path, monkeypatch):
    seed = tmp_path / "seed"
    seed.mkdir()
    Run("cuda", seed, 9, True, "").add(kernel="k", status="ok")
    copy = f"import shutil; shutil.copy({str(seed / 'cuda.json')!r}, {str(tmp_path)!r}); "
    options = SimpleNamespace(out=tmp_path, dry=True, commit="")
    monkeypatch.setattr(command, "GRACE", 1)

    def child(code, seconds=20):
        monkeypatch.setattr(command, "start", lambda *_: [sys.executable, "-c", code])
        return command.child("cuda", options, seconds)

    for code, seconds, status, said in (
        (f"{copy}import time; time.sleep(60)", 1, "cut off", "ended by force after 2 s"),
        (f"{copy}raise RuntimeError('a sticky error')", 20, "failed", "a sticky error"),
    ):
        assert child(code, seconds).status == status
        record = load(tmp_path / "cuda.json")
        assert record.status == status and said in record.reason
        assert record.entries == [{"kernel": "k", "status": "ok"}]
    record = child("print('nothing')")
    assert (record.status, record.reason) == ("failed", "nothing\n")


def test_what_was_found_is_on_disk_at_once_and_time_ends_a_part(tmp_path):
    run = Run("micro", tmp_path, 0.2, True, "")
    for number in run.in_time(range(1000)):
        run.add(number=number, status="ok")
        assert load(tmp_path / "micro.json").entries[-1]["number"] == number
        time.sleep(0.05)
    run.close()
    record = load(tmp_path / "micro.json")
    assert record.status == "cut off" and 0 < len(record.entries) < 10
    assert record.reason == f"its time was over after {len(record.entries)} of 1000"


def test_an_error_in_a_part_is_in_its_file(tmp_path, monkeypatch):
    def broken(run):
        raise OSError("broken")

    monkeypatch.setitem(command.PARTS, "micro", Part("", 9, broken))
    with pytest.raises(OSError):
        cli.main(["gpu-check", "--dry", "--out", str(tmp_path), "--part", "micro", "--in-process"])
    record = load(tmp_path / "micro.json")
    assert (record.status, record.reason) == ("failed", "OSError: broken")


def test_wrong_use_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = ["gpu-check", "--out", str(tmp_path)]
    for options, said in (
        (["--part", "wgmma"], "known are cuda, triton"),
        ([], "torch sees no GPU; --dry"),
        (["--dry", "--in-process"], "takes one --part"),
    ):
        assert cli.main([*out, *options]) == 2
        assert said in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"kind": "gpu-check", "schema": 99}))
    with pytest.raises(ResultsError, match="its schema is 99, not 1"):
        load(other)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH (the CUDA toolkit)")
def test_every_microbenchmark_compiles_without_a_warning(tmp_path):
    """For the card that is there, else for Hopper, whose instructions they measure."""
    run = Run("micro", tmp_path, 300, True, "")
    gpu_check_micro.micro(run)
    entries = run.record.entries
    assert {e["program"] for e in entries} == {s.stem for s in gpu_check_micro.SOURCES.glob("*.cu")}
    assert not [e for e in entries if "warnings" in e], entries
    if not torch.cuda.is_available():
        assert {e["status"] for e in entries} == {"no device"}, entries


def test_what_a_program_says_is_kept(tmp_path):
    program = tmp_path / "program"

    def said(script):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return [(e["status"], e.get("error")) for e in gpu_check_micro.output(program)]

    assert said("""echo '{"name": "a", "us": 1.5, "wrong": 0}'""") == [("ok", None)]
    assert said("""echo '{"name": "a", "wrong": 3}'""") == [("wrong", None)]
    assert said("""echo '{"name": "a"}'; exit 7""")[1] == ("failed", "ended with 7")
    assert said("""echo '{"error": "clusters: needs sm_90"}'; exit 1""")[0][0] == "unsupported"
    assert said("""echo '{"error": "l2: trap"}'; exit 1""")[0][0] == "failed"


def test_what_a_sanitizer_says_is_understood():
    read = gpu_check_programs.sanitized
    assert read(0, "========= ERROR SUMMARY: 0 errors") == {"status": "ok", "errors": 0}
    assert read(9, "========= ERROR SUMMARY: 2 errors")["status"] == "wrong"
    assert read(9, "RACECHECK SUMMARY: 1 hazard displayed")["status"] == "wrong"
    assert read(1, "Error: Device not supported")["status"] == "unsupported"
    assert read(1, "Traceback")["status"] == "failed"
    assert read(0, "nothing")["status"] == "failed"


def test_the_kernels_of_a_profile_are_recognised():
    names = [
        "void fusedrnn::cuda::forward_step<fusedrnn::base::LSTM, float>(fusedrnn::SequenceForward)",
        "whole_backward",
        "void at::native::vectorized_elementwise_kernel<4>(int)",
        "backward_operand_step",
        "ampere_sgemm_32x32_nn",
        "fusedrnn::cuda::softmax_walk(fusedrnn::SoftmaxTree, fusedrnn::SoftmaxGpuPlan)",
        "void (anonymous namespace)::softmax_warp_forward<float, float>(float*, float const*)",
        "void fusedrnn::cuda::cluster_forward<fusedrnn::base::GRU, __half, 0, 1>(...)",
        "void fusedrnn::cuda::grid_backward<fusedrnn::base::GRU, __half>(...)",
    ]
    expected = ["backward_operand_step", "cluster_forward", "forward_step", "grid_backward"]
    assert kernels_of(names) == [*expected, "softmax_walk", "whole_backward"]


def test_sizes_reach_the_kernel_that_is_meant():
    for kernel in KERNELS:
        for cell in CELLS:
            for dtype in dtypes(kernel):
                for *_, H in sizes(kernel, cell, dtype, "cpu"):
                    assert (H <= 128) == (kernel == "Triton whole-sequence"), (kernel, cell, dtype)


@pytest.mark.parametrize(("device", "precision", "kind"), [
    ("cuda", "tf32", torch.float16), ("cuda", "ieee", torch.float32), ("cpu", "tf32", torch.float32)
])  # fmt: skip
def test_the_rule_is_that_of_tf32_where_torchs_switch_allows_it(
    device, precision, kind, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
    of = object.__new__(Sequence)
    of.case = SimpleNamespace(torch_dtype=torch.float32, device=device)
    assert allowed(0.5, of) == 1 + rule.FLOOR * torch.finfo(kind).eps
