"""Scoring all words and candidates, exact search, sampling, tied weights."""

import copy

import pytest
import torch
from exactness import assert_close64, assert_exact
from test_softmax import WHERE, gradients, needs_native, problem
from torch import nn
from torch.library import opcheck
from trees import TREES, mixed, trees, zipf

import fusedrnn
from fusedrnn import HierarchicalSoftmax, Hierarchy, softmax_reference, softmax_score
from fusedrnn.softmax_score import log_prob_of_logits


@pytest.fixture(params=WHERE)
def place(request):
    """A device, with a backend that serves the softmax there in force."""
    name, device = request.param
    with fusedrnn.backend(name):
        yield torch.device(device)


def peaked(tree, N, H, scale=6.0, **options):
    """A layer and an input that leave few words likely."""
    layer, x, _ = problem(tree, N, H, **options)
    return layer, (scale * x).detach()


# All words, and candidates


@needs_native
@trees
def test_kernel_of_all_words(tree):
    """Values and gradients against plain PyTorch, also at logits of 1e4."""
    layer, x, _ = problem(tree(), 9, 5)
    for inputs in (x, (1e4 * x).detach().requires_grad_()):
        results = []
        for name in ("cpu", "reference"):
            with fusedrnn.backend(name):
                every = layer.log_prob(inputs)
                results.append((every, *gradients(every, layer, inputs)))
        assert_close64(*results, "log_prob and gradients")


@needs_native
@trees
def test_error_rule_of_all_words(tree):
    layer, x, _ = problem(tree(), 33, 24, dtype=torch.float32)
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    values = []
    for name, module, inputs in [
        ("cpu", layer, x),
        ("reference", layer, x),
        ("reference", exact, x64),
    ]:
        with fusedrnn.backend(name):
            every = module.log_prob(inputs)
            values.append((every, *gradients(every, module, inputs)))
    assert_exact(*values, torch.float32, "log_prob and gradients")


@needs_native
@pytest.mark.parametrize("name", ["flat", "huffman", "chain", "singletons", "mixed"])
def test_gradcheck_of_all_words(name):
    layer, _, _ = problem(TREES[name](), 1, 1)
    depth = layer.hierarchy.depth
    logits = torch.randn(2, layer.hierarchy.rows, dtype=torch.float64, requires_grad=True)
    with fusedrnn.backend("cpu"):
        assert torch.autograd.gradcheck(
            lambda z: log_prob_of_logits(z, layer._tree(), depth), (logits,)
        )


@trees
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "own"])
def test_candidates(tree, alike, place):
    layer, x, _ = problem(tree(), 6, 5, device=place)
    V = layer.hierarchy.words
    words = torch.randint(V, (7,) if alike else (6, 7), device=place)
    ours = layer.log_prob(x, words)
    truth = layer.log_prob(x).gather(1, words.expand(6, 7))
    assert_close64(ours, truth, "log_prob")
    assert_close64(gradients(ours, layer, x), gradients(truth, layer, x), "gradients")
    shaped = layer.log_prob(x.view(2, 3, 5), words if alike else words.view(2, 3, 7))
    assert torch.equal(shaped, ours.view(2, 3, 7))
    assert layer.log_prob(x[0], words if alike else words[0]).shape == (7,)


def test_bad_candidates(place):
    layer, x, _ = problem(mixed(), 6, 5, device=place)
    words = torch.zeros(6, 2, dtype=torch.int64, device=place)
    for call, error, message in [
        (lambda: layer.log_prob(x, words[:5]), ValueError, r"candidates has shape \(5, 2\)"),
        (lambda: layer.log_prob(x, words[0, 0]), ValueError, r"candidates has shape \(\)"),
        (lambda: layer.log_prob(x, words.int()), TypeError, r"candidates is torch\.int32"),
    ]:
        with pytest.raises(error, match=message):
            call()
    if place.type == "cpu":
        for bad in (6, -1, -100):
            with pytest.raises(IndexError, match=rf"candidates holds {bad}; .* 0\.\.5"):
                layer.log_prob(x, words + bad)


# Search


