"""The cluster kernels on the host: csrc/testing/cluster_host.h.

Shows that indices, tiles, the exchange between CTAs and the equations are right, whatever the order
in which warps run and in which what they send arrives. Shows nothing of a GPU's memory model,
compiler or speed.
"""

from dataclasses import dataclass
from itertools import product

import pytest
import test_cuda_host as stepwise
import torch
from exactness import assert_exact
from sequence_case import CELLS, Case, check, inputs, native, plain, run, truth
from torch.utils._pytree import tree_leaves

from fusedrnn import _autograd, plan

host = pytest.importorskip(
    "fusedrnn.fusedrnn_cluster_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)
SERVED = tuple(name for name, cell in CELLS.items() if cell.by_cluster)
DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Cluster:
    """How a problem is shared: CTAs, batch rows, and the shape of csrc/cluster_tile.h."""

    size: int
    rows: int = 8
    shape: int = 0

    def __str__(self) -> str:
        return f"{self.size}x{self.rows}" + f"-shape{self.shape}" * bool(self.shape)


CASES = (
    (Cluster(1), Case(1, 1, 1)),
    (Cluster(2), Case(4, 3, 35, lengths=(4, 2, 3))),
    (Cluster(1), Case(3, 8, 31, bias=False, directions=2)),
    (Cluster(4), Case(5, 5, 50, directions=2, lengths=(3, 5, 1, 0, 5), reset="given")),
    (Cluster(1), Case(5, 4, 13, directions=2, reset="zeros")),
    (Cluster(2, rows=16), Case(2, 19, 24)),  # two clusters, the second with three rows
    (Cluster(2, rows=16), Case(3, 30, 37, lengths=(3, 1, 2) * 10, reset="given")),
    (Cluster(2, shape=1), Case(2, 2, 70, directions=2)),
)
WIDE = (
    ("lstm", Cluster(2, rows=32), Case(3, 30, 37, lengths=(3, 1, 2) * 10, reset="given")),
    ("gru", Cluster(2, rows=32), Case(2, 25, 20, directions=2)),
    ("lstm", Cluster(8), Case(2, 1, 145)),  # more tiles of all units than a CTA has warps
    ("gru", Cluster(8), Case(2, 2, 150, lengths=(1, 2))),
    ("lstm", Cluster(2, shape=1), Case(2, 2, 90)),  # backward: W_hh in shared memory too
    ("lstm", Cluster(16, shape=1), Case(2, 1, 430)),  # and forward
    ("rnn_tanh", Cluster(2, rows=16), Case(2, 9, 120)),
)


@pytest.fixture
def on(monkeypatch):
    """on(cluster, order): the ops run on such clusters; in that order of what happens."""
    monkeypatch.setattr(stepwise, "host", host)

    def use(cluster: Cluster, order: int = 7) -> None:
        for backward in (False, True):
            host.choose(
                shape=cluster.shape, size=cluster.size, rows=cluster.rows, backward=backward
            )
        monkeypatch.setattr(_autograd, "op", stepwise.Host(order))

    yield use
    host.leave_out("")


def judge(cell, case, dtype):
    """The error rule for every output and gradient."""
    tensors = inputs(cell, case, dtype)
    theirs = run(plain, cell, case, tensors, dtype)
    check(
        run(stepwise.sequence, cell, case, tensors, dtype),
        truth(cell, case, tensors),
        theirs,
        dtype,
        cell.name,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cluster", "case"), CASES, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_against_float64(on, name, cluster, case, dtype):
    on(cluster)
    judge(CELLS[name], case, dtype)


@pytest.mark.parametrize(("name", "cluster", "case"), WIDE, ids=str)
def test_more_than_one_tile_of_everything(on, name, cluster, case):
    on(cluster)
    judge(CELLS[name], case, torch.bfloat16)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_order_of_warps_and_arrivals_does_not_matter(on, name):
    """What is read before it has come, or overwritten before it was read, would change bits."""
    cluster, case = (Cluster(2), Case(6, 3, 70)) if name == "rnn_tanh" else (
        Cluster(4), Case(6, 3, 40, reset="given")
    )  # fmt: skip
    tensors, results = inputs(CELLS[name], case, torch.bfloat16), []
    for order in range(6):  # ascending, descending, random ones
        on(cluster, order)
        results.append(run(stepwise.sequence, CELLS[name], case, tensors, torch.bfloat16))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_both_directions_at_once_are_two_calls(on, name):
    """Bit for bit."""
    on(Cluster(2))
    case = Case(3, 5, 35, directions=2, lengths=(1, 3, 2, 0, 3), reset="given")
    tensors = inputs(CELLS[name], case, torch.float16)
    together, apart = (
        stepwise.round_trip(stepwise.Host(7, apart=one), CELLS[name], case, tensors)
        for one in (False, True)
    )
    for a, b in zip(tree_leaves(together), tree_leaves(apart), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
def test_absent_gradients_are_zero(on, name, missing):
    on(Cluster(1))
    cell, case, device = CELLS[name], Case(3, 2, 5, directions=2), stepwise.Host()
    gx, W, b, R, V, seed, h0, c0, *spans = given = native(case, inputs(cell, case, torch.float16))
    y, hn, cn, saved, cells, _ = device.forward(cell.name, *given, True)
    dout = {"dy": torch.ones_like(y), "dhn": torch.ones_like(hn), "dcn": torch.ones_like(cn)}
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    with_zero = device.backward(name, *(dout | {missing: dout[missing] * 0}).values(), *rest)
    without = device.backward(name, *(dout | {missing: None}).values(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(with_zero, without, strict=True))


def test_inference_is_training_bit_for_bit(on):
    on(Cluster(2))
    case, cell = Case(4, 3, 35, directions=2, reset="zeros"), CELLS["lstm"]
    given = native(case, inputs(cell, case, torch.bfloat16))
    saved, unsaved = (stepwise.Host().forward("lstm", *given, save)[:3] for save in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(saved, unsaved, strict=True))


@pytest.mark.parametrize("name", SERVED)
def test_no_steps(on, name):
    """The states pass through."""
    on(Cluster(1))
    case = Case(0, 3, 4, directions=2, reset="given")
    given = native(case, inputs(CELLS[name], case, torch.float16))
    gx, W, b, R, V, seed, h0, c0, *spans = given
    y, hn, cn, saved, cells, _ = stepwise.Host().forward(name, *given, True)
    assert y.numel() == 0 and torch.equal(hn, h0) and torch.equal(cn, c0)
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    _, dh0, dc0, _, *dreset = stepwise.Host().backward(name, None, hn, cn, *rest)
    assert torch.equal(dh0, hn) and torch.equal(dc0, cn)
    assert not any(t.any() for t in dreset)


@pytest.mark.parametrize("device", ["h200", "b200", "a100", "5090"])
@pytest.mark.parametrize("name", CELLS)
def test_calls_get_the_kernel_that_the_planner_names(name, device, monkeypatch):
    """Of those in the library: `python -m fusedrnn plan` and the dispatch are one."""
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    seen = set()
    for H, B, dtype, backward, directions, proj in product(
        (8, 512, 700, 900), (1, 40), ("float32", "bfloat16", "float16"), (False, True), (1, 2),
        (0, 5) if name == "lstm" else (0,),
    ):  # fmt: skip
        best, *_ = plan.plans(
            name, 9, B, H, proj_size=proj, dtype=plan.DTYPES[dtype], backward=backward,
            bidirectional=directions == 2, device=device,
        )  # fmt: skip
        problem = host.Problem(T=9, B=B, H=H, P=proj or H, dtype=dtype, y_row=H)
        got = host.served(
            name, problem, projection=proj > 0, backward=backward, directions=directions,
            device=device,
        )  # fmt: skip
        assert got == best.kernel, (H, B, dtype, backward, directions, proj)
        seen.add(got)
    clusters = device in ("h200", "b200") and CELLS[name].by_cluster
    assert seen == ({"cluster", "stepwise"} if clusters else {"stepwise"})


def test_a_cluster_that_does_not_fit_is_refused_and_said(monkeypatch):
    problem = host.Problem(T=9, B=8, H=64, P=64, dtype="float16", y_row=64)
    wide = host.Problem(T=9, B=8, H=64, P=64, dtype="float32", y_row=64)
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    assert host.served("gru", problem) == "cluster"
    assert host.served("gru", problem, refusal="no room") == "stepwise"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise")
    assert host.served("gru", problem) == "stepwise"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "cluster")
    assert host.served("gru", problem) == "cluster"
    said = host.served("gru", problem, refusal="no room")
    assert said == "FUSEDRNN_CUDA_KERNEL=cluster, but no room"
    assert "tensor cores in 16 bits" in host.served("gru", wide)
    assert "second product" in host.served("gru_reset_before", problem)
    assert "more states" in host.served("slstm", problem)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "grid")
    assert "must be cluster or stepwise" in host.served("gru", problem)


@pytest.mark.parametrize("part", ["wait", "sync_cta", "sync_cluster"])
def test_every_part_of_the_protocol_is_needed(on, part):
    """Without any one of them runs go wrong, and these tests see it."""
    case, cell, seen = Case(6, 3, 40), CELLS["lstm"], 0
    tensors = inputs(cell, case, torch.bfloat16)
    theirs = run(plain, cell, case, tensors, torch.bfloat16)
    true = truth(cell, case, tensors)
    host.leave_out(part)
    for order in range(2, 8):
        on(Cluster(4), order)
        try:
            got = run(stepwise.sequence, cell, case, tensors, torch.bfloat16)
            assert_exact(got, theirs, true, torch.bfloat16, part)
        except (AssertionError, RuntimeError):
            seen += 1
    assert seen >= 3, seen
