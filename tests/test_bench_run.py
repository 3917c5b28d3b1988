"""The benchmark suite at work: rows that fail, commands, other commits, mistakes in arguments."""

import os
import re
from pathlib import Path

import pytest
import torch

import fusedrnn
from benchmarks import base, command_run, environment, quiet, results, runner, table, timing
from benchmarks.case import MODES, OPS, Case
from benchmarks.cli import main
from benchmarks.command_compare import percent
from benchmarks.contender import Failure, classify
from benchmarks.peers import PEERS, peer
from benchmarks.progress import Progress
from benchmarks.results import Run, load
from benchmarks.suites import SUITES
from benchmarks.task import Task, Unsupported
from fusedrnn.cells import CELLS

ROOT = Path(__file__).parent.parent
SMALL = Case("sequence", "gru", "fwdbwd", (3, 2, 4, 5))
WORDS = Case("softmax", "", "fwdbwd", (30, 6, 11))


@pytest.fixture
def registered():
    """Peers registered in a test are gone after it."""
    before = dict(PEERS)
    yield PEERS
    PEERS.clear()
    PEERS.update(before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One whole run of the quick suite through the command line."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    return main(["run", "--suite", "quick", "--out", str(out)]), load(out), out


# -- the quick suite


def test_quick_verifies_and_times_every_row_of_ours(quick):
    status, run, _ = quick
    assert status == 0
    ours = [row for row in run.rows if row.ours]
    assert len(ours) > 20
    for row in ours:
        assert row.status == "ok", (row.case.name, row.peer, row.reason)
        assert row.error <= row.bound and len(row.samples) >= timing.FEWEST
    assert all(row.status in results.STATUSES for row in run.rows)
    assert {row.peer for row in run.rows if row.baseline} == {
        "torch.nn", "torch.nn cell", "linear+cross_entropy", "linear+log_softmax",
    }  # fmt: skip


def test_the_environment_is_told(quick):
    _, run, _ = quick
    facts = run.environment
    assert facts["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"[0-9a-f]{9,}|unknown", facts["commit"])
    assert re.fullmatch(r"[a-z0-9.-]+", facts["slug"])
    assert run.peaks["gflops"] > 0 and run.peaks["gb_per_s"] > 0
    assert run.command.startswith("python -m benchmarks run --suite quick")


def test_results_survive_the_file(quick, tmp_path):
    _, run, out = quick
    run.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == out.read_text()
    assert load(tmp_path / "again.json") == run


def test_the_table_has_every_timed_row(quick):
    _, run, _ = quick
    lines = table.render(run).splitlines()
    assert len(lines) == 1 + sum(row.status == "ok" and not row.twin for row in run.rows)
    assert max(map(len, lines)) < 200


# -- statuses


def fake(name, forward, **fields):
    """Register a peer of ``SMALL``'s operation."""

    @peer(name, "sequence", what="a test", **fields)
    def adapter(of):
        return Task(lambda: forward(of), {"x": of.leaf})


def run_of(names, case=SMALL, seconds=0.01):
    plan = runner.Plan([case], {case.op: names}, seconds, twin=False)
    run = Run("test", "now", "", {})
    run.rows = plan.rows()
    runner.execute(plan, run, None, Progress(1))
    return {row.peer: row for row in run.rows}


def raising(error):
    def forward(of):
        raise error

    return forward


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unsupported("no such cell"), "unsupported", "no such cell"),
        (MemoryError(), "out of memory", "MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
            "",
        ),
        (ValueError("bad"), "failed", "ValueError: bad"),
    ],
)
def test_an_error_is_a_status_of_its_row_alone(registered, error, status, reason):
    fake("spoilt", raising(error))
    rows = run_of(("spoilt", "fusedrnn"))
    assert rows["spoilt"].status == status and reason in rows["spoilt"].reason
    assert rows["fusedrnn"].status == "ok"


def test_a_wrong_row_is_not_timed(registered):
    fake("spoilt", lambda of: {"y": of.leaf.sum() + of.dy})
    rows = run_of(("spoilt", "fusedrnn"))
    assert rows["spoilt"].status == "wrong" and rows["spoilt"].samples == []
    assert "allowed" in rows["spoilt"].reason


