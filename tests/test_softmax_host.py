"""The CUDA softmax kernels on the host: csrc/testing/cuda_host.h makes each CUDA thread a fiber.

Shows that the plan, indices, tiles, barriers and equations are right; nothing of a real GPU.
"""

import copy

import pytest
import torch
from exactness import assert_close64
from test_cuda_host import GUARD, guarded
from test_softmax import check_exact, gradients, problem
from trees import TREES, by_paths, fibonacci, trees, zipf

from fusedrnn import Hierarchy, softmax_ops, softmax_reference
from fusedrnn.reference import state_dtype
from fusedrnn.softmax_ops import PLAIN, TargetLogProb, Training, plan_size

host = pytest.importorskip(
    "fusedrnn.fusedrnn_softmax_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)

TREE = ("leaf_rank", "node_rows", "node_branches", "branch_leaf", "branch_node")


class Host:
    """Stands in for the native ops: same arguments, same results, from the kernels on the host."""

    def __init__(self, order: int = 0) -> None:
        self.order = order

    def __call__(self, direction, backend):
        assert backend == "cuda"
        return {"forward": self.forward, "backward": self.backward}[direction]

    def call(self, name, sizes, given, made, *options):
        """Launch on ``given``, within guards new tensors of the sizes ``made``."""
        buffers, views = {}, {k: t.contiguous() for k, t in given.items() if t is not None}
        for key, (size, kind) in made.items():
            if not kind.is_floating_point:
                views[key] = torch.full(size, -7, dtype=kind)
            else:
                views[key], buffers[key] = guarded(size, kind)
        dtype = str(given["input"].dtype).removeprefix("torch.")
        pointers = {key: view.data_ptr() for key, view in views.items()}
        wrong = getattr(host, name)(dtype, sizes, pointers, *options, self.order)
        if wrong is not None:
            raise RuntimeError(wrong)
        for key, buffer in buffers.items():
            outside = torch.cat([buffer[:GUARD], buffer[len(buffer) - GUARD :]])
            assert outside.isnan().all(), f"{key}: written out of bounds"
        return {key: views[key].clone() for key in made}

    def forward(
        self, input, weight, bias, target, *rest
    ):  # fmt: skip
        tree, (path_rows, depth, ignored, smoothing, z_loss, save) = rest[:5], rest[5:]
        (N, H), R, M = input.shape, weight.shape[0], len(tree[1]) - 1
        sizes = {"N": N, "H": H, "R": R, "V": len(tree[0]), "M": M, "depth": depth}
        sizes |= {"path_rows": path_rows, "ignored": ignored}
        wide, plain = state_dtype(input.dtype), smoothing == 0 and z_loss == 0
        made = {"output": ((N,), wide), "saved": ((N, path_rows), wide)}
        made["plan"] = ((plan_size(N, M, depth),), torch.int32)
        if not plain:
            made["objective"] = ((N,), wide)
        given = {"input": input, "weight": weight, "bias": bias, "target": target}
        given |= dict(zip(TREE, tree, strict=True))
        got = self.call("forward", sizes, given, made, smoothing, z_loss)
        empty = input.new_empty(0)
        names = ("output", "objective", "saved", "plan")
        return tuple(got.get(name, empty) for name in names if save or name in names[:2])

    def backward(self, grad, input, weight, target, *rest):
        tree, (saved, plan, _, *needs, sparse, met) = rest[:5], rest[5:]
        assert sparse == (met is not None)
        (N, H), R, M = input.shape, weight.shape[0], len(tree[1]) - 1
        depth = 1 if N == 0 else (len(plan) - 3 * M - 2 * N) // (3 * N)
        sizes = {"N": N, "H": H, "R": R, "V": len(tree[0]), "M": M, "depth": depth}
        sizes |= {"path_rows": saved.shape[1], "rows": len(met) if sparse else R}
        shapes = {"dinput": (N, H), "dweight": (sizes["rows"], H), "dbias": (sizes["rows"],)}
        made = {
            k: (s, input.dtype) for (k, s), need in zip(shapes.items(), needs, strict=True) if need
        }
        given = {"grad": grad, "input": input, "weight": weight, "saved": saved, "plan": plan}
        given["rows"] = met
        got = self.call("backward", sizes, given | dict(zip(TREE, tree, strict=True)), made)
        return *(got.get(name) for name in shapes), None


@pytest.fixture
def on_host(monkeypatch):
    def use(order: int = 0) -> None:
        monkeypatch.setattr(softmax_ops, "_op", Host(order))

    use()
    return use


def kernels(layer, x, target, training=PLAIN, sparse=False):
    """log p of the targets, and the objective, by the CUDA kernels wherever the tensors are."""
    tree = layer.hierarchy
    sizes = (tree.max_path_rows, tree.depth)
    found = TargetLogProb.apply(
        "cuda", x, layer.weight, layer.bias, target, *sizes, training, sparse, *layer._tree()
    )
    return (found, found) if training.plain else found


def reference(layer, x, target, training):
    return softmax_reference.target_log_prob(
        x, layer.weight, layer.bias, target, layer._tree(), layer.hierarchy.depth, *training
    )


def by_torch(layer, x, target):
    return [by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)]


