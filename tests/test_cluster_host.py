"""The cluster kernels on the host: csrc/testing/cluster_host.h.

Shows that indices, tiles, the exchange between CTAs and the equations are right, whatever the order
in which warps run and in which what they send arrives. Shows nothing of a GPU's memory model,
compiler or speed.
"""

from dataclasses import replace

import pytest
import torch
from cluster_case import CELLS, SERVED, Case, inputs, judge, run

BOTH = (False, True)
CASES = (
    Case(T=1, B=1, H=1, size=1),
    Case(T=4, B=3, H=35, size=2, lengths=(4, 2, 3)),
    Case(T=3, B=8, H=31, size=1, directions=(True,), bias=False),
    Case(T=5, B=5, H=50, size=4, directions=BOTH, lengths=(3, 5, 1, 0, 5), resets="given"),
    Case(T=5, B=4, H=13, size=1, directions=BOTH, resets="zero"),
    Case(T=2, B=19, H=24, size=2, rows=16),  # two clusters, the last with three rows
    Case(T=3, B=30, H=37, size=2, rows=32, lengths=(3, 1, 2) * 10, resets="given"),
    Case(T=2, B=2, H=70, size=2, shape=1, directions=BOTH),
)
WIDE = (
    ("lstm", Case(T=2, B=1, H=145, size=8)),  # more tiles of all units than warps
    ("gru", Case(T=2, B=2, H=150, size=8, lengths=(1, 2))),
    ("lstm", Case(T=2, B=2, H=90, size=2, shape=1)),  # backward: a part of W_hh in shared memory
    ("lstm", Case(T=2, B=1, H=400, size=16, shape=1)),  # forward too
    ("rnn_tanh", Case(T=2, B=9, H=130, size=2, rows=16)),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_against_float64(name, case, dtype):
    judge(CELLS[name], case, dtype)


@pytest.mark.parametrize(("name", "case"), WIDE, ids=str)
def test_more_than_one_tile_of_everything(name, case):
    judge(CELLS[name], case, torch.bfloat16)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_order_of_warps_and_arrivals_does_not_matter(name):
    """What is read before it has come, or overwritten before it was read, would change bits."""
    case = Case(T=6, B=3, H=40 if name != "rnn_tanh" else 70, size=4 if name != "rnn_tanh" else 2)
    tensors = inputs(CELLS[name], case, torch.bfloat16)
    first = run(CELLS[name], replace(case, order=0), tensors, torch.bfloat16)
    for order in (1, 2, 3, 4, 5):
        other = run(CELLS[name], replace(case, order=order), tensors, torch.bfloat16)
        for one, two in zip(first, other, strict=True):
            assert all(torch.equal(one[key], two[key]) for key in one), order


@pytest.mark.parametrize("fault", ["wait", "sync_cta", "sync_cluster"])
def test_every_part_of_the_protocol_is_needed(fault):
    """Without any one of them a run goes wrong, and these tests see it."""
    case = Case(T=6, B=3, H=40, size=4, fault=fault)
    seen = 0
    for order in range(2, 8):
        try:
            judge(CELLS["lstm"], replace(case, order=order), torch.bfloat16)
        except (AssertionError, RuntimeError):
            seen += 1
    assert seen >= 3
