"""What only a GPU can show of output layers: CUDA graphs, many tokens, the same bits twice.

Every test also runs on the CPU, where a "graph" is the function, as in test_gpu.py. The other tests
of output layers run on a GPU too.
"""

import pytest
import torch
from exactness import assert_exact
from test_softmax import gradients, problem
from trees import by_paths, zipf

import fusedrnn
from fusedrnn import Hierarchy, softmax_reference, softmax_score

KINDS = {"two-level": Hierarchy.classes, "huffman": Hierarchy.huffman}


class Graph:
    """Loss and gradients, captured once, replayed on what input and target hold by then."""

    def __init__(self, layer, x, target, device):
        self.layer, self.x, self.target = layer, x, target
        self.graph = None
        if device.type != "cuda":
            return
        side = torch.cuda.Stream()  # as torch.cuda.graphs asks: warm up on a side stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.held = self.work()

    def work(self):
        loss = self.layer(self.x, self.target).loss
        return [loss, *torch.autograd.grad(loss, [self.x, *self.layer.parameters()])]

    def replay(self):
        if self.graph is None:
            return self.work()
        self.graph.replay()
        return self.held


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_capture_and_replay_with_new_targets(make, device):
    """Nothing of the targets reaches the host, so that a graph holds for any of them."""
    layer, x, target = problem(make(zipf(300)), 70, 20, dtype=torch.float32, device=device)
    graph = Graph(layer, x, target, device)
    for turn in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape))
            target.copy_(torch.randint(0, 300, (70,)))
            target[turn::7] = -100
        expected = [t.clone() for t in graph.work()]
        torch.testing.assert_close(graph.replay(), expected)


class Search(Graph):
    """The best words, captured likewise."""

    def work(self):
        return list(self.layer.topk(self.x, 5))


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_searches_are_captured_whoever_needs_all_words(make, device, monkeypatch):
    """Which tokens have all words scored is not known when the graph is made."""
    layer, x, target = problem(make(zipf(300)), 70, 20, dtype=torch.float32, device=device)
    budget = 40 if layer.hierarchy.depth > 2 else 160  # which some tokens keep, and some do not
    monkeypatch.setattr(softmax_score, "_budget", lambda *_: budget)
    x = x.detach()
    graph = Search(layer, x, target, device)
    for turn in range(3):
        x.copy_(torch.randn(x.shape))
        x[torch.arange(70) % 3 != turn] *= 30  # on a CPU, if most search in vain nobody does
        expected = [t.clone() for t in graph.work()]
        torch.testing.assert_close(graph.replay(), expected)
        scored = expected[2] == layer.hierarchy.rows
        assert scored.any() and scored.all() == (fusedrnn._backend.current() == "reference")
        values, words = softmax_reference.topk(layer.log_prob(x), 5)
        torch.testing.assert_close(expected[:2], [values, words])


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_many_tokens_and_words(make, dtype, device):
    layer, x, target = problem(make(zipf(1200)), 700, 40, dtype=dtype, device=device)
    target = target % 80  # tokens of one word, and words without any
    exact, x64, _ = problem(layer.hierarchy, 700, 40, device=device)
    exact.load_state_dict(layer.state_dict())
    x64.data = x.detach().double()
    results = []
    for module, inputs in ((layer, x), (exact, x64)):
        truth = by_paths(layer.hierarchy, inputs, module.weight, module.bias, target)
        results.append([truth, *gradients(truth, module, inputs)])
    torchs, truth = results
    first, again = (
        [output := layer(x, target).output, *gradients(output, layer, x)] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if dtype == torch.float64:
        torch.testing.assert_close(first, truth)
    else:
        assert_exact(first, torchs, truth, dtype, "output and gradients")
