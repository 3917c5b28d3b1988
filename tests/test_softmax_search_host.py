"""The CUDA kernels that search and sample, on the host: see test_softmax_host.py.

They must find what log_prob finds, in float64 with the CPU kernel's rows, and draw its words.
"""

import copy

import pytest
import torch
from exactness import assert_close64
from test_softmax import problem
from test_softmax_host import Host
from test_softmax_score import assert_distributed, peaked
from trees import TREES, trees, zipf

import fusedrnn
from fusedrnn import Hierarchy, softmax_reference
from fusedrnn.reference import state_dtype

ENDLESS = 1 << 40


def operands(layer, x, uniform=None):
    """What the op is given first."""
    weight, bias, rows = layer.weight.detach(), layer.bias, layer.hierarchy.root_rows
    bias = None if bias is None else bias.detach()
    root = softmax_reference.logits(x, weight[:rows], None if bias is None else bias[:rows])
    return {"root": root, "input": x, "weight": weight, "bias": bias, "uniform": uniform}


def searched(layer, x, k=1, *, budget=ENDLESS, scored=3, uniform=None, scale=1.0, order=0):
    """The kernels' log p, words and rows."""
    tree, (N, H) = layer._tree(), x.shape
    sizes = {"N": N, "H": H, "R": layer.hierarchy.rows, "V": len(tree.leaf_rank)}
    sizes |= {"M": len(tree.node_rows) - 1, "k": k, "budget": budget, "scored": scored}
    sizes["widest"] = layer.hierarchy.max_path_rows
    made = {"log_prob": ((N, k), state_dtype(x.dtype))}
    made |= {"words": ((N, k), torch.int64), "rows": ((N,), torch.int64)}
    given = operands(layer, x, uniform) | tree._asdict()
    return tuple(Host(order).call("search", sizes, given, made, scale).values())


def by_cpu(layer, x, k=1, *, budget=ENDLESS, uniform=None, scale=1.0):
    """The same of the CPU's kernel; rows -1 where the budget does not suffice."""
    given = operands(layer, x, uniform).values()
    most = layer.hierarchy.max_path_rows
    return torch.ops.fusedrnn.hierarchical_softmax_search.native(
        *given, *layer._tree(), most, k, budget, scale
    )


def check_best(layer, x, k, found):
    log_prob, words, _ = found
    with torch.no_grad():
        values, indices = softmax_reference.topk(layer.log_prob(x), k)
    assert torch.equal(words, indices)
    assert_close64(log_prob, values, "values")


@trees
@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_best_words(tree, scale):
    layer, x = peaked(tree(), 2, 8, scale)
    for k in {1, min(50, layer.hierarchy.words)}:
        found = searched(layer, x, k)
        check_best(layer, x, k, found)
        assert torch.equal(found[2], by_cpu(layer, x, k)[2])


def test_best_words_of_some_and_many_classes():
    """k above a class's words; a class of more rows than shared memory holds."""
    clusters = [0] * 3 + [1] * 1500 + [2] * 30
    layer, x = peaked(Hierarchy.from_clusters(clusters), 2, 37, 0.2)
    for k in (2, 128):
        check_best(layer, x, k, searched(layer, x, k))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("H", [1, 64, 67])
def test_inputs_of_any_size(H, bias, dtype):
    layer, x = peaked(TREES["sqrt"](), 3, H, 3.0, dtype=dtype, bias=bias)
    log_prob, words, _ = searched(layer, x, 4)
    wide = copy.deepcopy(layer).double()
    every = wide.log_prob(x.double()).detach()
    if dtype == torch.float64:
        check_best(layer, x, 4, (log_prob, words, None))
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if log_prob.dtype == torch.float32 else {}
    torch.testing.assert_close(log_prob.double(), every.gather(1, words), **tolerance)
    torch.testing.assert_close(log_prob.double(), every.topk(4, 1).values, **tolerance)


@pytest.mark.parametrize("name", ["sqrt", "huffman", "mixed", "one-huge"])
def test_a_budget_that_does_not_suffice(name):
    """All words are then scored, of some tokens or of all, in more launches than one."""
    layer, x = peaked(TREES[name](), 7, 8, 0.3)
    x[::2] *= 60
    needed = by_cpu(layer, x, 3)[2] - layer.hierarchy.root_rows
    for budget in (0, int(needed.median())):
        found = searched(layer, x, 3, budget=budget)
        check_best(layer, x, 3, found)
        rows = by_cpu(layer, x, 3, budget=budget)[2]
        assert (rows > 0).any() if budget else (rows < 0).any()
        assert torch.equal(found[2], torch.where(rows < 0, layer.hierarchy.rows, rows))


