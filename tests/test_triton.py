"""The Triton backend: plan, limits, and the numbers of its kernels (tests/triton_numbers.py).

tests/test_triton_compile.py compiles the same kernels for GPUs that need not be there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sequence_case import AROUND, CLIPPED, EVERY, RANDOM

from fusedrnn import _backend, _precision
from fusedrnn.triton import plan as planner

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(not _backend._HAS_TRITON, reason="triton is not installed")


def run_numbers(interpret, file="triton_numbers.py"):
    numbers = Path(__file__).with_name(file)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(numbers)],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@needs_triton
def test_numbers_in_the_interpreter():
    run_numbers("1")


@needs_triton
def test_options_in_the_interpreter():
    run_numbers("1", "triton_option_numbers.py")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_numbers_on_the_gpu():
    run_numbers("0")
    run_numbers("0", "triton_option_numbers.py")


def test_import_leaves_triton_alone():
    code = "import fusedrnn, sys; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_cell_is_served():
    for cell in (*EVERY, *CLIPPED, *RANDOM, *AROUND):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            assert planner.limit(cell, dtype, False) is None
    assert "float8" in planner.limit("lstm", torch.float8_e4m3fn, False)
    for cell, what in (
        ("gru_reset_before", "operand"),
        ("lstm:zoneout_h=0.1", "changes h before a projection"),
        ("lstm:variational=0.1", "changes h before a projection"),
    ):
        assert what in planner.limit(cell, torch.float32, True)
    assert "zoneout of inner states" in planner.limit("slstm:zoneout_c=0.1", torch.float32, False)


def test_plan_says_why():
    def plan(H, dtype=torch.bfloat16, projection=False, shared=227 << 10, cell="lstm"):
        shape = planner.Shape(cell, dtype, 16, H, P=8 if projection else None)
        return planner.plan(shape, shared)

    assert plan(128).whole and "stays on chip" in plan(128).reason
    assert not plan(129).whole and "H=129 is more than the 128 units" in plan(129).reason
    assert not plan(128, shared=99 << 10).whole and "would take" in plan(128, shared=0).reason
    assert not plan(64, projection=True).whole and plan(64, projection=True).reason
    assert [plan(H).units for H in (1, 16, 17, 100)] == [16, 16, 32, 128]
    full, normed, alone = "lstm:peephole=full", "gru:layer_norm=True", "rnn_tanh:independent=True"
    assert plan(64, cell=full).whole and "would take" in plan(128, cell=full).reason
    assert not plan(16, cell=normed).whole and "normalisation" in plan(16, cell=normed).reason
    assert plan(5000, cell=alone).whole and "no product" in plan(5000, cell=alone).reason


def test_tiles_of_whole_rows():
    """All units of a row, and at most 4 numbers of a tile to a thread, while there are threads."""
    for dtype, numbers in ((torch.bfloat16, 4), (torch.float64, 2)):
        for H in (1, 16, 17, 300, 2000):
            tiles = planner.rows(dtype, H)
            assert H <= tiles.units < 2 * max(H, 16) and tiles.rows * tiles.units >= 512
            assert tiles.rows * tiles.units <= 32 * tiles.warps * numbers


@pytest.mark.parametrize("what", ["recurrence", "output"])
def test_products_follow_torchs_switch(what):
    """A recurrence that for RNNs, an output layer that for matrix products."""
    switches = {"recurrence": torch.backends.cudnn.rnn, "output": torch.backends.cuda.matmul}
    asked, switch, cuda = getattr(_precision, f"of_{what}"), switches[what], torch.device("cuda")
    before = {one: one.fp32_precision for one in switches.values()}
    try:
        for mine, others in (("ieee", "tf32"), ("tf32", "ieee")):
            for one in switches.values():
                one.fp32_precision = mine if one is switch else others
            assert asked(torch.float32, cuda) == mine
            assert asked(torch.float64, cuda) == "ieee"
            assert asked(torch.float32, torch.device("xpu")) == "ieee"
    finally:
        for one, precision in before.items():
            one.fp32_precision = precision
