"""Options that the Triton kernels make around a cell's maths: run by test_triton.py.

Every option forward and backward, with both directions, lengths and resets; those that meet in the
same place, together. What units weigh of their own is in triton_numbers.py, among the variants.
"""

from dataclasses import replace

import pytest
import torch
import triton as compiler
import triton.language as tl
from exactness import assert_close64
from sequence_case import Case, inputs, run
from sequence_case import check as check_results
from triton_numbers import DEVICE, check, force, one_thread, round_to_nearest  # noqa: F401

import fusedrnn
from fusedrnn import ops, random
from fusedrnn.cells import CELLS
from fusedrnn.triton import _call, _random

pytestmark = pytest.mark.usefixtures("one_thread", "round_to_nearest")

ALL = Case(3, 2, 5, directions=2, lengths=(1, 3), reset="given")
DRAWN = (
    ("lstm:peephole=diagonal:zoneout_h=0.3:dropout=0.5", "whole"),
    ("lstm_coupled:update=tanh:zoneout_h=0.5:zoneout_c=0.25:variational=0.3", "whole"),
    ("lstm_coupled:clip=0.9:zoneout_c=0.3:dropout=0.2:dh_clip=0.1", "step"),
    ("slstm:zoneout_h=0.25:dropout=0.3:variational=0.2", "step"),
    ("gru:zoneout_h=0.3:dropout=0.2", "whole"),
    ("gru_reset_before:zoneout_h=0.5:dropout=0.5", "step"),
    ("rnn_tanh:residual=True:independent=True:zoneout_h=0.1:dropout=0.2", "whole"),
    ("lstm:peephole=full:variational=0.5", "whole"),
    ("lstm_coupled:peephole=full:zoneout_h=0.2:zoneout_c=0.1:variational=0.5", "step"),
    ("lstm:layer_norm=True:peephole=diagonal:variational=0.2:zoneout_h=0.2", "step"),
    ("gru:layer_norm=True:dh_clip=0.2:zoneout_h=0.5:dropout=0.2", "step"),
)
ROUNDED = (
    ("lstm:peephole=diagonal", "step"),
    ("rnn_tanh:independent=True", "whole"),
    ("lstm_coupled:peephole=full", "whole"),
    ("lstm:peephole=full", "step"),
    ("lstm_coupled:layer_norm=True", "step"),
)


def drawn(cell, x, weights, *args):
    torch.manual_seed(5)
    seed = random.seeds(len(weights), weights[0].weight_hh.device) if cell.random else None
    return ops.sequence(cell, x, weights, *args, seed=seed)


def both(name, case, dtype, function=drawn):
    """Results of the kernels, and of the reference."""
    cell = CELLS[name]
    tensors = inputs(cell, case, dtype, DEVICE)
    for backend in ("triton", "reference"):
        with fusedrnn.backend(backend):
            yield run(function, cell, case, tensors, dtype)


@pytest.mark.parametrize(("name", "kernel"), DRAWN)
def test_cells_that_draw_equal_the_reference(force, name, kernel):  # noqa: F811
    """In backward too: it draws what forward drew."""
    force(kernel)
    ours, theirs = both(name, ALL, torch.float64)
    assert_close64(ours, theirs, name)


@pytest.mark.parametrize("kernel", ("whole", "step"))
def test_without_a_seed_old_and_new_are_mixed(force, kernel):  # noqa: F811
    force(kernel)
    name = "lstm:zoneout_h=0.3:zoneout_c=0.4:dropout=0.2:variational=0.3"
    assert_close64(*both(name, replace(ALL, lengths=None), torch.float64, ops.sequence), name)


@pytest.mark.parametrize(("name", "kernel"), ROUNDED)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_error_rule(force, name, kernel, dtype):  # noqa: F811
    force(kernel)
    check(name, Case(2, 2, 16, reset="given"), dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_draws_in_other_types(force, dtype):  # noqa: F811
    """As near to float64 as the reference in that type."""
    force("step")
    name, case = "lstm:zoneout_h=0.3:zoneout_c=0.4:dropout=0.2:variational=0.3", Case(3, 2, 16)
    cell = CELLS[name]
    tensors = inputs(cell, case, dtype, DEVICE)
    ours, theirs = both(name, case, dtype)
    with fusedrnn.backend("reference"):
        true = run(drawn, cell, case, tensors, torch.float64)
    check_results(ours, true, theirs, dtype, name)


@pytest.mark.parametrize("name", ("lstm:peephole=full", "lstm:layer_norm=True:dropout=0.3"))
def test_projected(name):
    case = replace(ALL, P=3, directions=1)
    assert_close64(*both(name, case, torch.float64), name)


def test_more_units_than_a_program_has():
    """Independent units on both sides of a program's border, and rows of more than one program."""
    for name, case in (
        ("rnn_tanh:independent=True:zoneout_h=0.3", Case(2, 3, 65)),
        ("gru:layer_norm=True", Case(2, 5, 33)),
    ):
        assert_close64(*both(name, case, torch.float64), name)


@compiler.jit
def draw(to, seed, t, B, H, CHANCES: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr):
    """What each stream keeps, ``[4, B, H]``: the factors of dropout, zoneout's shares."""
    o_b, o_h = tl.arange(0, BB).to(tl.int64), tl.arange(0, BH)
    own, keep_h = _random.own_values(None, None, seed, t, o_b, o_h, CHANCES, tl.float64)
    met = _random.meeting(seed, o_b, o_h, CHANCES, tl.float64)
    o, m = o_b[:, None] * H + o_h[None, :], (o_b < B)[:, None] & (o_h < H)[None, :]
    tl.store(to + o, own[1], mask=m)
    tl.store(to + B * H + o, keep_h, mask=m)
    tl.store(to + 2 * B * H + o, own[2], mask=m)
    tl.store(to + 3 * B * H + o, met, mask=m)


@pytest.mark.parametrize("seed", (0, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF))
@pytest.mark.parametrize("p", (0.001, 0.37, 1.0))
def test_masks_are_the_references(seed, p):
    """Every bit of them, at the first step and at the ten-millionth."""
    B, H, scale = 5, 37, 1 / (1 - p) if p < 1 else 0.0
    name = f"lstm:zoneout_h={p}:zoneout_c={p}:dropout={p}:variational={p}"
    chances = _call.chances(CELLS[name])
    given = torch.tensor([seed, seed ^ 5], device=DEVICE)
    for t in (0, 10**7):
        found = torch.empty(4, B, H, dtype=torch.float64, device=DEVICE)
        draw[(1,)](found, given, t, B, H, CHANCES=chances, BB=8, BH=64)
        for stream, at, kept in (
            (random.DROP, t, scale),
            (random.KEEP_H, t, 1.0),
            (random.KEEP_C, t, 1.0),
            (random.SEQUENCE, -1, scale),
        ):
            expected = random.kept(given[int(at < 0)], at, B, H, stream, p).double() * kept
            assert torch.equal(found[stream], expected), (stream, t)