def test_more_nodes_than_there_is_room_for():
    """Unlikely ones may be left out; a token for which they might matter has all words scored."""
    layer, x = peaked(Hierarchy.from_clusters(torch.arange(2600) // 2), 3, 8, 0.1)
    x[1] *= 2000
    found = searched(layer, x)
    check_best(layer, x, 1, found)
    assert found[2][0] == layer.hierarchy.rows and found[2][1] < layer.hierarchy.rows


def test_what_has_become_hopeless_makes_room():
    """A and B are nodes over 750 sigmoids each; B needs the room that most below A have."""
    words, pairs = torch.arange(3018), torch.arange(1500)
    A, root = 4518, 4520
    parents = torch.cat([torch.where(words < 18, root, 3009 + words // 2), A + pairs // 750])
    tree = Hierarchy.from_parents(torch.cat([parents, torch.tensor([root, root, -1])]))
    layer, x, _ = problem(tree, 2, 3)
    first = tree.tensors()["node_rows"]

    def row(word, level):
        node, branch = tree.path(word)[level]
        return int(first[node]) + branch

    p = torch.full((tree.rows,), 0.04 / 733, dtype=torch.float64)  # of most branches
    p[:18] = 0.001 + 1e-6 * words[:18]
    p[row(18, 0)], p[row(1518, 0)] = 0.6, 0.38
    p[row(18, 1)], p[row(1518, 1)] = 0.8, 0.96
    some = row(18, 1) + torch.arange(100, 740, 40)
    p[some] = 0.01 + 1e-5 * torch.arange(16, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(p.log())
        layer.bias[first[:-1][first.diff() == 1]] = 8.0
    found = searched(layer, x.detach(), 20)
    check_best(layer, x.detach(), 20, found)
    assert torch.equal(found[2], by_cpu(layer, x.detach(), 20)[2])


def test_of_equals_the_first():
    for tree in (TREES["mixed"](), Hierarchy.balanced(8), Hierarchy.from_clusters([0, 1, 0, 1])):
        layer, x, _ = problem(tree, 2, 4)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        for k in range(1, tree.words + 1):
            for budget in (ENDLESS, 0):
                check_best(layer, x.detach(), k, searched(layer, x.detach(), k, budget=budget))


def test_search_is_not_misled():
    """Masked words are the last; where all is NaN, there are still k different words."""
    layer, x = peaked(Hierarchy.from_clusters([0, 0, 1, 1, 2, 2]), 4, 3, 1.0)
    with torch.no_grad():
        layer.bias[1] = -torch.inf  # class 1
    x[2] = torch.nan
    for budget in (ENDLESS, 0):
        log_prob, words, _ = searched(layer, x, 6, budget=budget)
        some = [0, 1, 3]
        assert (words[some, :4] != 2).all() and (words[some, :4] != 3).all()
        assert log_prob[some, 4:].isinf().all() and log_prob[some, :4].isfinite().all()
        assert log_prob[2].isnan().all() and torch.equal(words[2], torch.arange(6))
    layer, x = peaked(TREES["flat-1100"](), 2, 3, 1.0)  # more words than room for nodes
    with torch.no_grad():
        layer.bias[5:] = -torch.inf
    log_prob, words, _ = searched(layer, x, 7)
    assert torch.equal(words.sort(1).values, torch.arange(7).expand(2, 7))
    assert log_prob[:, 5:].isinf().all() and torch.equal(words[:, 5:], torch.tensor([[5, 6]] * 2))


@pytest.mark.parametrize("name", ["sqrt", "huffman", "flat-1100"])
def test_order_of_threads_and_ctas_does_not_matter(name):
    layer, x = peaked(TREES[name](), 3, 35, 2.0, dtype=torch.float32)
    uniform = torch.rand(3, dtype=torch.float64)
    first, *others = [
        (
            *searched(layer, x, 5, order=order),
            *searched(layer, x, 5, budget=0, order=order),
            *searched(layer, x, uniform=uniform, order=order),
        )
        for order in (0, 1, 77, 4321)
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_more_tokens_than_ctas():
    layer, x = peaked(TREES["mixed"](), 700, 4, 3.0)
    check_best(layer, x, 2, searched(layer, x, 2, budget=5, scored=300))


# Sampling


@trees
def test_same_words_as_the_cpu(tree):
    layer, x = peaked(tree(), 40, 8, 1.0)
    uniform = torch.rand(40, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    for scale in (1.0, 2.5):
        log_prob, words, rows = searched(layer, x, uniform=uniform, scale=scale)
        theirs = by_cpu(layer, x, uniform=uniform, scale=scale)
        assert torch.equal(words, theirs[1]) and torch.equal(rows, theirs[2])
        assert_close64(log_prob, theirs[0], "log p")


@pytest.mark.parametrize("name", ["flat", "mixed", "one-huge"])
def test_samples_have_their_distribution(name):
    layer, x = peaked(TREES[name](), 1, 4, 1.0)
    draws = 2000
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, words, _ = searched(layer, x.expand(draws, -1).contiguous(), uniform=uniform)
    assert_distributed(words[:, 0], layer.log_prob(x)[0].detach())


def test_masked_words_are_never_drawn():
    layer, x = peaked(Hierarchy.classes(zipf(400)), 60, 4, 1.0, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.bias[layer.hierarchy.root_rows :: 2] = -torch.inf
    x[5] = torch.nan
    log_prob, words, _ = searched(layer, x, uniform=torch.rand(60, dtype=torch.float64))
    assert words.min() >= 0 and words.max() < 400
    assert log_prob[5].isnan() and log_prob[[*range(5), *range(6, 60)]].isfinite().all()


def test_no_tokens_and_too_many_words():
    layer, x = peaked(TREES["sqrt"](), 2, 4)
    assert [t.shape for t in searched(layer, x[:0], 2)] == [(0, 2), (0, 2), (0,)]
    with fusedrnn.backend("cpu"), pytest.raises(RuntimeError, match="at most 128 words"):
        searched(layer, x, 129)
