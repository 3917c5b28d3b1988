"""The grid kernels on the host: csrc/testing/grid_host.h.

Shows that indices, tiles, the exchange between CTAs and the equations are right, whatever the order
in which warps run and in which what they publish arrives. Shows nothing of a GPU's memory model,
compiler or speed.
"""

from dataclasses import dataclass

import pytest
import resident_case
import test_cuda_host as stepwise
import torch
from resident_case import DTYPES, KINDS, SERVED, judge, judge_float32
from sequence_case import CELLS, Case, inputs, native

from fusedrnn import _autograd

host = pytest.importorskip(
    "fusedrnn.fusedrnn_grid_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)


@dataclass(frozen=True)
class Grid:
    """How a problem is shared: warps of a CTA, tiles of W_hh forward (16 gate rows each; backward
    has one tile), batch rows at a time, groups of CTAs for each direction."""

    warps: int
    tiles: int = 1
    rows: int = 8
    groups: int = 1

    def __str__(self) -> str:
        return f"{self.warps}w{self.tiles}t{self.rows}r{self.groups}g"


# H = 24 and 40 go 16 bytes at a time, the others number by number.
CASES = (
    (Grid(4), Case(1, 1, 1)),
    (Grid(2), Case(4, 3, 35, lengths=(4, 2, 3))),
    (Grid(4, tiles=2), Case(3, 8, 24, bias=False, directions=2)),
    (Grid(2), Case(5, 5, 40, directions=2, lengths=(3, 5, 1, 0, 5), reset="given")),
    (Grid(2), Case(5, 4, 13, directions=2, reset="zeros")),
    (Grid(4, rows=16, groups=2), Case(2, 37, 24)),  # a group has two turns, the last of five rows
    (Grid(8, rows=24), Case(3, 30, 17, lengths=(3, 1, 2) * 10, reset="given")),
)
WIDE = (
    ("lstm", Grid(8, tiles=4), Case(2, 2, 70)),
    ("gru", Grid(8, tiles=4, rows=16), Case(2, 9, 72, directions=2)),
    ("gru", Grid(4, tiles=3), Case(2, 9, 33, lengths=(1, 2, 2) * 3)),
    ("rnn_tanh", Grid(8, tiles=4), Case(2, 9, 120)),
    ("rnn_tanh", Grid(2), Case(2, 1, 270)),  # forward: W_hh in shared memory too
    ("lstm", Grid(2, tiles=4), Case(2, 2, 264)),  # and backward
    ("slstm", Grid(2, tiles=3), Case(2, 2, 270)),  # as both
    ("gru_reset_before", Grid(8, tiles=2, rows=16), Case(2, 9, 72, directions=2)),
    ("gru_reset_before", Grid(2, tiles=2), Case(2, 1, 520)),  # the same of both products
)
WIDE_FLOAT32 = (
    ("gru", Grid(4, tiles=3, rows=16), Case(2, 9, 33, directions=2)),
    ("rnn_tanh", Grid(2), Case(2, 1, 140)),  # forward: W_hh in shared memory too
    ("lstm", Grid(2, tiles=3), Case(2, 2, 136)),  # and backward
    ("slstm", Grid(2, tiles=2), Case(2, 2, 140)),  # as both
    ("gru_reset_before", Grid(2, tiles=2), Case(2, 1, 140)),  # the same of both products
)


@pytest.fixture
def on(monkeypatch):
    """on(grid, order): the ops run on such groups; in that order of what happens."""
    monkeypatch.setattr(stepwise, "host", host)

    def use(grid: Grid, order: int = 7) -> None:
        for backward in (False, True):
            host.choose(
                tiles=1 if backward else grid.tiles, warps=grid.warps, rows=grid.rows,
                groups=grid.groups, backward=backward,
            )  # fmt: skip
        monkeypatch.setattr(_autograd, "op", stepwise.Host(order))

    yield use
    host.leave_out("")
    host.tensor_cores()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "case"), CASES, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_against_float64(on, name, grid, case, dtype):
    on(grid)
    judge(CELLS[name], case, dtype)


@pytest.mark.parametrize(("name", "grid", "case"), WIDE, ids=str)
def test_more_than_one_tile_of_everything(on, name, grid, case):
    on(grid)
    judge(CELLS[name], case, torch.bfloat16)


FLOAT32 = (*KINDS, "slstm", "gru_reset_before")


@pytest.mark.parametrize(("grid", "case"), CASES, ids=str)
@pytest.mark.parametrize("name", FLOAT32)
def test_float32_against_float64(on, name, grid, case):
    on(grid)
    exact, rounded = judge_float32(host, CELLS[name], case)
    assert rounded > 30 * exact  # as many times as torch's switch allows


