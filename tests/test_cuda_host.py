"""The CUDA sequence kernels on the host: csrc/testing/cuda_host.h makes each CUDA thread a fiber.

Shows that indices, tiles, barriers and equations are right. Shows nothing of a real GPU's memory
model or compiler: tests/test_gpu.py does.
"""

import pytest
import torch
from sequence_case import CELLS, DTYPES, Case, cases, check, inputs, plain, run, truth
from torch import Tensor

from fusedrnn import ops, plan
from fusedrnn.reference import state_dtype

host = pytest.importorskip(
    "fusedrnn.fusedrnn_cuda_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)

GUARD = (
    64  # elements around each tensor: NaN before the call; a change there is a write out of bounds
)


def guarded(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor of NaN in the middle of a longer buffer of NaN, and that buffer."""
    count = torch.Size(size).numel()
    buffer = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
    return buffer[GUARD : GUARD + count].view(size), buffer


class Host:
    """Stands in for the native ops: same arguments, same results, from the kernels on the host."""

    def __init__(self, order: int = 0) -> None:
        self.order = order

    def __call__(self, direction: str, backend: str) -> object:
        assert backend == "cuda"
        return {"forward": self.forward, "backward": self.backward}[direction]

    def call(self, direction, cell, sizes, dtype, reverse, given, made):
        """Launch on copies of ``given`` within guards; return new tensors of the sizes ``made``."""
        T, B, H, P = sizes
        name = str(dtype).removeprefix("torch.")
        problem = host.Problem(T=T, B=B, H=H, P=P, dtype=name, reverse=reverse)
        views, buffers = {}, {}
        for key, tensor in given.items():
            if tensor is None:
                continue
            if not tensor.is_floating_point():
                views[key] = tensor.contiguous()
                continue
            views[key], _ = guarded(tensor.shape, tensor.dtype)
            views[key].copy_(tensor)
        for key, (size, kind) in made.items():
            views[key], buffers[key] = guarded(size, kind)
        pointers = {key: view.data_ptr() for key, view in views.items()}
        wrong = getattr(host, direction)(cell, problem, pointers, self.order)
        if wrong is not None:
            raise RuntimeError(wrong)
        for key, buffer in buffers.items():
            outside = torch.cat([buffer[:GUARD], buffer[len(buffer) - GUARD :]])
            assert outside.isnan().all(), f"{key}: written out of bounds"
        return {key: views[key].clone() for key in made}

    def forward(self, cell, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, reverse, save):
        given = {"gx": gx, "weight_hh": weight_hh, "bias_hh": bias_hh, "weight_hr": weight_hr}
        given |= {"h0": h0, "c0": c0, "lengths": lengths}
        record, dtype = CELLS[cell], gx.dtype
        (T, B), P, S = gx.shape[:2], weight_hh.shape[1], len(record.states)
        H = weight_hh.shape[0] // len(record.gates)
        made = {"y": ((T, B, P), dtype), "hn": ((B, P), dtype), "cn": ((S - 1, B, H), dtype)}
        if save:
            made["saved"] = ((T, B, len(record.saved), H), dtype)
            made["cells"] = ((T, S - 1, B, H), state_dtype(dtype))
        if save and weight_hr is not None:
            made["hidden"] = ((T, B, H), dtype)
        got = self.call("forward", cell, (T, B, H, P), dtype, reverse, given, made)
        empty = gx.new_empty(0)
        return tuple(got.get(k, empty) for k in ("y", "hn", "cn", "saved", "cells", "hidden"))

    def backward(
        self, cell, dy, dhn, dcn, y, h0, c0, weight_hh, weight_hr, lengths, reverse, saved, cells
    ):
        given = {"dy": dy, "dhn": dhn, "dcn": dcn, "y": y, "h0": h0, "c0": c0, "saved": saved}
        given |= {
            "weight_hh": weight_hh,
            "weight_hr": weight_hr,
            "lengths": lengths,
            "cells": cells,
        }
        record, dtype, (T, B, P) = CELLS[cell], y.dtype, y.shape
        H = weight_hh.shape[0] // len(record.gates)
        made = {"grads": ((T, B, record.grads, H), dtype), "dh0": ((B, P), dtype)}
        made["dc0"] = (tuple(c0.shape), dtype)
        if weight_hr is not None:
            made["dh"] = ((T, B, P), dtype)
        got = self.call("backward", cell, (T, B, H, P), dtype, reverse, given, made)
        return tuple(got.get(k, y.new_empty(0)) for k in ("grads", "dh0", "dc0", "dh"))


def sequence(cell, *arguments):
    """ops.sequence, but on the CUDA kernels wherever the tensors are."""
    return ops.Sequence.apply(cell.name, "cuda", *arguments, None, None)


@pytest.fixture
def on_host(monkeypatch):
    def use(order: int = 0) -> None:
        monkeypatch.setattr(ops, "_op", Host(order))

    use()
    return use


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "case"), cases())
def test_against_float64(on_host, cell, case, dtype):
    tensors = inputs(cell, case, dtype)
    theirs = run(plain, cell, case, tensors, dtype)
    true = truth(cell, case, tensors)
    check(run(sequence, cell, case, tensors, dtype), true, theirs, dtype, cell.name)


@pytest.mark.parametrize("name", CELLS)
def test_order_of_threads_and_ctas_does_not_matter(on_host, name):
    """A missing barrier, or CTAs that read each other's results, would change bits."""
    case = Case(T=3, B=33, H=35, lengths=(1, 3, 2) * 11, P=19 if name == "lstm" else None)
    tensors = inputs(CELLS[name], case, torch.float32)
    results = []
    for order in (0, 1, 12345, 999):  # ascending, descending, two random orders
        on_host(order)
        results.append(run(sequence, CELLS[name], case, tensors, torch.float32))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", CELLS)
def test_gradcheck(on_host, name):
    case = Case(T=3, B=2, H=3, lengths=(3, 2), P=2 if name == "lstm" else None)
    leaves = inputs(CELLS[name], case, torch.float64).values()
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    lengths = torch.tensor(case.lengths)
    outputs = len(CELLS[name].states) + 1
    assert torch.autograd.gradcheck(
        lambda *a: sequence(CELLS[name], *a, lengths, True)[:outputs], leaves
    )


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
def test_absent_gradients_are_zero(name, missing):
    cell, device = CELLS[name], Host()
    gx, W, b, R, h0, c0 = inputs(cell, Case(T=3, B=2, H=5), torch.float32).values()
    y, hn, cn, saved, cells, _ = device.forward(name, gx, W, b, R, h0, c0, None, False, True)
    dout = {"dy": torch.ones_like(y), "dhn": torch.ones_like(hn), "dcn": torch.ones_like(cn)}
    rest = (y, h0, c0, W, R, None, False, saved, cells)
    with_zero = device.backward(name, *(dout | {missing: dout[missing] * 0}).values(), *rest)
    without = device.backward(name, *(dout | {missing: None}).values(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(with_zero, without, strict=True))


def test_one_launch_a_step():
    """What the planner counts on."""
    tensors = inputs(CELLS["lstm"], Case(T=5, B=2, H=4), torch.float32)
    before = host.launches()
    Host().forward("lstm", *tensors.values(), None, False, False)
    (planned,) = (p for p in plan.plans("lstm", 5, 2, 4, device="h200") if p.kernel == "stepwise")
    # and two for each state: in and out
    assert host.launches() - before == planned.launches + 4 == 5 + 4


def test_sizes_that_no_kernel_takes():
    name = "gru_reset_before"
    gx, W, b, R, h0, c0 = inputs(CELLS[name], Case(T=1, B=1, H=4, P=2), torch.float32).values()
    with pytest.raises(RuntimeError, match="but no projection"):
        Host().forward(name, gx, W, b, None, h0, c0, None, False, False)
    with pytest.raises(RuntimeError, match="second product takes no projection"):
        Host().forward(name, gx, W, b, R, h0, c0, None, False, False)


@pytest.mark.parametrize("name", CELLS)
def test_empty_batch(on_host, name):
    leaves = inputs(CELLS[name], Case(T=2, B=0, H=4), torch.float32)
    leaves = {k: None if t is None else t.requires_grad_() for k, t in leaves.items()}
    y, hn, _ = sequence(CELLS[name], *leaves.values(), None, False)
    assert y.shape == (2, 0, 4) and hn.shape == (0, 4)
    y.sum().backward()
    assert not leaves["weight_hh"].grad.any() and leaves["gx"].grad.shape == leaves["gx"].shape


@pytest.mark.parametrize("name", CELLS)
def test_no_steps(name):
    """The states pass through."""
    gx, W, b, R, h0, c0 = inputs(CELLS[name], Case(T=0, B=3, H=4), torch.float16).values()
    y, hn, cn, saved, cells, _ = Host().forward(name, gx, W, b, R, h0, c0, None, False, True)
    assert y.numel() == 0 and torch.equal(hn, h0) and torch.equal(cn, c0)
    rest = (y, h0, c0, W, R, None, False, saved, cells)
    _, dh0, dc0, _ = Host().backward(name, None, hn, cn, *rest)
    assert torch.equal(dh0, hn) and torch.equal(dc0, cn)