@trees
def test_error_rule(on_host, tree, dtype):
    layer, x, target = problem(tree(), 67, 37, dtype=dtype)
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


@trees
def test_training_options_and_ignored_tokens(on_host, tree):
    layer, x, target = problem(tree(), 45, 21)
    target[torch.arange(45) % 4 == 1] = -100
    for training in (PLAIN, Training(-100, 0.1, 0.0), Training(-100, 0.2, 1e-2)):
        ours, theirs = kernels(layer, x, target, training), reference(layer, x, target, training)
        assert_close64(ours, theirs, "log p and objective")
        of = [gradients(objective, layer, x) for _, objective in (ours, theirs)]
        assert_close64(*of, "gradients")
        assert not of[0][0][target < 0].any() and not ours[0][target < 0].any()


@pytest.mark.parametrize("name", ["flat", "huffman", "chain", "mixed"])
def test_ignored_tokens_may_be_anything(on_host, name):
    layer, x, target = problem(TREES[name](), 40, 6)
    ignored = torch.arange(40) % 3 == 1
    with torch.no_grad():
        x[ignored] = torch.nan
    ours, _ = kernels(layer, x, target.where(~ignored, 10**12), Training(10**12))
    short, _ = kernels(layer, x[~ignored], target[~ignored])
    assert torch.equal(ours[~ignored], short) and not ours[ignored].any()
    results = [torch.autograd.grad(o.sum(), [x, *layer.parameters()]) for o in (ours, short)]
    assert_close64(*results, "gradients")
    assert not results[0][0][ignored].any()


@trees
@pytest.mark.parametrize("N", [0, 1, 9])
def test_no_tokens_or_all_ignored(on_host, tree, N):
    layer, x, target = problem(tree(), N, 5)
    output, _ = kernels(layer, x, torch.full_like(target, -100))
    assert output.shape == (N,) and not output.any()
    for grad in torch.autograd.grad(output.sum(), [x, *layer.parameters()]):
        assert not grad.any()


@pytest.mark.parametrize(
    ("tree", "N", "H"),
    [
        (lambda: Hierarchy.classes(zipf(3000)), 600, 9),
        (lambda: Hierarchy.huffman(zipf(3000)), 600, 9),
        (lambda: Hierarchy.huffman(fibonacci(80)), 50, 3),
        (lambda: Hierarchy.flat(5000), 33, 2),
        (lambda: Hierarchy.balanced(2000, 7), 70, 130),
    ],
    ids=["classes", "huffman", "chain", "flat", "7-ary"],
)
def test_many_words(on_host, tree, N, H):
    """Several digits and CTAs of the sort, paths longer than others, many tiles."""
    layer, x, target = problem(tree(), N, H)
    target[::5] = -100
    output, _ = kernels(layer, x, target)
    theirs, _ = reference(layer, x, target, PLAIN)
    assert_close64(output, theirs, "output")
    assert_close64(gradients(output, layer, x), gradients(theirs, layer, x), "gradients")


def test_three_passes_of_the_sort(on_host):
    layer, x, target = problem(Hierarchy.classes(zipf(300_000)), 700, 1)
    with torch.no_grad():
        assert_close64(kernels(layer, x, target)[0], *by_torch(layer, x, target), "output")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sqrt", "huffman", "mixed"])
