"""The cluster kernels on the host: csrc/testing/cluster_host.h.

Shows that indices, tiles, the exchange between CTAs and the equations are right, whatever the order
in which warps run and in which what they send arrives. Shows nothing of a GPU's memory model,
compiler or speed.
"""

from dataclasses import dataclass
from itertools import product

import pytest
import resident_case
import test_cuda_host as stepwise
import torch
from resident_case import CLUSTERED, DTYPES, KINDS, judge, judge_float32
from sequence_case import CELLS, Case

from fusedrnn import _autograd, plan

host = pytest.importorskip(
    "fusedrnn.fusedrnn_cluster_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)


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
# Backward in float32 takes eight rows at a time.
CASES_FLOAT32 = tuple(case for case in CASES if case[0].rows == 8 and case[0].shape == 0)
WIDE_FLOAT32 = (
    ("lstm", Cluster(8), Case(2, 1, 145)),
    ("gru", Cluster(4), Case(2, 2, 70, lengths=(1, 2))),
    ("lstm", Cluster(16), Case(2, 1, 310)),  # forward and backward: W_hh in shared memory too
)


@pytest.fixture
def on(monkeypatch):
    """on(cluster, order): the ops run on such clusters; in that order of what happens."""
    monkeypatch.setattr(stepwise, "host", host)

    def use(cluster: Cluster, order: int = 7, rows_backward: int = 0) -> None:
        for backward in (False, True):
            rows = rows_backward if backward and rows_backward else cluster.rows
            host.choose(shape=cluster.shape, size=cluster.size, rows=rows, backward=backward)
        monkeypatch.setattr(_autograd, "op", stepwise.Host(order))

    yield use
    host.leave_out("")
    host.tensor_cores()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cluster", "case"), CASES, ids=str)
@pytest.mark.parametrize("name", CLUSTERED)
def test_against_float64(on, name, cluster, case, dtype):
    on(cluster)
    judge(CELLS[name], case, dtype)


@pytest.mark.parametrize(("name", "cluster", "case"), WIDE, ids=str)
def test_more_than_one_tile_of_everything(on, name, cluster, case):
    on(cluster)
    judge(CELLS[name], case, torch.bfloat16)


@pytest.mark.parametrize(("cluster", "case"), CASES_FLOAT32, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_float32_against_float64(on, name, cluster, case):
    on(cluster)
    exact, rounded = judge_float32(host, CELLS[name], case)
    assert rounded > 30 * exact  # as many times as torch's switch allows


@pytest.mark.parametrize(("name", "cluster", "case"), WIDE_FLOAT32, ids=str)
def test_float32_in_more_than_one_tile_of_everything(on, name, cluster, case):
    on(cluster)
    judge_float32(host, CELLS[name], case)


@pytest.mark.parametrize("name", ["lstm", "rnn_tanh"])
def test_float32_of_sixteen_rows(on, name):
    """Forward; backward has no instance of it."""
    on(Cluster(2, rows=16), rows_backward=8)
    judge_float32(host, CELLS[name], Case(2, 19, 24))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_order_of_warps_and_arrivals_does_not_matter(on, name):
    cluster, case = (Cluster(2), Case(6, 3, 70)) if name == "rnn_tanh" else (
        Cluster(4), Case(6, 3, 40, reset="given")
    )  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32) if name == "gru" else (torch.bfloat16,):
        resident_case.same_bits_in_any_order(on, cluster, name, case, dtype)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_both_directions_at_once_are_two_calls(on, name):
    on(Cluster(2))
    case = Case(3, 5, 35, directions=2, lengths=(1, 3, 2, 0, 3), reset="given")
    resident_case.both_directions_are_two_calls(name, case)


@pytest.mark.parametrize("name", CLUSTERED)
@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
def test_absent_gradients_are_zero(on, name, missing):
    on(Cluster(1))
    resident_case.an_absent_gradient_is_zero(name, missing)


def test_inference_is_training_bit_for_bit(on):
    on(Cluster(2))
    resident_case.inference_is_training()


@pytest.mark.parametrize("name", CLUSTERED)
def test_no_steps(on, name):
    on(Cluster(1))
    resident_case.states_pass_through_no_steps(name)


@pytest.mark.parametrize("device", ["h200", "b200", "a100", "5090"])
@pytest.mark.parametrize("name", CELLS)
def test_calls_get_the_kernel_that_the_planner_names(name, device, monkeypatch):
    """Of those in the library: `python -m fusedrnn plan` and the dispatch are one."""
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    seen = set()
    kinds = (("float64", "ieee"), ("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"))
    for H, B, (dtype, precision), backward, directions, proj in product(
        (8, 512, 700, 900), (1, 40), (*kinds, ("float16", "ieee")), (False, True), (1, 2),
        (0, 5) if name == "lstm" else (0,),
    ):  # fmt: skip
        host.tensor_cores(tf32=precision == "tf32")
        best, *_ = plan.plans(
            name, 9, B, H, proj_size=proj, dtype=plan.DTYPES[dtype], backward=backward,
            bidirectional=directions == 2, precision=precision, device=device,
        )  # fmt: skip
        problem = host.Problem(T=9, B=B, H=H, P=proj or H, dtype=dtype, y_row=H)
        got = host.served(
            name, problem, projection=proj > 0, backward=backward, directions=directions,
            device=device,
        )  # fmt: skip
        assert got == best.kernel, (H, B, dtype, precision, backward, directions, proj)
        seen.add(got)
    host.tensor_cores()
    expected = {"stepwise"} | ({"grid"} if CELLS[name].resident else set())
    if CELLS[name].clustered and device in ("h200", "b200"):
        expected.add("cluster")
    assert seen == expected


def test_what_does_not_fit_is_refused_and_the_next_best_serves(monkeypatch):
    problem = host.Problem(T=9, B=8, H=64, P=64, dtype="float16", y_row=64)
    wide = host.Problem(T=9, B=8, H=64, P=64, dtype="float64", y_row=64)
    full = {"cluster": "no room", "grid": "no room either"}
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    assert host.served("gru", problem) == "cluster"
    assert host.served("gru", problem, refusals={"cluster": "no room"}) == "grid"
    assert host.served("gru", problem, refusals=full) == "stepwise"
    assert host.served("gru", problem, device="a100", refusals={"grid": "no"}) == "stepwise"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise")
    assert host.served("gru", problem) == "stepwise"
    for kernel, why in full.items():
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
        assert host.served("gru", problem) == kernel
        said = host.served("gru", problem, refusals=full)
        assert said == f"FUSEDRNN_CUDA_KERNEL={kernel}, but {why}"
        assert "tensor cores, which take 16 bits" in host.served("gru", wide)
    for name, why in (("gru_reset_before", "second product"), ("slstm", "more states")):
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "grid")
        assert host.served(name, problem) == "grid"
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "cluster")
        assert why in host.served(name, problem)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "fastest")
    assert "must be cluster, grid or stepwise" in host.served("gru", problem)


@pytest.mark.parametrize("part", ["wait", "sync_cta", "sync_cluster"])
def test_every_part_of_the_protocol_is_needed(on, part):
    resident_case.it_is_needed(on, Cluster(4), Case(6, 3, 40), host.leave_out, part)
