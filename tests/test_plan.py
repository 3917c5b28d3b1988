"""The planner: every problem has a plan, every plan fits its card and says what the kernels do."""

import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusedrnn import __main__ as command
from fusedrnn import _native, plan
from fusedrnn.cells import CELLS

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=f"planner: {_native.MISSING}")
ROOT = Path(__file__).parents[1]
KERNELS = {"stepwise", "grid", "cluster"}
REGISTERS, RESERVED = 65536, 1024  # of an SM; bytes of shared memory that the system takes of a CTA


def fits(one, card):
    """Whether a card can hold the CTAs that a plan counts on."""
    n = one.ctas_per_sm
    return (
        n >= 1
        and one.shared <= card.shared_per_cta
        and (one.shared + RESERVED) * n <= card.shared_per_sm
        and one.threads % 32 == 0
        and one.threads * n <= min(1024 * n, card.threads_per_sm)
        and one.registers <= 255
        and one.registers * one.threads * n <= REGISTERS
        and 1 <= one.cluster <= card.max_cluster
        and one.ctas % one.cluster == 0
        and one.ctas < 2**31
    )


def covers(one, cell, B, H, dtype, directions):
    """Whether its CTAs reach every unit of every row, and hold W_hh where they say so."""
    slices = one.cluster if one.kernel == "cluster" else -(-H // one.units)
    if one.kernel == "stepwise":
        return slices * one.units >= H and one.ctas >= slices * -(-B // one.rows)
    groups = one.ctas // slices
    weights = len(cell.gates) * H * H * dtype.itemsize
    at_once = groups * one.rows * (one.rounds if one.kernel == "grid" else 1)
    return (
        slices * one.units >= H
        and at_once >= B * directions
        and slices * one.resident_bytes >= weights
        and one.launches == 1
    )


@pytest.mark.parametrize("name", CELLS)
def test_kernels_leave_room_for_others(name):
    """So many launches with W_hh on chip fit side by side, or the plan says that they do not."""
    for card, B, H, dtype, at_once in product(
        plan.devices().values(), (1, 16, 64), (128, 512, 1024), plan.DTYPES.values(), (2, 3, 8)
    ):
        for backward in (False, True):
            found = plan.plans(
                name, 100, B, H, dtype=dtype, backward=backward, at_once=at_once, device=card
            )
            about = (name, B, H, dtype, backward, card.name, at_once)
            assert found[0].runs, about
            for one in found:
                if one.obstacle or one.kernel == "stepwise":
                    continue
                assert one.at_once >= at_once and fits(one, card), (about, one)
                assert covers(one, CELLS[name], B, H, dtype, 1), (about, one)
                assert one.ctas * at_once <= card.sms, (about, one)
    full = plan.plans("lstm", 9, 64, 1024, dtype=torch.bfloat16, at_once=3, device="h200")
    assert "has no room for 3 side by side" in {p.kernel: p for p in full}["cluster"].obstacle


@pytest.mark.parametrize("name", CELLS)
def test_every_problem_has_a_plan_and_every_plan_fits(name):
    """5,040 problems a cell, three kernels each."""
    problems = product(
        plan.devices().values(), (1, 7, 16, 64, 300), (1, 16, 128, 200, 512, 768, 1024, 2000, 4096),
        plan.DTYPES.values(), (False, True), (False, True),
    )  # fmt: skip
    seen = set()
    for card, B, H, dtype, backward, both in problems:
        if both and dtype == torch.float16:
            continue  # as bfloat16
        found = plan.plans(
            name, 100, B, H, dtype=dtype, backward=backward, bidirectional=both, device=card
        )
        about = (name, B, H, dtype, backward, both, card.name)
        assert {one.kernel for one in found} == KERNELS, about
        assert found[0].runs, about
        for one in found:
            if one.obstacle:
                assert not one.reason and one.ctas == 0, (about, one)
                continue
            assert one.us_per_step > 0 and one.reason, (about, one)
            assert fits(one, card), (about, one)
            assert covers(one, CELLS[name], B, H, dtype, 1 + both), (about, one)
            if one.kernel == "grid":  # which waits for others: all must be there at once
                assert one.ctas <= card.sms * one.ctas_per_sm, (about, one)
            seen.add(one.kernel)
    expected = {"stepwise"} | ({"grid"} if CELLS[name].resident else set())
    assert seen == expected | ({"cluster"} if CELLS[name].clustered else set())


def test_what_runs_is_first_and_the_fastest_of_it():
    for card, H in product(plan.devices(), (64, 512, 3000)):
        found = plan.plans("lstm", 9, 16, H, dtype=torch.bfloat16, device=card)
        ranks = [(bool(p.obstacle), p.us_per_step) for p in found]
        assert ranks == sorted(ranks)


@pytest.mark.parametrize("dtype", plan.DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_what_the_planner_says_the_compiler_says_too(name, dtype):
    """docs/kernel-table.md is ptxas's own account of the stepwise kernels."""
    rows = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs/kernel-table.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    title, table = rows[0], [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    # Of cards like the H200: before sm_80 there are no tensor cores, and more registers a thread.
    registers = [column for column in title if column.startswith("sm_") and column != "sm_75"]
    for backward in (False, True):
        mine = [
            row
            for row in table
            if (row["cell"], row["dtype"]) == (CELLS[name].kernel, dtype)
            and row["kernel"].startswith("backward" if backward else "forward")
            and row["kernel"] != "forward_projection"  # there is none in this problem
        ]
        (one,) = (
            p
            for p in plan.plans(
                name, 9, 40, 200, dtype=plan.DTYPES[dtype], backward=backward, device="h200"
            )
            if p.kernel == "stepwise"
        )
        assert one.shared == max(int(row["shared"]) for row in mine)
        assert one.registers >= max(int(row[column]) for row in mine for column in registers)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("H", [100, 512, 700])
@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.clustered])
def test_the_compiler_keeps_to_the_registers_of_the_cluster_plan(name, H, backward):
    """And spills nothing: its instances are those that the plan picks among."""
    text = (ROOT / "docs/kernel-table.md").read_text()
    table = {
        tuple(row[:3]): dict(zip(rows[0], row, strict=True))
        for rows in [[line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line]]
        for row in rows[2:]
    }
    for B in (1, 16, 32, 500):
        (one,) = (
            p
            for p in plan.plans(
                name, 9, B, H, dtype=torch.bfloat16, backward=backward, device="h200"
            )
            if p.kernel == "cluster"
        )
        shape = int(one.registers == 168)
        largest = 2 if len(CELLS[name].gates) == 1 else 4
        tiles = largest if backward and one.rows > 8 else one.rows // 8
        kernel = f"cluster_{'backward' if backward else 'forward'}[{shape}, {tiles}]"
        row = table[kernel, CELLS[name].kernel, "bfloat16"]
        assert one.threads <= (384 if shape else 256) and row["spilled"] == "0"
        assert one.registers >= max(int(row["sm_90a"]), int(row["sm_100"]))


def test_what_a_call_costs_once_counts_where_steps_are_few():
    """Filling and loading W_hh, spread over the steps; and groups share what batch there is."""

    def of(T, B):
        found = plan.plans("lstm", T, B, 512, dtype=torch.bfloat16, device="a100")
        return {p.kernel: p for p in found}["grid"]

    assert of(1, 16).us_per_step - 2.5 > of(1000, 16).us_per_step
    for B, groups in ((8, 1), (16, 2)):
        one = of(1000, B)
        assert (one.rows, one.rounds, one.ctas // -(-512 // one.units)) == (8, 1, groups)
    assert of(1000, 4000).rounds > 1


def test_capacities_worked_out_by_hand():
    """LSTM in bfloat16: 128 KB of weights fill the registers of 16 CTAs at H = 512."""

    def of(kernel, H, **options):
        found = plan.plans("lstm", 1024, 16, H, dtype=torch.bfloat16, device="h200", **options)
        return next(p for p in found if p.kernel == kernel)

    full = of("cluster", 512)
    assert (full.cluster, full.units, full.resident_bytes) == (16, 32, 128 << 10)
    assert (full.threads, full.rows, full.ctas) == (256, 8, 32)
    assert of("cluster", 512, backward=True).resident_bytes == 128 << 10
    large = of("cluster", 768)  # half of its 24 spans of k are in registers, 12 warps, 1 KB each
    assert (large.threads, large.shared) == (384, 12 * 12 * 1024 + 2 * 8 * 800 * 2 + 16)
    assert not of("cluster", 768, backward=True).obstacle
    assert "more than the largest cluster" in of("cluster", 1024).obstacle
    assert not of("grid", 2048).obstacle and of("grid", 4096).obstacle
    assert "projected" in of("cluster", 512, proj_size=100).obstacle
    *_, here = plan.plans("gru", 9, 9, 64, dtype=torch.bfloat16, device="a100")
    assert "no thread-block clusters" in here.obstacle


def test_float32_has_half_the_room_and_a_sixth_of_the_products():
    """Of tensor cores that take 16 bits; where numbers may be rounded, half of the products."""

    def of(kernel, H, B=16, **options):
        found = plan.plans("lstm", 1024, B, H, device="h200", **options)
        return next(p for p in found if p.kernel == kernel)

    exact = {"dtype": torch.float32, "precision": "ieee"}
    rounded, half = exact | {"precision": "tf32"}, {"dtype": torch.bfloat16}
    assert "three products in tf32 for each" in of("grid", 768, **exact).reason
    assert "products in tf32, as torch" in of("cluster", 256, **rounded).reason
    assert of("grid", 512, **exact).us_per_step > of("grid", 512, **rounded).us_per_step
    assert of("grid", 512, **rounded).us_per_step > of("grid", 512, **half).us_per_step
    # 12 units a CTA keep 12 * 4 rows of 1536 numbers: 96 KB in registers, the rest beside them.
    large = of("grid", 1536, **exact)
    assert (large.units, large.resident_bytes) == (12, 48 * 1536 * 4) and not large.obstacle
    assert of("grid", 1600, **exact).obstacle and not of("grid", 1600, **half).obstacle
    assert not of("cluster", 512, **exact).obstacle and of("cluster", 640, **exact).obstacle
    float64 = of("grid", 64, dtype=torch.float64)
    assert "tensor cores, which take 16 bits" in float64.obstacle


def test_float32_is_planned_as_torchs_switch_is():
    """The native library asks it, as it does in a call on a GPU."""
    switch = torch.backends.cudnn.rnn
    before = switch.fp32_precision
    try:
        for precision, said in (("tf32", "; products in tf32"), ("ieee", "three products in tf32")):
            switch.fp32_precision = precision
            best, *_ = plan.plans("gru", 99, 16, 512, device="h200")
            assert best.kernel != "stepwise" and said in best.reason
            (one, *_) = plan.plans("gru", 99, 16, 512, precision=precision, device="h200")
            assert one == best
    finally:
        switch.fp32_precision = before


def test_the_card_in_the_machine_is_described_by_torch(monkeypatch):
    seen = SimpleNamespace(
        name="NVIDIA H200 NVL", major=9, minor=0, multi_processor_count=114,
        shared_memory_per_block_optin=200_000, shared_memory_per_multiprocessor=210_000,
        max_threads_per_multi_processor=2048,
    )  # fmt: skip
    card = plan.like_known(seen)
    assert (card.name, card.title, card.sms) == ("here", "NVIDIA H200 NVL", 114)
    assert card.gpcs == plan.devices()["h200"].gpcs
    ada = plan.like_known(
        SimpleNamespace(**vars(seen) | {"name": "another", "minor": 9, "major": 8})
    )
    assert ada.arch == 89 and ada.max_cluster == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen)
    assert plan.here() == card
    assert plan.plans("gru", 5, 6, 7)[0].runs


def test_wrong_arguments_name_what_is_right(monkeypatch):
    for options, said in (
        ({"cell": "gru2"}, "must be one of lstm, lstm_coupled"),
        ({"device": "v100"}, "or one of a100, h100"),
        ({"dtype": torch.int8}, "must be one of float64"),
        ({"precision": "bf16"}, "precision is 'bf16'; it must be one of tf32, ieee"),
        ({"B": 0}, "B is 0; it must be at least 1"),
        ({"proj_size": 9}, "between 1 and 7"),
        ({"cell": "gru_reset_before", "proj_size": 2}, "a second product takes none"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            plan.plans(**{"cell": "lstm", "T": 5, "B": 3, "H": 8, "device": "h100"} | options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="sees no GPU to plan for; name a card: a100"):
        plan.plans("lstm", 5, 3, 8)


def test_the_command(capsys):
    arguments = "plan --cell gru:candidate=relu -T 1024 -B 16 -H 768 --dtype bf16 --device h200"
    arguments = arguments.split()
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("grid: runs; ") and "a model, nothing measured" in out
    assert out.count(": runs; ") == 3
    assert "layers" not in out
    assert command.main([*arguments, "--layers", "2"]) == 0
    assert "\n2 layers: " in capsys.readouterr().out
    for wrong, message in (("0", "layers is 0; it must be"), ("2 --bidirectional", "no --layers")):
        assert command.main([*arguments, "--layers", *wrong.split()]) == 2
        assert message in capsys.readouterr().err
    assert command.main([*arguments[:-1], "v100"]) == 2
    assert "device is 'v100'" in capsys.readouterr().err
    help_ = command._parser()._subparsers._group_actions[0].choices["plan"].format_help()
    assert all(name in help_ for name in plan.devices())
