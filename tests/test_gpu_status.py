"""docs/gpu-status.md says of every GPU kernel what the recorded files of gpu-check say of it."""

from itertools import product
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks import command_gpu_status as command
from benchmarks.gpu_check import Record, load
from benchmarks.gpu_check_cudnn import Row, table
from benchmarks.gpu_check_kernels import DTYPES, RESIDENT, ROUNDING, TF32
from fusedrnn.cells import CELLS

CARD = {"gpu": "NVIDIA H200", "slug": "nvidia-h200", "commit": "abc123def", "dirty": False}


def rows(page):
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    title, rule, *body = lines
    assert title == ["kernel", "dtype", "direction", "on a GPU", "shown without one"]
    body = [row for row in body if len(row) == 5 and row not in (title, rule)]
    return {tuple(row[:3]): row[3] for row in body}


def entry(**changes):
    fields = {"kernel": "stepwise CUDA", "cell": "lstm", "dtype": "float32", "case": "one"}
    fields |= {"direction": "forward", "status": "ok", "error": 1e-7, "bound": 4e-7}
    return fields | changes


def made(part="cuda", created="2026-11-22T10:00:00+0000", entries=(), **changes):
    return Record(part, changes.pop("dry", False), created, CARD | changes, "complete",
                  entries=list(entries))  # fmt: skip


def test_the_page_is_what_the_files_say():
    """``python -m benchmarks gpu-status`` writes it anew."""
    assert command.PAGE.read_text() == command.page(command.records())


def test_every_kernel_dtype_and_direction_has_one_row():
    kernels = (*command.KERNELS, *command.gpu_check_softmax.KERNELS)
    expected = [
        row
        for row in product(kernels, (*DTYPES, TF32), command.DIRECTIONS)
        if (row[0] not in RESIDENT or row[1] != "float64")
        and (row[0] in ROUNDING or row[1] != TF32)
        if row[0] != "softmax CUDA, search" or row[2] == "forward"
    ]
    assert list(rows(command.page([]))) == expected
    assert set(rows(command.page([])).values()) == {command.NEVER}
    assert not [name for name in CELLS if f"`{name}`" not in command.page([])]


def test_a_row_says_card_commit_and_error():
    every = [entry(cell=name) for name in CELLS]
    page = command.page([made(entries=[*every, entry(cell="gru", error=2e-7)])])
    mine = rows(page)["stepwise CUDA", "float32", "forward"]
    assert mine == "NVIDIA H200, 2026-11-22, abc123def: ok, error at most 0.50 of what is allowed"
    assert rows(page)["stepwise CUDA", "float32", "backward"] == command.NEVER
    assert "Nothing yet" not in page


def test_a_row_says_what_is_wrong_or_missing_and_the_newest_run_counts():
    old = made(entries=[entry(cell=name) for name in CELLS])
    new = made(created="2026-12-01T10:00:00+0000", commit="fff", dirty=True,
               entries=[entry(), entry(cell="gru", status="failed", reason="x")])  # fmt: skip
    key = "stepwise CUDA", "float32", "forward"
    said = rows(command.page([new, old]))[key]
    assert said == "NVIDIA H200, 2026-12-01, fff, changed since: **gru failed**"
    trees = [entry(kernel="softmax Triton", cell=tree) for tree in ("flat", "huffman")]
    said = rows(command.page([made(entries=trees)]))["softmax Triton", "float32", "forward"]
    assert "ok (2 of 3 trees)" in said
    other = made(gpu="NVIDIA A100", entries=[entry()])
    said = rows(command.page([old, other]))[key]
    assert said.startswith("NVIDIA H200, ") and "; NVIDIA A100, " in said
    assert f"ok (1 of {len(CELLS)} cells)" in said


def test_the_other_parts_have_sections():
    found = [
        made("tests", entries=[{"test": "a::b", "status": "failed"},
                               {"test": "c", "status": "ok"}]),
        made("sanitizer", entries=[{"tool": "memcheck", "status": "ok"}]),
        made("micro", entries=[{"program": "exchange_l2", "name": "l2_flags", "us": 0.9,
                                "status": "ok"}]),
        made("cudnn", entries=[{**vars(table()[0]), "direction": "forward", "status": "ok",
                                "expected": "persistent", "seen": "standard", "us_per_step": 1.5}]),
    ]  # fmt: skip
    page = command.page(found)
    for text in ("1 failed, 1 ok", "- failed: `a::b`", "- memcheck: ok", "us 0.9", "**standard**"):
        assert text in page, text


def test_files_are_recorded_once_they_are_of_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RECORDED", tmp_path / "results")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    folder = tmp_path / "checked"
    folder.mkdir()

    def run(*options):
        status = cli.main(["gpu-status", *options])
        return status, "".join(capsys.readouterr())

    assert "no JSON file" in run("--add", str(folder))[1]
    for record, said in ((made(dry=True), "dry run"), (made(commit="unknown"), "--commit")):
        record.save(folder / "cuda.json")
        status, text = run("--add", str(folder))
        assert status == 2 and said in text
    (folder / "cuda.json").write_text("{}")
    assert "not a result of gpu-check" in run("--add", str(folder))[1]
    made(entries=[entry()]).save(folder / "cuda.json")
    monkeypatch.setattr(command, "records", lambda: loaded(command.RECORDED))
    assert run("--check") == (1, "page.md: stale\n")
    status, text = run("--add", str(folder))
    assert status == 0 and "results/nvidia-h200/2026-11-22-abc123def" in text
    assert "NVIDIA H200, 2026-11-22" in (tmp_path / "page.md").read_text()
    assert run("--check") == (0, "page.md: up to date\n")


def loaded(folder):
    return [load(path) for path in Path(folder).glob("*/*/*.json")]


@pytest.mark.parametrize(
    ("row", "forward", "backward"),
    [
        (Row("float16", "lstm", 512, 16), "persistent", "persistent"),
        (Row("bfloat16", "lstm", 512, 16), "standard", "standard"),
        (Row("float16", "lstm", 512, 13), "standard", "standard"),
        (Row("float16", "gru", 1024, 16), "standard", "standard"),
        (Row("float16", "rnn_tanh", 1024, 128), "standard", "standard"),
        (Row("float32", "gru", 192, 16), "persistent, small H", "standard"),
        (Row("float32", "rnn_tanh", 256, 16), "persistent, small H", "persistent, small H"),
        (Row("float16", "lstm", 128, 16, layout="packed"), "standard", "standard"),
        (Row("float16", "lstm", 512, 16, layers=2), "standard", "standard"),
    ],
)
def test_what_is_expected_of_cudnn(row, forward, backward):
    assert (row.expected(False), row.expected(True)) == (forward, backward)


def test_the_table_of_cudnn_has_no_row_twice():
    assert len(set(table())) == len(table()) > 100