def test_one_that_fails_while_timed_drops_out_and_the_others_stay(registered, monkeypatch):
    rounds = []

    def alternate(*args, **kwargs):
        rounds.append("begun")
        return timing.alternate(*args, **kwargs)

    def forward(of):
        if rounds:
            raise ValueError("later")
        return PEERS["fusedrnn"].build(of).forward()

    monkeypatch.setattr(runner, "alternate", alternate)
    fake("late", forward)
    rows = run_of(("late", "fusedrnn"), SMALL.on(mode="infer"))
    assert rows["late"].status == "failed" and rows["fusedrnn"].status == "ok"
    assert rows["late"].samples == [] and len(rounds) == 2


def test_a_row_of_ours_that_is_wrong_makes_the_exit_status(registered, tmp_path, capsys):
    fake("ours, spoilt", lambda of: {"y": of.leaf.sum() + of.dy}, ours=True)
    out = tmp_path / "r.json"
    command = ["run", "--shape", "T=3,B=2,I=4,H=5", "--cell", "gru", "--seconds", "0.01"]
    command += ["--out", str(out)]
    assert main([*command, "--peer", "torch.nn,fusedrnn"]) == 0
    assert main([*command, "--peer", "ours, spoilt".replace(", ", "; ")]) == 2  # no such peer
    PEERS["spoilt"] = PEERS.pop("ours, spoilt")
    assert main([*command, "--peer", "spoilt"]) == 1
    assert "wrong in 1 row" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(registered, tmp_path, capsys):
    seen = []

    def forward(of):
        seen.append(of.case)
        if of.case.cell == "lstm":
            raise KeyboardInterrupt
        return PEERS["fusedrnn"].build(of).forward()

    fake("stop", forward)
    out = tmp_path / "r.json"
    command = ["run", "--shape", "T=3,B=2,H=5", "--cell", "gru,lstm", "--mode", "infer"]
    status = main([*command, "--peer", "stop,fusedrnn", "--seconds", "0.01", "--out", str(out)])
    assert status == 130
    statuses = {(row.case.cell, row.peer): row.status for row in load(out).rows}
    assert statuses["gru", "stop"] == "ok" and statuses["lstm", "stop"] == "unmeasured"
    assert "unmeasured in" in capsys.readouterr().out


@pytest.mark.parametrize("named", [False, True])
def test_who_is_left_out_of_a_case_can_be_named(named, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "execute", lambda plan, run, out, progress: seen.append(run))
    monkeypatch.setattr(environment, "peaks", lambda device: {"gflops": 1.0, "gb_per_s": 1.0})
    monkeypatch.setattr(Run, "save", lambda self, path: None)
    command = ["run", "--suite", "softmax", "--mode", "fwdbwd"]
    main(command + ["--peer", "fusedrnn flat,fusedrnn two-level"] * named)
    flat = {row.case for row in seen[0].rows if row.peer == "fusedrnn flat"}
    every = {row.case for row in seen[0].rows}
    assert flat and (flat == every) == named


def test_errors_of_memory_are_told_from_others():
    assert classify(torch.OutOfMemoryError("CUDA out of memory")).status == "out of memory"
    assert classify(RuntimeError("shape mismatch")).status == "failed"


def test_a_case_on_a_missing_gpu_is_a_status():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    rows = run_of(("torch.nn", "fusedrnn"), SMALL.on(device="cuda"))
    assert {row.status for row in rows.values()} == {"unsupported"}


# -- another commit


def test_another_commit_is_measured_in_its_own_process(tmp_path):
    (tmp_path / "fusedrnn").symlink_to(Path(fusedrnn.__file__).parent)
    other = base.Base("HEAD", tmp_path, 1)
    try:
        built = other.build("fusedrnn", SMALL, 0.01)
        assert built.sample() > 0 and built.verdict.error <= built.verdict.bound
        assert built.flops == SMALL.flops()
        with pytest.raises(Failure, match="torch.nn has no gru_reset_before"):
            other.build("torch.nn", SMALL.on(cell="gru_reset_before"), 0.01)
        assert other.build("fusedrnn", WORDS.on(op="sequence", cell="lstm", shape=(2, 1, 3, 3)),
                           0.01).sample() > 0  # fmt: skip
    finally:
        other.close()


# -- recording