@pytest.mark.parametrize(("name", "grid", "case"), WIDE_FLOAT32, ids=str)
def test_float32_in_more_than_one_tile_of_everything(on, name, grid, case):
    on(grid)
    judge_float32(host, CELLS[name], case)


@pytest.mark.parametrize(("name", "H"), [
    ("lstm", 40), ("gru", 33), ("rnn_tanh", 72), ("gru_reset_before", 24), ("gru_reset_before", 33)
])  # fmt: skip
def test_order_of_warps_and_arrivals_does_not_matter(on, name, H):
    case = Case(5, 3, H, reset="given")
    for dtype in (torch.bfloat16, torch.float32) if "gru" in name else (torch.bfloat16,):
        resident_case.same_bits_in_any_order(on, Grid(2), name, case, dtype)


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
def test_both_directions_at_once_are_two_calls(on, name):
    on(Grid(2))
    case = Case(3, 5, 24, directions=2, lengths=(1, 3, 2, 0, 3), reset="given")
    resident_case.both_directions_are_two_calls(name, case)


def test_groups_and_turns_do_not_matter(on):
    """However many rows a group has at a time, each row is computed alike."""
    cell, case = CELLS["lstm"], Case(3, 19, 24)
    tensors, results = inputs(cell, case, torch.float16), []
    for grid in (Grid(8), Grid(8, groups=3), Grid(8, rows=24)):
        on(grid)
        results.append(stepwise.round_trip(stepwise.Host(), cell, case, tensors))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
def test_absent_gradients_are_zero(on, name, missing):
    on(Grid(2))
    resident_case.an_absent_gradient_is_zero(name, missing)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "H"), [("lstm", 35), ("gru_reset_before", 35), ("gru_reset_before", 40)]
)
def test_inference_is_training_bit_for_bit(on, name, H, dtype):
    """The operands of a second product are among what is saved, or in the workspace."""
    on(Grid(2))
    resident_case.inference_is_training(name, H, dtype)


@pytest.mark.parametrize("name", SERVED)
def test_no_steps(on, name):
    on(Grid(2))
    resident_case.states_pass_through_no_steps(name)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float32), ids=str)
@pytest.mark.parametrize(("name", "H"), [("gru", 24), ("gru", 17), ("gru_reset_before", 24)])
def test_what_is_no_number_is_not_taken_for_what_is_still_to_come(on, name, H, dtype):
    """The bits that y and grads are filled with are those of a NaN, which users may have too."""
    on(Grid(2))
    cell, case = CELLS[name], Case(3, 4, H)
    tensors = inputs(cell, case, dtype)
    fine = stepwise.round_trip(stepwise.Host(), cell, case, tensors)
    whole = torch.int16 if dtype.itemsize == 2 else torch.int32
    bits = torch.tensor(-1, dtype=whole).view(dtype)
    tensors["h0"][0, 1] = bits
    tensors["x"][0, 1, 2] = bits
    got = stepwise.round_trip(stepwise.Host(), cell, case, tensors)
    y, grads = got[0][0], got[1][0][0]
    assert y[:, 1].isnan().all() and y[1:, 2].isnan().all() and not y[0, 2].isnan().any()
    assert grads[:, 1].isnan().all()
    for mine, theirs in ((y, fine[0][0]), (grads, fine[1][0][0])):
        assert torch.equal(mine[:, [0, 3]], theirs[:, [0, 3]])


@pytest.mark.parametrize("H", [4, 5])
def test_half_of_a_float32_is_not_taken_for_what_is_still_to_come(on, H):
    on(Grid(2))
    cell, case = CELLS["rnn_identity"], Case(2, 1, H, bias=False)
    tensors = inputs(cell, case, torch.float32)
    tensors["weight_hh0"].zero_()
    tensors["x"].fill_(torch.tensor(0x3F80FFFF, dtype=torch.int32).view(torch.float32))
    y, *_ = stepwise.Host().forward(cell.name, *native(case, tensors), False)
    assert torch.equal(y, tensors["x"][0])


def test_what_it_has_no_room_for_is_refused(on):
    case = Case(2, 9, 40)
    given = native(case, inputs(CELLS["lstm"], case, torch.float16))
    on(Grid(1, tiles=4, rows=16))  # 16 x 16 pairs for 32 threads
    with pytest.raises(RuntimeError, match="cannot serve the problem so"):
        stepwise.Host().forward("lstm", *given, True)


@pytest.mark.parametrize("part", ["wait", "sync_empty", "sync_full"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_every_part_of_the_protocol_is_needed(on, part, name):
    resident_case.it_is_needed(on, Grid(2), Case(12, 1, 36), host.leave_out, part, name)