@pytest.fixture(params=[None, 0, 30], ids=["search", "score", "both"])
def budget(request, monkeypatch):
    """How soon a search gives up, and all words are scored."""
    if request.param is not None:
        monkeypatch.setattr(softmax_score, "_budget", lambda *_: request.param)


@trees
@pytest.mark.parametrize("scale", [0.3, 6.0, 60.0])
def test_topk_is_that_of_log_prob(tree, scale, place, budget):
    layer, x = peaked(tree(), 20, 8, scale, device=place)
    V, R = layer.hierarchy.words, layer.hierarchy.rows
    for k in {1, 2, min(10, V), V}:
        log_prob, words, rows = layer.topk(x, k)
        values, indices = softmax_reference.topk(layer.log_prob(x), k)
        assert_close64(log_prob, values, "values")
        assert log_prob.shape == words.shape == (20, k) and rows.shape == (20,)
        assert torch.equal(words, indices)
        assert (rows <= R).all() and (rows >= layer.hierarchy.root_rows).all()
        assert k < V or (rows == R).all()


@needs_native
@pytest.mark.parametrize("easy", [3, 5], ids=["most in vain", "few in vain"])
def test_the_first_tokens_decide_for_the_others(easy, monkeypatch):
    """Whether they try to search; each is exact either way."""
    monkeypatch.setattr(softmax_score, "_budget", lambda *_: 600)
    layer, x = peaked(Hierarchy.classes(zipf(2000)), 8 + 30, 16, 1.0)
    x[:easy] *= 50
    x[8:] *= 50
    found = layer.topk(x, 5)
    few = found.rows < layer.hierarchy.rows
    assert few[:easy].all() and not few[easy:8].any()
    assert few[8:].all() if easy > 4 else not few[8:].any()
    values, words = softmax_reference.topk(layer.log_prob(x), 5)
    assert torch.equal(found.words, words)
    assert_close64(found.log_prob, values, "values")


@needs_native
def test_what_a_search_may_cost():
    """Of tokens that would need most rows all words are scored; others have their few rows."""
    layer, x = peaked(Hierarchy.classes(zipf(60_000)), 6, 16, 1.0, dtype=torch.float32)
    x[3:] *= 20
    found = layer.topk(x, 10)
    all_rows = layer.hierarchy.rows
    limit = softmax_score._budget(all_rows, 6) + layer.hierarchy.root_rows
    assert (found.rows[:3] == all_rows).all() and (found.rows[3:] <= limit).all()
    values, words = softmax_reference.topk(layer.log_prob(x), 10)
    assert torch.equal(found.words, words)
    torch.testing.assert_close(found.log_prob, values)
    assert softmax_score._budget(200, 1) > 200  # never of small vocabularies


@needs_native
def test_few_rows_are_enough_for_a_confident_model():
    counts = zipf(20_000)
    layer, x = peaked(Hierarchy.classes(counts), 16, 32, 12.0, dtype=torch.float32)
    rows = layer.topk(x, 10).rows
    assert rows.double().mean() < layer.hierarchy.rows / 8
    with fusedrnn.backend("reference"):
        assert (layer.topk(x, 10).rows == layer.hierarchy.rows).all()
    tree, x = peaked(Hierarchy.huffman(counts), 4, 32, 12.0, dtype=torch.float32)
    assert tree.topk(x, 10).rows.double().mean() < tree.hierarchy.rows / 8


def test_of_equals_the_first(place, budget):
    for tree in (mixed(), Hierarchy.balanced(8), Hierarchy.from_clusters([0, 1, 0, 1])):
        layer, x, _ = problem(tree, 3, 4, device=place)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        every = layer.log_prob(x)
        for k in range(1, tree.words + 1):
            values, words = softmax_reference.topk(every, k)
            found = layer.topk(x, k)
            assert torch.equal(found.words, words)
            assert_close64(found.log_prob, values, "values")