@pytest.mark.parametrize(("share", "stays"), [(None, True), (0.01, True), (0.4, False)])
def test_a_busy_machine_is_not_recorded(share, stays, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Run("cpu", "now", "", {"others": share})
    out = tmp_path / "results" / "one.json"
    run.save(out)
    assert (command_run.kept(run, out, True) == out) == stays == out.exists()
    assert Path("bench-cpu.json").exists() != stays
    assert ("nothing is recorded" in capsys.readouterr().out) != stays


def test_what_others_take_is_told(monkeypatch):
    seconds = iter([(100.0, 50.0, 7.0), (110.0, 64.0, 11.0)])  # clock, all processors, own
    monkeypatch.setattr(quiet.Others, "_seconds", lambda self: next(seconds))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert quiet.Others().share() == 0.5  # 14 of 20, 4 of them ours


def test_a_commit_that_git_does_not_know(capsys):
    command = ["run", "--shape", "T=2,B=1,H=3", "--base", "no-such-ref"]
    assert main(command) == 2
    assert "git knows no such commit" in capsys.readouterr().err


# -- the command line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run"], "say what to measure: --suite (quick, cpu"),
        (["run", "--suite", "fast"], "--suite fast: there is none; known are quick, cpu"),
        (["run", "--suite", "quick", "--peer", "cudnn"], "--peer cudnn: there is none; known are"),
        (["run", "--suite", "quick", "--mode", "train"], "known are fwd, bwd, fwdbwd, infer"),
        (
            ["run", "--shape", "T=2,B=1,H=3", "--cell", "lstn"],
            "cell is 'lstn'; it must be one of lstm",
        ),
        (["run", "--suite", "quick", "--shape", "T=99"], "no case of the suite quick passes"),
        (["compare", "nowhere.json", "nowhere.json"], "nowhere.json: No such file"),
        (["report", "README.md"], "README.md: no JSON"),
        (["lm", "--cells", "qrnn"], "--cells qrnn: there is none; known are lstm, gru, rnn"),
        (["lm", "--outputs", "some"], "write full, huffman, two-level or a number of classes"),
    ],
)
def test_a_mistake_is_one_line_that_helps_and_status_2(command, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    words = capsys.readouterr().out
    for name in (*SUITES, *PEERS, *CELLS, *MODES, *OPS):
        assert name in words
    assert max(map(len, words.splitlines())) <= 100


def changed(path, factor, tmp_path):
    """A copy of a result in which ours takes ``factor`` times as long."""
    run = load(path)
    for row in run.rows:
        if row.ours:
            row.samples = [s * factor for s in row.samples]
    run.save(tmp_path / "changed.json")
    return str(tmp_path / "changed.json")


@pytest.fixture(scope="module")
def steady(quick, tmp_path_factory):
    """The quick result with samples of little spread."""
    run = load(quick[2])
    for row in run.rows:
        row.samples = [1e-3 * (1 + 0.001 * i) for i in range(10)] if row.samples else []
    path = tmp_path_factory.mktemp("steady") / "steady.json"
    run.save(path)
    return path


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.04, 0), (1.2, 1), (0.5, 0)])
def test_compare_fails_where_ours_is_slower_beyond_the_interval(
    steady, factor, status, tmp_path, capsys
):
    after = changed(steady, factor, tmp_path)
    assert main(["compare", str(steady), after]) == 0
    assert main(["compare", str(steady), after, "--fail-over", "5%"]) == status
    words = capsys.readouterr().out
    assert ("FAILS" in words) == bool(status)
    assert f"{1 / factor:.3f}x" in words


def test_compare_does_not_fail_within_the_noise(quick, tmp_path):
    noisy = load(quick[2])
    for row in noisy.rows:
        row.samples = [1e-3, 9e-3, 1e-3, 9e-3, 5e-3] if row.samples else []
    noisy.save(tmp_path / "noisy.json")
    after = changed(tmp_path / "noisy.json", 1.2, tmp_path)
    assert main(["compare", str(tmp_path / "noisy.json"), after, "--fail-over", "5%"]) == 0


def test_compare_fails_where_ours_is_no_longer_right(steady, tmp_path):
    run = load(steady)
    row = next(row for row in run.rows if row.ours)
    row.status, row.reason, row.samples = "wrong", "y: error 1", []
    run.save(tmp_path / "wrong.json")
    command = ["compare", str(steady), str(tmp_path / "wrong.json")]
    assert main([*command, "--fail-over", "5%"]) == 1


def test_percent_is_read_both_ways():
    assert percent("5%") == percent("0.05") == 0.05
