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
    """Stands in for the native ops: same arguments, same results, from the kernels on the host.

    ``order``: of threads and CTAs (csrc/testing/cuda_host.h). ``apart``: directions one by one.
    """

    def __init__(self, order: int = 0, apart: bool = False) -> None:
        self.order, self.apart = order, apart

    def __call__(self, way: str, backend: str) -> object:
        assert backend == "cuda"
        return {"forward": self.forward, "backward": self.backward}[way]

    def call(self, way, cell, sizes, dtype, given, made):
        """Launch on copies of ``given`` within guards; return new tensors of the sizes ``made``.

        ``sizes``: N, T, B, H, P. y and dy have columns of each direction, lengths and reset serve
        both, all else has an entry for each.
        """
        N, T, B, H, P = sizes
        name = str(dtype).removeprefix("torch.")
        problem = host.Problem(T=T, B=B, H=H, P=P, dtype=name, y_row=N * P)
        views, buffers = {}, {}
        for key, value in given.items():
            if isinstance(value, list) and value:
                views[key] = [guarded(t.shape, t.dtype)[0].copy_(t) for t in value]
            elif isinstance(value, Tensor) and value.is_floating_point():
                views[key] = guarded(value.shape, value.dtype)[0].copy_(value)
            elif isinstance(value, Tensor):
                views[key] = value.contiguous()
        for key, (size, kind) in made.items():
            views[key], buffers[key] = guarded(size, kind)

        def pointer(key, d):
            if key in ("lengths", "reset"):
                return views[key].data_ptr()
            part = views[key][..., d * P :] if key in ("y", "dy") else views[key][d]
            return part.data_ptr()

        layer = [(d == 1, {key: pointer(key, d) for key in views}) for d in range(N)]
        for directions in [[one] for one in layer] if self.apart else [layer]:
            wrong = getattr(host, way)(cell, problem, directions, self.order)
            if wrong is not None:
                raise RuntimeError(wrong)
        for key, buffer in buffers.items():
            outside = torch.cat([buffer[:GUARD], buffer[len(buffer) - GUARD :]])
            assert outside.isnan().all(), f"{key}: written out of bounds"
        return {key: views[key].clone() for key in made}

    def forward(
        self, cell, gx, weight_hh, bias_hh, weight_hr, h0, c0, lengths, reset, reset_h, reset_c,
        save,
    ):  # fmt: skip
        given = {"gx": gx, "weight_hh": weight_hh, "bias_hh": bias_hh, "weight_hr": weight_hr}
        given |= {"h0": h0, "c0": c0, "lengths": lengths}
        given |= {"reset": reset, "reset_h": reset_h, "reset_c": reset_c}
        record, dtype, T = CELLS[cell], h0.dtype, len(gx[0])
        (N, B, P), H = h0.shape, weight_hh[0].shape[0] // len(record.gates)
        made = {"y": ((T, B, N * P), dtype), "hn": (h0.shape, dtype), "cn": (c0.shape, dtype)}
        if save:
            made["saved"] = ((N, T, B, len(record.saved), H), dtype)
            made["cells"] = ((N, T, len(record.states) - 1, B, H), state_dtype(dtype))
        if save and weight_hr:
            made["hidden"] = ((N, T, B, H), dtype)
        got = self.call("forward", cell, (N, T, B, H, P), dtype, given, made)
        empty = h0.new_empty(0)
        return tuple(got.get(k, empty) for k in ("y", "hn", "cn", "saved", "cells", "hidden"))

    def backward(
        self, cell, dy, dhn, dcn, y, h0, c0, weight_hh, weight_hr, lengths, reset, reset_h,
        reset_c, saved, cells,
    ):  # fmt: skip
        given = {"dy": dy, "dhn": dhn, "dcn": dcn, "y": y, "h0": h0, "c0": c0, "saved": saved}
        given |= {"weight_hh": weight_hh, "weight_hr": weight_hr, "cells": cells}
        given |= {"lengths": lengths, "reset": reset, "reset_h": reset_h, "reset_c": reset_c}
        record, dtype, T = CELLS[cell], h0.dtype, len(y)
        (N, B, P), H = h0.shape, weight_hh[0].shape[0] // len(record.gates)
        made = {"grads": ((N, T, B, record.grads, H), dtype)}
        made |= {"dh0": (h0.shape, dtype), "dc0": (c0.shape, dtype)}
        if weight_hr:
            made["dh"] = ((N, T, B, P), dtype)
        if reset_h is not None:
            made |= {"dreset_h": (h0.shape, dtype), "dreset_c": (c0.shape, dtype)}
        got = self.call("backward", cell, (N, T, B, H, P), dtype, given, made)
        names = ("grads", "dh0", "dc0", "dh", "dreset_h", "dreset_c")
        return tuple(got.get(k, h0.new_empty(0)) for k in names)


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
