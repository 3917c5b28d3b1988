"""The CUDA sequence kernels on the host: csrc/testing/cuda_host.h makes each CUDA thread a fiber.

Shows that indices, tiles, barriers and equations are right. Shows nothing of a real GPU's memory
model or compiler: tests/test_gpu.py does.
"""

from functools import partial

import pytest
import torch
from exactness import assert_close64
from sequence_case import (
    AROUND,
    CELLS,
    DTYPES,
    KINDS,
    LAUNCHED,
    RANDOM,
    Case,
    arguments,
    around_cases,
    cases,
    check,
    inputs,
    native,
    plain,
    run,
    truth,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fusedrnn import _autograd, plan, reference
from fusedrnn.reference import state_dtype

host = pytest.importorskip(
    "fusedrnn.fusedrnn_cuda_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)

EACH = KINDS + LAUNCHED
cells = pytest.mark.parametrize("cell", [CELLS[name] for name in EACH], ids=EACH)
DRAWING = (*RANDOM, *(name for name in AROUND if CELLS[name].random))
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
        self, cell, gx, weight_hh, bias_hh, weight_hr, weight_unit, seed, h0, c0, lengths, reset,
        reset_h, reset_c, save, at_once=1,
    ):  # fmt: skip
        given = {"gx": gx, "weight_hh": weight_hh, "bias_hh": bias_hh, "weight_hr": weight_hr}
        given |= {"h0": h0, "c0": c0, "lengths": lengths, "weight_unit": weight_unit, "seed": seed}
        given |= {"reset": reset, "reset_h": reset_h, "reset_c": reset_c}
        record, dtype, T = CELLS[cell], h0.dtype, len(gx[0])
        (N, B, P), H = h0.shape, weight_hh[0].shape[0] // len(record.gates)
        made = {"y": ((T, B, N * P), dtype), "hn": (h0.shape, dtype), "cn": (c0.shape, dtype)}
        if save:
            made["saved"] = ((N, T, B, record.kept, H), dtype)
            made["cells"] = ((N, T, len(record.states) - 1, B, H), state_dtype(dtype))
        if save and weight_hr:
            made["hidden"] = ((N, T, B, H), dtype)
        got = self.call("forward", cell, (N, T, B, H, P), dtype, given, made)
        empty = h0.new_empty(0)
        return tuple(got.get(k, empty) for k in ("y", "hn", "cn", "saved", "cells", "hidden"))

    def backward(
        self, cell, dy, dhn, dcn, y, h0, c0, weight_hh, weight_hr, weight_unit, seed, lengths,
        reset, reset_h, reset_c, saved, cells, at_once=1,
    ):  # fmt: skip
        given = {"dy": dy, "dhn": dhn, "dcn": dcn, "y": y, "h0": h0, "c0": c0, "saved": saved}
        given |= {"weight_hh": weight_hh, "weight_hr": weight_hr, "cells": cells}
        given |= {"weight_unit": weight_unit, "seed": seed}
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
        names = ("grads", "dh0", "dc0", "dh", "dreset_h", "dreset_c", "dweight_unit")
        return tuple(got.get(k, h0.new_empty(0)) for k in names)


def sequence(cell, x, weights, h0, c0, lengths=None, reset=None, seed=None):
    """ops.sequence with gradients, but on the CUDA kernels wherever the tensors are."""
    mask, *anew = (None, None, None) if reset is None else reset
    leaves = (x, h0, c0, *anew, *(t for w in weights for t in w))
    call = cell.name, "cuda", 1, False, False, seed, lengths, mask
    return _autograd.Sequence.apply(*call, *leaves)


def round_trip(device, cell, case, tensors):
    """Results of the native forward op, and of the backward op on gradients of ones."""
    gx, W, b, R, V, seed, h0, c0, *spans = given = native(case, tensors)
    forward = device.forward(cell.name, *given, True)
    y, hn, cn, saved, cells, _ = forward
    dout = [torch.ones_like(t) for t in (y, hn, cn)]
    return forward, device.backward(
        cell.name, *dout, y, h0, c0, W, R, V, seed, *spans, saved, cells
    )


@pytest.fixture
def on_host(monkeypatch):
    def use(order: int = 0) -> None:
        monkeypatch.setattr(_autograd, "op", Host(order))

    use()
    return use


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "case"), cases() + around_cases())
def test_against_float64(on_host, cell, case, dtype):
    tensors = inputs(cell, case, dtype)
    theirs = run(plain, cell, case, tensors, dtype)
    true = truth(cell, case, tensors)
    check(run(sequence, cell, case, tensors, dtype), true, theirs, dtype, cell.name)


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("seed", [None, ((7, 8), (-(2**62), 5))])
def test_cells_that_draw(on_host, name, seed):
    """The same numbers as the reference's, and without a seed the means."""
    case = Case(5, 4, 35, directions=2, lengths=(2, 5, 0, 4), reset="given")
    cell, tensors = CELLS[name], inputs(CELLS[name], case, torch.float64)
    seeds = None if seed is None else torch.tensor(seed)
    found = run(partial(sequence, seed=seeds), cell, case, tensors, torch.float64)
    true = run(partial(reference.sequence, seed=seeds), cell, case, tensors, torch.float64)
    assert_close64(found, true, name)