def test_search_is_not_misled(place, budget):
    """Masked words are the last; where all is NaN, there are still k different words."""
    layer, x, _ = problem(Hierarchy.from_clusters([0, 0, 1, 1, 2, 2]), 4, 3, device=place)
    with torch.no_grad():
        layer.bias[1] = -torch.inf  # class 1
    found = layer.topk(x, 6)
    assert (found.words[:, :4] != 2).all() and (found.words[:, :4] != 3).all()
    assert found.log_prob[:, 4:].isinf().all()
    x = x.detach().index_fill(0, torch.tensor([2], device=place), torch.nan)
    found = layer.topk(x, 3)
    assert found.log_prob[2].isnan().all() and len(found.words[2].unique()) == 3
    assert found.log_prob[[0, 1, 3]].isfinite().all()


def test_search_in_low_precision(dtype, place):
    layer, x = peaked(TREES["sqrt"](), 20, 16, dtype=dtype, device=place)
    found = layer.topk(x, 4)
    assert found.log_prob.dtype == dtype
    wide = copy.deepcopy(layer).to(torch.promote_types(dtype, torch.float32))
    truth = wide.topk(x.to(wide.weight.dtype), 4)
    assert torch.equal(found.words, truth.words)
    assert torch.equal(found.log_prob, truth.log_prob.to(dtype))


def test_bad_k(place):
    layer, x, _ = problem(mixed(), 2, 4, device=place)
    for k in (0, 7, True, 1.0, None):
        with pytest.raises(ValueError, match=r"k is .*; .* must be an int in 1\.\.6"):
            layer.topk(x, k)


# Sampling


def assert_distributed(words, log_prob):
    """Chi-square over all words; a right one is refused once in 10^6 seeds."""
    expected = len(words) * log_prob.exp()
    seen = words.bincount(minlength=len(log_prob)).double()
    rare = expected < 5  # together they are one more kind
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    kinds = expected > 0
    statistic = ((seen - expected).square() / expected)[kinds].sum()
    freedom = torch.tensor(int(kinds.sum()) - 1, dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, statistic.cpu() / 2) > 1e-6


@pytest.mark.parametrize(
    ("temperature", "per_level"), [(1.0, False), (0.5, False), (0.5, True), (3.0, True)]
)
@pytest.mark.parametrize("name", ["flat", "sqrt", "huffman", "one-huge", "mixed"])
def test_samples_have_their_distribution(name, temperature, per_level, place):
    layer, x, _ = problem(TREES[name](), 1, 8, device=place)
    # The reference scores all words for each of them.
    draws = 5_000 if fusedrnn._backend.current() == "reference" else 20_000
    random = torch.Generator(place).manual_seed(5)
    words, log_prob = layer.sample(
        x.expand(draws, -1), temperature, per_level=per_level, generator=random
    )
    scaled = copy.deepcopy(layer)
    with torch.no_grad():
        if per_level:
            scaled.weight /= temperature
            scaled.bias /= temperature
    every = scaled.log_prob(x)[0].detach()
    if not per_level:
        every = (every / temperature).log_softmax(0)
    assert_close64(log_prob, every[words], "log_prob")
    assert_distributed(words, every)


def test_samples_are_reproducible(place):
    layer, x, _ = problem(TREES["sqrt"](), 50, 8, device=place)
    drawn = [layer.sample(x, generator=torch.Generator(place).manual_seed(1)) for _ in range(2)]
    assert torch.equal(drawn[0].words, drawn[1].words)
    assert not torch.equal(drawn[0].words, layer.sample(x).words)
    shaped = layer.sample(x.view(2, 25, 8), generator=torch.Generator(place).manual_seed(1))
    assert torch.equal(shaped.words.flatten(), drawn[0].words)