def test_order_of_threads_and_ctas_does_not_matter(on_host, name, dtype):
    """A missing barrier, or CTAs that read each other's results, would change bits."""
    layer, x, target = problem(TREES[name](), 70, 35, dtype=dtype)
    results = []
    for order in (0, 1, 12345, 999):  # ascending, descending, two random orders
        on_host(order)
        output, objective = kernels(layer, x, target, Training(-100, 0.1, 1e-3))
        results.append([output, objective, *gradients(objective, layer, x)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_order_of_tokens_and_words_does_not_matter_to_the_sums(on_host):
    """Tokens of one word keep their order, so a permutation of words changes no bit."""
    layer, x, target = problem(TREES["sqrt"](), 90, 8, dtype=torch.float32)
    target = target % 7
    first = [kernels(layer, x, target)[0]]
    first += gradients(first[0], layer, x)
    permuted = torch.randperm(101)
    layer.hierarchy_leaf_rank.copy_(layer.hierarchy_leaf_rank[permuted.argsort()])
    again = [kernels(layer, x, permuted[target])[0]]
    again += gradients(again[0], layer, x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["huffman-2", "mixed"])
def test_gradcheck(on_host, name):
    layer, x, target = problem(TREES[name](), 6, 3)
    target[2] = -100
    training, tree = Training(-100, 0.1, 1e-2), layer.hierarchy
    fixed = (target, tree.max_path_rows, tree.depth, training, False, *layer._tree())
    assert torch.autograd.gradcheck(
        lambda *leaves: TargetLogProb.apply("cuda", *leaves, *fixed)[1],
        (x, layer.weight, layer.bias),
    )


def test_only_the_gradients_that_are_needed(on_host):
    layer, x, target = problem(TREES["mixed"](), 20, 6)
    leaves = [x, layer.weight, layer.bias]
    output, _ = kernels(layer, x, target)
    every = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
    for leaf, grad in zip(leaves, every, strict=True):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (alone,) = torch.autograd.grad(kernels(layer, x, target)[0].sum(), [leaf])
        assert torch.equal(alone, grad)


@pytest.mark.parametrize("name", ["frequency", "huffman"])
def test_sparse_gradients_are_rows_of_the_dense_ones(on_host, name, dtype):
    layer, x, target = problem(TREES[name](), 70, 21, dtype=dtype)
    target %= 4
    results = [
        torch.autograd.grad(
            kernels(layer, x, target, sparse=sparse)[0].sum(), [*layer.parameters()]
        )
        for sparse in (False, True)
    ]
    for full, some in zip(*results, strict=True):
        assert some.is_coalesced() and 0 < len(some.values()) < len(full)
        assert torch.equal(some.to_dense(), full)


def whole(layer, logits, grad=None, order=0):
    """The log-probabilities of all words, or the gradient of the logits."""
    (N, R), tree = logits.shape, layer._tree()
    V, M = len(tree.leaf_rank), len(tree.node_rows) - 1
    given = {"input": logits, "logits": logits, "grad": grad} | tree._asdict()
    made = {"out": ((N, V if grad is None else R), logits.dtype)}
    sizes = {"N": N, "H": 0, "R": R, "V": V, "M": M}
    return Host(order).call("log_softmax", sizes, given, made)["out"]


WHOLE = TREES | {
    "one-large-class": lambda: Hierarchy.from_clusters([1] * 200 + [0, 2]),
    "huffman-1500": lambda: Hierarchy.huffman(zipf(1500)),
    "balanced": lambda: Hierarchy.balanced(700, 3),
    "long-chain": lambda: Hierarchy.huffman(fibonacci(80)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tree", WHOLE.values(), ids=WHOLE)
def test_all_words(tree, dtype):
    layer, _, _ = problem(tree(), 1, 1)
    tree, rows = layer.hierarchy, layer.hierarchy.rows
    z = torch.randn(3, rows, dtype=dtype, requires_grad=True)
    results = []
    for logits in (z, z.detach().double().requires_grad_()):
        every = softmax_reference.log_prob_of_logits(logits, layer._tree(), tree.depth)
        grad = torch.randn(every.shape, generator=torch.Generator().manual_seed(1)).to(every)
        results.append((every, torch.autograd.grad(every, logits, grad)[0]))
    ours = whole(layer, z.detach()), whole(layer, z.detach(), grad.to(dtype))
    check_exact(ours, *results, dtype, "log-probabilities and gradient")


def test_all_words_in_any_order_of_threads():
    layer, _, _ = problem(Hierarchy.classes(zipf(900)), 1, 1)
    z, grad = torch.randn(4, layer.hierarchy.rows), torch.randn(4, 900)
    first, *others = [(whole(layer, z, order=o), whole(layer, z, grad, o)) for o in (0, 1, 77)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_large_logits_and_masked_words(on_host, scale):
    layer, x, target = problem(Hierarchy.from_clusters([0] * 6 + [1] * 9 + [2]), 40, 4)
    with torch.no_grad():
        layer.bias[3:9:2] = -torch.inf  # words of the first class that cannot be
        x *= scale
    target = target.where((target > 5) | (target % 2 == 1), 6)
    ours, theirs = (
        kernels(layer, x, target),
        by_paths(layer.hierarchy, x, layer.weight, layer.bias, target),
    )
    assert ours[0].isfinite().all()
    assert_close64(ours[0], theirs, "output")
    assert_close64(gradients(ours[0], layer, x), gradients(theirs, layer, x), "gradients")


@pytest.mark.parametrize("wrong", [-1, 101, 2**40])
def test_a_target_that_is_no_word(on_host, wrong):
    layer, x, target = problem(TREES["sqrt"](), 10, 4)
    target[7] = wrong
    with pytest.raises(RuntimeError, match="a target is no word"):
        kernels(layer, x, target)
