"""The numbers of the softmax's Triton kernels: run by test_triton_softmax.py, as triton_numbers.py.

Not collected by itself: the interpreter must be chosen before triton is imported.
"""

import copy

import pytest
import torch
from exactness import assert_close64
from test_softmax import check_exact, gradients, problem
from torch.library import opcheck
from trees import TREES, by_paths, fibonacci, zipf
from triton_numbers import DEVICE, one_thread, round_to_nearest  # noqa: F401

import fusedrnn
from fusedrnn import Hierarchy, softmax_reference
from fusedrnn.softmax_ops import PLAIN, Training, target_log_prob
from fusedrnn.softmax_score import log_prob_of_logits
from fusedrnn.triton import softmax_whole

pytestmark = pytest.mark.usefixtures("one_thread", "round_to_nearest")


def kernels(layer, x, target, training=PLAIN):
    tree = layer.hierarchy
    with fusedrnn.backend("triton"):
        return target_log_prob(
            x, layer.weight, layer.bias, target, layer._tree(), tree.max_path_rows, tree.depth,
            training=training,
        )  # fmt: skip


def by_torch(layer, x, target):
    return [by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sqrt", "mixed"])
def test_error_rule(name, dtype):
    layer, x, target = problem(TREES[name](), 35, 33, dtype=dtype, device=DEVICE)
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    results = []
    for run, module, inputs in (
        (kernels, layer, x),
        (by_torch, layer, x),
        (by_torch, exact, x64),
    ):
        output = run(module, inputs, target)[0]
        results.append((output.to(module.weight.dtype), gradients(output, module, inputs)))
    check_exact(*results, dtype, "output and gradients")


@pytest.mark.parametrize("name", ["flat", "huffman-2", "huffman", "singletons", "mixed"])
def test_training_options_and_ignored_tokens(name):
    layer, x, target = problem(TREES[name](), 37, 5, device=DEVICE)
    target[torch.arange(37) % 4 == 1] = -100
    for training in (PLAIN, Training(-100, 0.2, 1e-2)):
        ours = kernels(layer, x, target, training)
        theirs = softmax_reference.target_log_prob(
            x, layer.weight, layer.bias, target, layer._tree(), layer.hierarchy.depth, *training
        )
        assert_close64(ours, theirs, "log p and objective")
        of = [gradients(objective, layer, x) for _, objective in (ours, theirs)]
        assert_close64(*of, "gradients")
        assert not of[0][0][target < 0].any() and not ours[0][target < 0].any()


@pytest.mark.parametrize(
    "tree", [lambda: Hierarchy.classes(zipf(400)), lambda: Hierarchy.flat(300)]
)
def test_many_words_without_bias(tree):
    layer, x, target = problem(tree(), 40, 66, bias=False, device=DEVICE)
    output, theirs = kernels(layer, x, target)[0], by_torch(layer, x, target)[0]
    assert_close64(output, theirs, "output")
    assert_close64(gradients(output, layer, x), gradients(theirs, layer, x), "gradients")


@pytest.mark.parametrize("name", ["flat", "huffman", "mixed"])
@pytest.mark.parametrize("N", [0, 5])
def test_no_tokens_or_all_ignored(name, N):
    layer, x, target = problem(TREES[name](), N, 5, device=DEVICE)
    output, _ = kernels(layer, x, torch.full_like(target, -100))
    assert output.shape == (N,) and not output.any()
    for grad in torch.autograd.grad(output.sum(), [x, *layer.parameters()]):
        assert not grad.any()


def test_large_logits_and_masked_words():
    layer, x, target = problem(Hierarchy.from_clusters([0] * 6 + [1] * 9), 33, 4, device=DEVICE)
    with torch.no_grad():
        layer.bias[2:8:2] = -torch.inf  # words of the first class that cannot be
        x *= 1e4
    target = target.where((target > 5) | (target % 2 == 1), 6)
    ours, theirs = kernels(layer, x, target)[0], by_torch(layer, x, target)[0]
    assert ours.isfinite().all()
    assert_close64(ours, theirs, "output")
    assert_close64(gradients(ours, layer, x), gradients(theirs, layer, x), "gradients")


def test_same_bits_and_only_the_gradients_that_are_needed():
    layer, x, target = problem(TREES["mixed"](), 33, 6, dtype=torch.float32, device=DEVICE)
    leaves = [x, layer.weight, layer.bias]
    output, _ = kernels(layer, x, target)
    every = torch.autograd.grad(output.sum(), leaves)
    for leaf, grad in zip(leaves, every, strict=True):
        for other in leaves:
            other.requires_grad_(other is leaf)
        again, _ = kernels(layer, x, target)
        assert torch.equal(again, output)
        (alone,) = torch.autograd.grad(again.sum(), [leaf])
        assert torch.equal(alone, grad)
    with torch.no_grad():  # nothing is kept
        assert torch.equal(kernels(layer, x, target)[0], output)


@pytest.mark.parametrize(
    ("name", "dtype"), [("huffman", torch.float32), ("frequency", torch.bfloat16)]
)
def test_sparse_gradients_are_rows_of_the_dense_ones(name, dtype):
    layer, x, target = problem(TREES[name](), 33, 3, dtype=dtype, device=DEVICE)
    target %= 4
    sparse = copy.deepcopy(layer)
    sparse.sparse_grad = True
    with fusedrnn.backend("triton"):
        dense = torch.autograd.grad(layer(x, target).loss, list(layer.parameters()))
        ours = torch.autograd.grad(sparse(x, target).loss, list(sparse.parameters()))
    for full, some in zip(dense, ours, strict=True):
        assert some.is_coalesced() and 0 < len(some.values()) < len(full)
        assert torch.equal(some.to_dense(), full)


# All words

ONES = {name: TREES[name] for name in ("flat", "sqrt", "chain", "singletons", "one-huge", "mixed")}
ONES |= {
    "huffman": lambda: Hierarchy.huffman(zipf(700)),  # more nodes than are summed up together
    "deep": lambda: Hierarchy.huffman(fibonacci(80)),
    "7-ary": lambda: Hierarchy.balanced(900, 7),
}


@pytest.fixture
def two_programs(monkeypatch):
    """More tokens than programs: scratch memory is used again."""
    monkeypatch.setattr(softmax_whole, "_programs", lambda N, M: min(N, 2))


def of_all_words(layer, logits):
    every = log_prob_of_logits(logits, layer._tree(), layer.hierarchy.depth)
    grad = torch.randn(every.shape, generator=torch.Generator().manual_seed(1)).to(every)
    return every, *torch.autograd.grad(every, logits, grad)


IN_FLOAT64 = [(name, torch.float64) for name in ONES]


@pytest.mark.parametrize(
    ("name", "dtype"), [*IN_FLOAT64, ("sqrt", torch.float32), ("7-ary", torch.float32)]
)
def test_all_words(name, dtype, two_programs):
    layer, _, _ = problem(ONES[name](), 1, 1, device=DEVICE)
    z = torch.randn(3, layer.hierarchy.rows, dtype=dtype, device=DEVICE, requires_grad=True)
    with fusedrnn.backend("triton"):
        ours = of_all_words(layer, z)
        assert ours[0].grad_fn.name() == "LogSoftmaxBackward"  # the kernels', not the reference's
    with fusedrnn.backend("reference"):
        theirs = of_all_words(layer, z)
        truth = of_all_words(layer, z.detach().double().requires_grad_())
    check_exact(ours, theirs, truth, dtype, "log-probabilities and gradient")


def test_all_words_of_a_layer():
    """Large logits and masked words too; no tokens."""
    layer, x, _ = problem(Hierarchy.from_clusters([0] * 6 + [1] * 9 + [2]), 4, 5, device=DEVICE)
    with torch.no_grad():
        layer.bias[4:8:2] = -torch.inf
    for inputs in (x, (1e4 * x).detach().requires_grad_()):
        results = []
        for name in ("triton", "reference"):
            with fusedrnn.backend(name):
                every = layer.log_prob(inputs)
                some = every[:, 6:].logsumexp(1)
                results.append((every, *gradients(some, layer, inputs)))
        (ours, *_), (theirs, *_) = results
        assert torch.equal(ours == -torch.inf, theirs == -torch.inf)
        results = [(r[0].exp(), *r[1:]) for r in results]
        assert_close64(*results, "probabilities and gradients")
    with fusedrnn.backend("triton"):
        assert layer.log_prob(x[:0]).shape == (0, 16)


def test_opcheck_of_all_words():
    layer, _, _ = problem(TREES["mixed"](), 1, 1, device=DEVICE)
    z, ops = torch.randn(3, 7, device=DEVICE), torch.ops.fusedrnn
    quick = ("test_schema", "test_faketensor")
    opcheck(ops.hierarchical_log_softmax.triton, (z, *layer._tree()), test_utils=quick)
    given = (torch.randn(3, 6, device=DEVICE), z, *layer._tree())
    opcheck(ops.hierarchical_log_softmax_backward.triton, given, test_utils=quick)
    with pytest.raises(RuntimeError, match=r"grad has shape \[3, 5\], must be \[3, 6\]"):
        ops.hierarchical_log_softmax_backward.triton(given[0][:, :5], *given[1:])


def test_opcheck():
    layer, x, target = problem(Hierarchy.classes([1] * 20, 5, "equal"), 4, 5, device=DEVICE)
    ops, tensors = torch.ops.fusedrnn, [t.detach() for t in (x, layer.weight, layer.bias)]
    rest, sizes = (target, *layer._tree()), (layer.hierarchy.max_path_rows, 2)
    forward = ops.hierarchical_softmax_forward.triton
    opcheck(forward, (*tensors, *rest, *sizes, -100, 0.1, 1e-3, True))
    output, _, saved, plan = forward(*tensors, *rest, *sizes, -100, 0.0, 0.0, True)
    given = (torch.randn_like(output), *tensors[:2], *rest, saved, plan, -100)
    opcheck(ops.hierarchical_softmax_backward.triton, (*given, True, False, True, False, None))


def test_wrong_arguments():
    layer, x, target = problem(TREES["mixed"](), 6, 4, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"weight has shape \[7, 4\], must be \[7, 3\]"):
        kernels(layer, x[:, :3].contiguous(), target)
    with pytest.raises(RuntimeError, match=r"target is torch.int32 on .*, must be torch.int64"):
        kernels(layer, x, target.int())
    with pytest.raises(RuntimeError, match="index 6 is out of bounds|CUDA"):
        kernels(layer, x, target + 1)