@needs_native
@trees
def test_kernel_and_reference_draw_the_same_words(tree):
    layer, x, _ = problem(tree(), 200, 8)
    drawn = []
    for name in ("cpu", "reference"):
        with fusedrnn.backend(name):
            drawn.append(layer.sample(x, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(drawn[0].words, drawn[1].words)
    assert_close64(drawn[0].log_prob, drawn[1].log_prob, "log_prob")


def test_masked_words_are_never_drawn(place):
    layer, x, _ = problem(Hierarchy.classes(zipf(40)), 500, 4, device=place)
    masked = torch.zeros(layer.hierarchy.rows, dtype=torch.bool)
    masked[layer.hierarchy.root_rows :: 2] = True
    with torch.no_grad():
        layer.bias[masked] = -torch.inf
    words = layer.sample(x).words
    assert layer.log_prob(x).gather(1, words[:, None]).isfinite().all()


def test_bad_temperature(place):
    layer, x, _ = problem(mixed(), 2, 4, device=place)
    for temperature in (0.0, -1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="temperature is"):
            layer.sample(x, temperature)


@needs_native
def test_no_tokens():
    layer, x, _ = problem(mixed(), 0, 4)
    assert layer.topk(x, 2).words.shape == layer.topk(x, 2).log_prob.shape == (0, 2)
    assert layer.sample(x).words.shape == layer.sample(x, 0.5).words.shape == (0,)
    assert layer.log_prob(x, torch.tensor([1, 2])).shape == (0, 2)


@needs_native
@pytest.mark.parametrize("name", ["flat", "mixed", "huffman"])
def test_opcheck(name):
    layer, x, _ = problem(TREES[name](), 5, 4)
    tree, ops = layer._tree(), torch.ops.fusedrnn
    x, weight, bias = (t.detach() for t in (x, layer.weight, layer.bias))
    z = torch.randn(5, layer.hierarchy.rows, dtype=torch.float64)
    opcheck(ops.hierarchical_log_softmax.native, (z, *tree))
    grad = torch.randn(5, layer.hierarchy.words, dtype=torch.float64)
    opcheck(ops.hierarchical_log_softmax_backward.native, (grad, z, *tree))
    root = z[:, : layer.hierarchy.root_rows].contiguous()
    for uniform, k in [(None, 2), (torch.rand(5, dtype=torch.float64), 1)]:
        opcheck(
            ops.hierarchical_softmax_search.native,
            (root, x, weight, bias, uniform, *tree, layer.hierarchy.max_path_rows, k, 99, 1.0),
        )


@needs_native
def test_one_graph():
    torch.compiler.reset()
    layer, x, _ = problem(TREES["sqrt"](), 9, 4, dtype=torch.float32)
    for method in (layer.log_prob, layer.predict, lambda x: layer.topk(x, 3)):
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), method(x))
    words = torch.tensor([1, 5])
    compiled = torch.compile(layer.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, words), layer.log_prob(x, words))


@needs_native
def test_same_bits_whatever_the_threads():
    layer, x = peaked(TREES["sqrt"](), 40, 24, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((layer.topk(x, 5), layer.log_prob(x, torch.arange(9))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[1], results[0][1])
        assert all(torch.equal(a, b) for a, b in zip(other[0], results[0][0], strict=True))


# Tied weights


def test_tied_weights(place):
    embedding = nn.Embedding(9, 4, device=place)
    layer = HierarchicalSoftmax(4, Hierarchy.flat(9), device=place)
    layer.tie_weights(embedding)
    assert layer.weight is embedding.weight
    loss = layer(embedding(torch.tensor([1, 2], device=place)), torch.tensor([3, 4]).to(place)).loss
    (grad,) = torch.autograd.grad(loss, embedding.weight)
    assert grad.any(1).all()  # all words by the softmax, 1 and 2 by the input too
    state = layer.state_dict()
    assert torch.equal(state["weight"], embedding.weight)


def test_weights_that_cannot_be_tied():
    flat = HierarchicalSoftmax(4, Hierarchy.flat(9))
    for layer, embedding, error, message in [
        (flat, nn.Linear(4, 9), TypeError, "embedding is Linear"),
        (flat, nn.Embedding(8, 4), ValueError, r"embedding.weight is \(8, 4\).* \(9, 4\)"),
        (flat, nn.Embedding(9, 4).double(), ValueError, "float64"),
        (
            HierarchicalSoftmax(4, Hierarchy.classes([1] * 9, 3)),
            nn.Embedding(9, 4),
            ValueError,
            r"use fusedrnn\.Hierarchy\.flat\(9\)",
        ),
        (
            HierarchicalSoftmax(4, Hierarchy.classes([1, 2, 3], 1)),
            nn.Embedding(3, 4),
            ValueError,
            "in the order of ids",
        ),
    ]:
        with pytest.raises(error, match=message):
            layer.tie_weights(embedding)
