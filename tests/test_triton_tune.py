"""Measured tiles: the search, the file, the command. The stopwatch is injected: no GPU needed."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fusedrnn import _backend
from fusedrnn.triton import plan as planner
from fusedrnn.triton import tune

pytestmark = pytest.mark.skipif(not _backend._HAS_TRITON, reason="triton is not installed")
CPU = torch.device("cpu")
SHAPE = planner.Shape("lstm", torch.bfloat16, B=16, H=300, directions=2)
BEST = planner.Plan(False, 64, 16, 128, 2, 4, "")


def distance(plan):
    """A time with one valley."""
    log = {k: math.log2(v) for k, v in asdict(plan).items() if k not in ("whole", "reason")}
    return 1 + sum(abs(v - math.log2(getattr(BEST, k))) for k, v in log.items()) + 9 * plan.whole


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of our own, read anew."""
    monkeypatch.setenv("FUSEDRNN_TRITON_TILES", str(tmp_path / "deep" / "tiles.json"))
    monkeypatch.setattr(planner, "shared_memory", lambda device: 227 << 10)
    tune.table.cache_clear()
    yield tmp_path / "deep" / "tiles.json"
    tune.table.cache_clear()


def test_search_reaches_the_best_and_measures_nothing_twice():
    asked = []

    def measure(plan):
        asked.append(plan)
        return distance(plan)

    start = planner.plan(SHAPE, 0)
    best, time = tune.search(start, measure)
    assert replace(best, reason="") == BEST and time == 1
    assert asked[0] == start and len(set(asked)) == len(asked)


def test_what_does_not_run_is_not_chosen():
    start = planner.plan(SHAPE, 0)
    best, _ = tune.search(start, lambda plan: math.inf if plan.rows > 16 else distance(plan))
    assert replace(best, reason="") == replace(BEST, rows=16)


def test_the_best_is_kept_and_found_by_the_next_process(file):
    found = tune.tune(SHAPE, CPU, distance)
    assert replace(found, reason="") == BEST and "1 ms" in found.reason
    assert len(json.loads(file.read_text())) == 1 and list(file.parent.iterdir()) == [file]
    tune.table.cache_clear()
    assert tune.choose(SHAPE, CPU) == found
    for other in ({"B": 17}, {"H": 301}, {"directions": 1}, {"P": 8}, {"precision": "tf32"}):
        shape = replace(SHAPE, **other)
        assert tune.choose(shape, CPU) == planner.plan(shape, 227 << 10)


def test_a_second_shape_leaves_the_first(file):
    first = tune.tune(SHAPE, CPU, distance)
    small = planner.Shape("gru", torch.float32, B=1, H=32)
    second = tune.tune(small, CPU, lambda plan: 1 / distance(plan))
    assert second.whole
    tune.table.cache_clear()
    assert (tune.choose(SHAPE, CPU), tune.choose(small, CPU)) == (first, second)


def test_nothing_runs(file):
    with pytest.raises(RuntimeError, match="no tiles run lstm bfloat16 B=16 H=300 both ways"):
        tune.tune(SHAPE, CPU, lambda plan: math.inf)
    assert not file.exists()


@pytest.mark.parametrize("text", ("{", "[]", '{"a": 1}', '{"a": {"rows": 1}}'))
def test_another_file(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(RuntimeError, match=r"tiles.json holds no tiles .* delete it, or set"):
        tune.choose(SHAPE, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_without_a_gpu():
    command = [sys.executable, "-m", "fusedrnn.triton.tune"]
    command += ["--cell", "lstm", "-T", "9", "-B", "9", "-H", "9"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 2 and "no GPU to measure on" in run.stderr
