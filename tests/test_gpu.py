"""What only a GPU can show: the CUDA and Triton kernels against float64, CUDA graphs, streams.

Every test also runs on the CPU, so that it cannot fail on the card for a mistake in the test
itself: there a "graph" is the function and a "stream" nothing. Most other test files have these
backends too (conftest.py); this is what a GPU must pass before docs/gpu-status.md may say that a
kernel ran.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from exactness import FLOOR, error
from samples import LAYERS
from sequence_case import (
    CELLS,
    LAUNCHED,
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
from torch.library import opcheck

import fusedrnn
from fusedrnn import ops

BIG = Case(T=33, B=37, H=129)
SOME = slice(None) if torch.cuda.is_available() else slice(None, None, 6)


@pytest.mark.parametrize(("cell", "case"), cases() + around_cases()[SOME])
def test_against_float64(cell, case, device, dtype):
    limit = ops.limits(cell.name, dtype, case.P is not None).get(fusedrnn._backend.current())
    if limit:
        pytest.skip(limit)
    tensors = inputs(cell, case, dtype, device)
    theirs = run(plain, cell, case, tensors, dtype)
    true = truth(cell, case, tensors)
    check(run(ops.sequence, cell, case, tensors, dtype), true, theirs, dtype, cell.name)


@pytest.mark.parametrize("name", CELLS)
def test_many_ctas_and_steps_against_float64(name, device, dtype):
    test_against_float64(CELLS[name], BIG, device, dtype)


@pytest.mark.parametrize("name", (*CELLS, *LAUNCHED) if torch.cuda.is_available() else CELLS)
def test_same_input_same_bits(name, device, dtype):
    if CELLS[name].triton is None and fusedrnn._backend.current() == "triton":
        pytest.skip(f"cell {name!r} has no Triton twin")
    tensors = inputs(CELLS[name], BIG, dtype, device)
    first, *others = (run(ops.sequence, CELLS[name], BIG, tensors, dtype) for _ in range(3))
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("kernel", ["grid", "cluster"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_float32_in_products_of_rounded_numbers(name, kernel, device, monkeypatch):
    """Where torch's switch allows it: the rule with tf32's epsilon, which is that of float16."""
    major = torch.cuda.get_device_capability()[0] if device.type == "cuda" else 9
    if major < 8 or (kernel == "cluster" and major not in (9, 10)):
        pytest.skip(f"no {kernel} kernel on this GPU")
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    case = Case(T=17, B=37, H=129, lengths=(17, 3, 9) * 12 + (1,), reset="given")
    cell, tensors = CELLS[name], inputs(CELLS[name], case, torch.float32, device)
    theirs = run(plain, cell, case, tensors, torch.float32)
    got, true = run(ops.sequence, cell, case, tensors, torch.float32), truth(cell, case, tensors)
    for key in (key for key in got if got[key].numel()):
        bound = 2 * error(theirs[key], true[key]) + FLOOR * torch.finfo(torch.float16).eps
        assert error(got[key], true[key]) <= bound, key


class Graph:
    """Forward and backward of a layer, captured once, replayed on what its input holds by then."""

    def __init__(self, layer, x, device):
        self.layer, self.x = layer, x
        self.leaves = [x, *layer.parameters()]
        self.graph = None
        if device.type != "cuda":
            return
        side = torch.cuda.Stream()  # as torch.cuda.graphs asks: warm up on a side stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.held = self.work()

    def work(self):
        y, _ = self.layer(self.x)
        return [y, *torch.autograd.grad(y.square().sum(), self.leaves)]

    def replay(self):
        if self.graph is None:
            return self.work()
        self.graph.replay()
        return self.held


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_capture_and_replay(name, bidirectional, device):
    _, ours, options = LAYERS[name]
    layer = ours(7, 33, 2, bidirectional=bidirectional, **options, device=device)
    x = torch.randn(5, 3, 7, device=device, requires_grad=True)
    graph = Graph(layer, x, device)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(5, 3, 7))
        expected = [t.clone() for t in graph.work()]
        # Not bit for bit: cuBLAS may choose another kernel for the x-projection under capture.
        torch.testing.assert_close(graph.replay(), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_layers_that_take_turns(name, device, monkeypatch):
    """Streams of their own, forward and backward, captured and replayed: as one after the other."""
    _, ours, options = LAYERS[name]
    layer = ours(7, 33, 3, **options, device=device)
    x = torch.randn(48, 3, 7, device=device, requires_grad=True)
    monkeypatch.setenv("FUSEDRNN_PIECES", "3")
    graph = Graph(layer, x, device)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(48, 3, 7))
        monkeypatch.setenv("FUSEDRNN_PIECES", "1")
        expected = [t.clone() for t in graph.work()]
        monkeypatch.setenv("FUSEDRNN_PIECES", "3")
        torch.testing.assert_close(graph.work(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graph.replay(), expected, rtol=1e-4, atol=1e-4)


class Loop:
    """One layer's loop over time as ``Graph`` takes layers: no product of another library's."""

    def __init__(self, cell, case, device, dtype):
        tensors = inputs(cell, case, dtype, device)
        self.cell, (self.x, *self.rest) = cell, arguments(case, tensors)

    def parameters(self):
        return []

    def __call__(self, x):
        y, *_ = ops.sequence(self.cell, x, *self.rest)
        return y, None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("kernel", "name"),
    [("stepwise", "lstm"), *(("grid", name) for name in ("lstm", "slstm", "gru_reset_before"))],
)
def test_a_replay_finds_nothing_of_the_one_before(kernel, name, kind, device, monkeypatch):
    """Bit for bit: CTAs of the grid kernel wait for what each replay fills anew."""
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the grid kernel begins with sm_80")
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
    loop = Loop(CELLS[name], Case(T=9, B=11, H=136, directions=2), device, kind)
    x = loop.x.clone().requires_grad_()
    graph = Graph(loop, x, device)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape))
        expected = [t.clone() for t in graph.work()]
        assert all(torch.equal(a, b) for a, b in zip(graph.replay(), expected, strict=True))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("H", [129, 136])
def test_inference_is_training_in_the_grid_kernel(H, kind, device, monkeypatch):
    """Bit for bit: operands of a second product are among what is saved, or in the workspace."""
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the grid kernel begins with sm_80")
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "grid")
    loop = Loop(CELLS["gru_reset_before"], Case(T=9, B=11, H=H, directions=2), device, kind)
    y, _ = loop(loop.x)
    training, _ = loop(loop.x.clone().requires_grad_())
    assert torch.equal(y, training)


@pytest.mark.parametrize("name", CELLS)
def test_two_streams_at_once(name, device):
    """Each call's workspace and order belong to the stream that is current."""
    cell, on_gpu = CELLS[name], device.type == "cuda"
    calls = [
        arguments(case, inputs(cell, case, torch.float32, device))
        for case in (BIG, Case(T=40, B=20, H=65))
    ]
    alone = [ops.sequence(cell, *call) for call in calls]
    streams = [torch.cuda.Stream() if on_gpu else None for _ in calls]
    for stream in streams:
        if on_gpu:
            stream.wait_stream(torch.cuda.current_stream())
    results = [[], []]
    for _ in range(5):
        for stream, call, into in zip(streams, calls, results, strict=True):
            with torch.cuda.stream(stream) if on_gpu else nullcontext():
                into.append(ops.sequence(cell, *call))
    if on_gpu:
        torch.cuda.synchronize()
    for once, often in zip(alone, results, strict=True):
        for again in often:
            assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def overload(backend):
    """Which overload of the ops a backend has; the reference has none."""
    return {"cpu": "native", "cuda": "native", "triton": "triton"}.get(backend)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(name, ragged, device):
    kind = overload(fusedrnn._backend.current())
    if kind is None:
        pytest.skip("the reference backend is no op")
    forward = getattr(torch.ops.fusedrnn.sequence_forward, kind)
    backward = getattr(torch.ops.fusedrnn.sequence_backward, kind)
    P = 2 if name == "lstm" else None
    case = Case(4, 2, 3, P)
    if ragged:
        case = replace(case, directions=2, lengths=(2, 4), reset="given")
    given = native(case, inputs(CELLS[name], case, torch.float32, device))
    arguments = (name, *given, True)
    opcheck(forward, arguments)
    y, hn, cn, saved, kept, _ = forward(*arguments)
    _, W, _, R, V, seed, h0, c0, *spans = given
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, kept)
    opcheck(backward, (name, *map(torch.randn_like, (y, hn, cn)), *rest))
    opcheck(backward, (name, torch.randn_like(y), None, None, *rest))


@pytest.mark.parametrize("name", LAYERS)
def test_compile_equals_eager(name, device):
    _, ours, options = LAYERS[name]
    layer = ours(5, 9, bidirectional=True, **options, device=device)
    x = torch.randn(4, 3, 5, device=device)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for module in (layer, compiled):
        y, _ = module(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)