@cells
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("lengths", [None, (5, 1, 0, 4)])
@pytest.mark.parametrize("reset", ["zeros", "given"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_resets(on_host, cell, directions, lengths, reset, everywhere):
    """At some steps of some rows, or at all."""

    def with_mask(function):
        def call(*arguments):
            *rest, anew = arguments
            mask = torch.ones_like(anew.mask) if everywhere else anew.mask
            return function(*rest, anew._replace(mask=mask))

        return call

    for P in (None, 3) if cell.name in ("lstm", "rnn_tanh", *LAUNCHED[:2]) else (None,):
        case = Case(5, 4, 5, P=P, directions=directions, lengths=lengths, reset=reset)
        tensors = inputs(cell, case, torch.float64)
        found, true = (
            run(with_mask(function), cell, case, tensors, torch.float64)
            for function in (sequence, reference.sequence)
        )
        assert_close64(found, true, cell.name)


@cells
@pytest.mark.parametrize("reset", [None, "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_both_directions_at_once_are_two_calls(cell, reset, dtype):
    """Bit for bit."""
    for P in (None, 19) if cell.kernel == "lstm" else (None,):
        case = Case(3, 5, 35, P=P, directions=2, lengths=(1, 3, 2, 0, 3), reset=reset)
        tensors = inputs(cell, case, dtype)
        together, apart = (
            round_trip(Host(apart=one), cell, case, tensors) for one in (False, True)
        )
        for a, b in zip(tree_leaves(together), tree_leaves(apart), strict=True):
            assert torch.equal(a, b)


@cells
def test_order_of_threads_and_ctas_does_not_matter(on_host, cell):
    """A missing barrier, or CTAs that read each other's results, would change bits."""
    P = 19 if cell.kernel == "lstm" else None
    case = Case(3, 33, 35, P, directions=2, lengths=(1, 3, 2) * 11, reset="given")
    tensors = inputs(cell, case, torch.float32)
    results = []
    for order in (0, 1, 12345, 999):  # ascending, descending, two random orders
        on_host(order)
        results.append(run(sequence, cell, case, tensors, torch.float32))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


@cells
@pytest.mark.parametrize("reset", [None, "given"])
def test_gradcheck(on_host, cell, reset):
    P = 2 if cell.kernel == "lstm" else None
    case = Case(3, 2, 3, P, directions=2, lengths=(3, 2), reset=reset)
    if cell.name in LAUNCHED:
        case = Case(2, 1, 3, P, reset=reset)
    tensors = inputs(cell, case, torch.float64)
    names = [name for name, t in tensors.items() if t.numel()]

    def call(*values):
        given = tensors | dict(zip(names, values, strict=True))
        return tuple(t for t in sequence(cell, *arguments(case, given)) if t.numel())

    assert torch.autograd.gradcheck(call, [tensors[name].requires_grad_() for name in names])


@cells
@pytest.mark.parametrize("missing", ["dy", "dhn", "dcn"])
def test_absent_gradients_are_zero(cell, missing):
    case, device = Case(3, 2, 5, directions=2), Host()
    gx, W, b, R, V, seed, h0, c0, *spans = given = native(case, inputs(cell, case, torch.float32))
    y, hn, cn, saved, cells, _ = device.forward(cell.name, *given, True)
    dout = {"dy": torch.ones_like(y), "dhn": torch.ones_like(hn), "dcn": torch.ones_like(cn)}
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    with_zero = device.backward(cell.name, *(dout | {missing: dout[missing] * 0}).values(), *rest)
    without = device.backward(cell.name, *(dout | {missing: None}).values(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(with_zero, without, strict=True))


@pytest.mark.parametrize(
    ("name", "P", "a_step"),
    [
        ("lstm", None, (1, 1)),
        ("lstm", 3, (2, 2)),
        ("lstm:peephole=full", None, (1, 2)),
        ("lstm:peephole=full", 3, (2, 3)),
        ("gru:layer_norm=True", None, (2, 2)),
        ("lstm:layer_norm=True", 3, (3, 4)),
    ],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_launches_of_a_step(name, P, a_step, directions):
    """What the planner counts on, for both directions together."""
    case = Case(5, 2, 4, P, directions=directions)
    tensors, before = inputs(CELLS[name], case, torch.float32), host.launches()
    round_trip(Host(), CELLS[name], case, tensors)
    planned = 0
    for backward, launches in enumerate(a_step):
        both = directions == 2
        found = plan.plans(
            name, 5, 2, 4, proj_size=P or 0, backward=bool(backward), bidirectional=both,
            device="h200",
        )  # fmt: skip
        (one,) = (p for p in found if p.kernel == "stepwise")
        assert one.launches == 5 * launches + backward  # the last one brings dh0
        planned += one.launches
    # and forward and backward one each for the states on their way in, one on their way out
    assert host.launches() - before == planned + 4


def test_sizes_that_no_kernel_takes():
    case = Case(1, 1, 4, P=2)
    gx, W, b, R, *rest = native(case, inputs(CELLS["gru_reset_before"], case, torch.float32))
    with pytest.raises(RuntimeError, match="but no projection"):
        Host().forward("gru_reset_before", gx, W, b, [], *rest, False)
    with pytest.raises(RuntimeError, match="second product takes no projection"):
        Host().forward("gru_reset_before", gx, W, b, R, *rest, False)


@cells
def test_empty_batch(on_host, cell):
    case = Case(2, 0, 4, directions=2)
    leaves = {k: t.requires_grad_() for k, t in inputs(cell, case, torch.float32).items()}
    y, hn, _ = sequence(cell, *arguments(case, leaves))
    assert y.shape == (2, 0, 8) and hn.shape == (2, 0, 4)
    y.sum().backward()
    assert not leaves["weight_hh0"].grad.any() and leaves["x"].grad.shape == leaves["x"].shape


@cells
def test_no_steps(cell):
    """The states pass through."""
    case = Case(0, 3, 4, directions=2, reset="given")
    gx, W, b, R, V, seed, h0, c0, *spans = given = native(case, inputs(cell, case, torch.float16))
    y, hn, cn, saved, cells, _ = Host().forward(cell.name, *given, True)
    assert y.numel() == 0 and torch.equal(hn, h0) and torch.equal(cn, c0)
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    _, dh0, dc0, _, *dreset = Host().backward(cell.name, None, hn, cn, *rest)
    assert torch.equal(dh0, hn) and torch.equal(dc0, cn)
    assert not any(t.any() for t in dreset)
