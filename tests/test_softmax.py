"""The hierarchical softmax: against torch's own operators along the paths, and by gradcheck."""

import copy
import io
import pickle

import pytest
import torch
from exactness import assert_close64, assert_exact
from torch import nn
from torch.library import opcheck
from torch.nn.functional import cross_entropy
from trees import TREES, brown_counts, by_paths, mixed, trees, zipf

import fusedrnn
from fusedrnn import HierarchicalSoftmax, Hierarchy, _native, softmax, softmax_score
from fusedrnn.softmax_ops import target_log_prob

needs_native = pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
NO_GPU = None if torch.cuda.is_available() else "no CUDA device on this machine"
CUDA = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))]
WHERE = [
    pytest.param(("cpu", "cpu"), id="cpu", marks=needs_native),
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("auto", "cuda"), id="cuda", marks=CUDA),
]


@pytest.fixture(params=WHERE)
def place(request):
    """A device, with a backend that serves the softmax there in force."""
    name, device = request.param
    with fusedrnn.backend(name):
        yield torch.device(device)


def problem(hierarchy, N, H, *, bias=True, dtype=torch.float64, device="cpu"):
    """A module, its input, and targets that hold every word when there are tokens enough."""
    layer = HierarchicalSoftmax(H, hierarchy, bias, device=device, dtype=dtype)
    x = torch.randn(N, H, dtype=dtype, device=device, requires_grad=True)
    target = torch.randperm(max(N, hierarchy.words))[:N] % hierarchy.words
    return layer, x, target.to(device)


def gradients(output, layer, x):
    """Of a fixed random function of the output: with respect to input and parameters."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])


def check_gradients(layer, x, target, *, which=0, leaf=lambda tensor: tensor, **options):
    """gradcheck of an output of the op: 0 is log p, 1 the objective; ``leaf`` wraps parameters."""
    tree = layer.hierarchy

    def function(x, weight, bias):
        weight, bias = leaf(weight), leaf(bias)
        sizes = layer._tree(), tree.max_path_rows, tree.depth
        return target_log_prob(x, weight, bias, target, *sizes, **options)[which]

    with fusedrnn.backend("cpu"):
        assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


def check_exact(ours, torchs, truth, dtype, what):
    """The error rule; in float64 the truth itself is torch's."""
    if dtype == torch.float64:
        assert_close64(ours, truth, what)
    else:
        assert_exact(ours, torchs, truth, dtype, what)


# Values and gradients


@trees
@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (150, 17), (301, 33)])
def test_equals_the_walk_over_paths(tree, sizes, place):
    for bias in (True, False):
        layer, x, target = problem(tree(), *sizes, bias=bias, device=place)
        output = layer(x, target).output
        truth = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
        assert_close64(output, truth, "output")
        assert_close64(gradients(output, layer, x), gradients(truth, layer, x), "gradients")


@trees
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_rule(tree, dtype, place):
    layer, x, target = problem(tree(), 37, 48, dtype=dtype, device=place)
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    truth = by_paths(layer.hierarchy, x64, exact.weight, exact.bias, target)
    torchs = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
    ours = layer(x, target).output
    assert_exact(ours, torchs, truth, dtype, "output")
    values = [gradients(o, m, i) for o, m, i in [(ours, layer, x), (torchs, layer, x)]]
    assert_exact(*values, gradients(truth, exact, x64), dtype, "gradients")


@pytest.mark.parametrize("words", [2, 23, 1100])
def test_flat_is_linear_and_cross_entropy(words, dtype, place):
    layer, x, target = problem(Hierarchy.flat(words), 60, 31, dtype=dtype, device=place)
    linear = nn.Linear(31, words, dtype=dtype, device=place)
    linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    exact, x64 = copy.deepcopy(linear).double(), x.detach().double().requires_grad_()
    results = []
    for loss, model, inputs in [
        (layer(x, target).loss, layer, x),
        (cross_entropy(linear(x), target), linear, x),
        (cross_entropy(exact(x64), target), exact, x64),
    ]:
        results.append((loss, torch.autograd.grad(loss, [inputs, *model.parameters()])))
    check_exact(*results, dtype, "loss and gradients")


@needs_native
@pytest.mark.parametrize("name", ["flat", "huffman-2", "chain", "singletons", "mixed"])
def test_gradcheck(name):
    check_gradients(*problem(TREES[name](), 6, 3))


@trees
def test_only_the_gradients_that_are_needed(tree, place):
    layer, x, target = problem(tree(), 20, 6, device=place)
    everything = [x, layer.weight, layer.bias]
    grads = torch.autograd.grad(layer(x, target).loss, everything)
    for wanted in range(1, 8):
        chosen = [bool(wanted >> i & 1) for i in range(3)]
        for tensor, needed in zip(everything, chosen, strict=True):
            tensor.requires_grad_(needed)
        some = torch.autograd.grad(
            layer(x, target).loss,
            [t for t, needed in zip(everything, chosen, strict=False) if needed],
        )
        for ours, truth in zip(
            some, (g for g, needed in zip(grads, chosen, strict=False) if needed), strict=True
        ):
            assert torch.equal(ours, truth)
    with torch.no_grad():
        assert not layer(x, target).output.requires_grad


@needs_native
@trees
def test_rows_no_token_met_have_no_gradient(tree):
    layer, x, _ = problem(tree(), 3, 4)
    target = torch.full((3,), layer.hierarchy.words - 1)
    (grad,) = torch.autograd.grad(layer(x, target).loss, layer.weight)
    rows = layer.hierarchy.tensors()["node_rows"].tolist()
    met = {r for n, _ in layer.hierarchy.path(int(target[0])) for r in range(rows[n], rows[n + 1])}
    for row in range(layer.hierarchy.rows):
        assert bool(grad[row].any()) == (row in met)


# The distribution


@trees
def test_probabilities_sum_to_one(tree, dtype, place):
    layer, x, _ = problem(tree(), 9, 20, dtype=dtype, device=place)
    total = layer.log_prob(3 * x).double().exp().sum(1)
    bound = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype)
    # A 16-bit result is rounded: each log p by a half unit of its own size, |log p| eps / 2.
    if bound is None:
        log_p = layer.log_prob(3 * x).double()
        bound = (log_p.exp() * log_p.abs()).sum(1).max() * torch.finfo(dtype).eps + 1e-6
    assert (total - 1).abs().max() <= bound


@trees
def test_log_prob_holds_every_target(tree, place):
    layer, x, _ = problem(tree(), 3, 7, device=place)
    every = layer.log_prob(x)
    V = layer.hierarchy.words
    assert every.shape == (3, V)
    for row, values in zip(x, every, strict=True):
        target = torch.arange(V, device=place)
        assert_close64(layer(row.expand(V, -1), target).output, values, "log_prob")


@trees
def test_log_prob_is_differentiable(tree):
    layer, x, target = problem(tree(), 5, 4)
    every = layer.log_prob(x).gather(1, target[:, None])[:, 0]
    truth = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
    assert_close64(gradients(every, layer, x), gradients(truth, layer, x), "gradients")


@trees
def test_predict_is_the_argmax(tree, dtype, place):
    layer, x, _ = problem(tree(), 40, 20, dtype=torch.float64, device=place)
    assert torch.equal(layer.predict(4 * x), layer.log_prob(4 * x).argmax(1))
    low, x = copy.deepcopy(layer).to(dtype), (4 * x).detach().to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = copy.deepcopy(low).to(wide)
    assert torch.equal(low.predict(x), exact.log_prob(x.to(wide)).argmax(1))


def test_predict_is_not_greedy(place):
    # p(class 0) = 0.6 over two even words: 0.3 each; class 1 holds 0.4, nearly all in word 3.
    layer = HierarchicalSoftmax(1, Hierarchy.from_clusters([0, 0, 1, 1])).to(place)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.6, 0.4, 0.5, 0.5, 0.01, 0.99]).log())
    x = torch.zeros(2, 1, device=place)
    assert layer.predict(x).tolist() == [3, 3]
    expected = torch.tensor([0.3, 0.3, 0.004, 0.396], device=place)
    torch.testing.assert_close(layer.log_prob(x)[0].exp(), expected)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@trees
def test_huge_logits(tree, dtype, scale, place):
    layer, _, target = problem(tree(), 30, 1, dtype=dtype, device=place)
    rows = layer.hierarchy.rows
    with torch.no_grad():  # logits of 0, +-1e4 and equal ones among them
        layer.weight.copy_((torch.arange(rows) % 3 - 1)[:, None] * abs(scale))
        layer.bias.zero_()
    x = torch.full((30, 1), 1.0 if scale > 0 else -1.0, dtype=dtype, device=place).requires_grad_()
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    truth = by_paths(layer.hierarchy, x64, exact.weight, exact.bias, target)
    torchs = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
    ours = layer(x, target).output
    assert torch.isfinite(truth.to(dtype)).equal(torch.isfinite(ours))
    if torch.isfinite(truth.to(dtype)).all():
        check_exact(ours, torchs, truth, dtype, "output")
    values = [gradients(o, m, i) for o, m, i in [(ours, layer, x), (torchs, layer, x)]]
    check_exact(*values, gradients(truth, exact, x64), dtype, "gradients")


def test_masked_words(place):
    """A bias of -infinity takes a word out, also all of one of the kernel's chunks of rows."""
    layer, x, target = problem(Hierarchy.flat(1100), 50, 8, device=place)
    target = target % 500 + 600
    with torch.no_grad():
        layer.bias[:600] = -torch.inf
    output = layer(x, target).output
    truth = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
    assert_close64(output, truth, "output")
    assert_close64(gradients(output, layer, x), gradients(truth, layer, x), "gradients")


def test_nan_stays_with_its_token(place):
    for tree in (mixed(), Hierarchy.flat(1100)):
        layer, x, target = problem(tree, 12, 8, device=place)
        clean = layer(x, target).output
        with torch.no_grad():
            x[5, 2] = torch.nan
        output = layer(x, target).output
        assert output[5].isnan()
        keep = torch.arange(12, device=place) != 5
        assert torch.equal(output[keep], clean[keep])


def test_loss_does_not_depend_on_word_ids(place):
    counts = zipf(101)
    new_id = torch.randperm(101)  # of each word
    moved = torch.empty_like(counts).scatter(0, new_id, counts)
    # Huffman's ties go by word id, hence counts without equals.
    distinct, moved_distinct = counts * 1000, moved * 1000
    distinct += torch.arange(101)
    moved_distinct = moved_distinct.scatter(0, new_id, distinct)
    for tree, other in [
        (Hierarchy.huffman(distinct), Hierarchy.huffman(moved_distinct)),
        (Hierarchy.classes(distinct), Hierarchy.classes(moved_distinct)),
    ]:
        layer, x, target = problem(tree, 40, 12, device=place)
        renamed = HierarchicalSoftmax(12, other, dtype=torch.float64, device=place)
        with torch.no_grad():
            renamed.weight.copy_(layer.weight)
            renamed.bias.copy_(layer.bias)
        assert torch.equal(layer(x, target).loss, renamed(x, new_id.to(place)[target]).loss)


def test_real_counts(place):
    counts = brown_counts()
    N = 40 if fusedrnn._backend.current() == "reference" else 200  # it computes all words
    target = torch.multinomial(torch.tensor(counts).double(), N, replacement=True).to(place)
    for tree in (Hierarchy.huffman(counts), Hierarchy.classes(counts)):
        layer, x, _ = problem(tree, N, 16, device=place)
        output = layer(x, target).output
        truth = by_paths(tree, x, layer.weight, layer.bias, target)
        assert_close64(output, truth, "output")
        assert_close64(gradients(output, layer, x), gradients(truth, layer, x), "gradients")


# The interface


def test_like_adaptive_softmax(place):
    layer = HierarchicalSoftmax(8, Hierarchy.classes(zipf(50))).to(place)
    torchs = nn.AdaptiveLogSoftmaxWithLoss(8, 50, [10, 20]).to(place)
    x, target = torch.randn(6, 8, device=place), torch.randint(50, (6,), device=place)
    for inputs, targets in [(x, target), (x[0], target[0])]:
        ours, theirs = layer(inputs, targets), torchs(inputs, targets)
        assert ours._fields == theirs._fields
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(ours.loss, -ours.output.mean())
    assert layer.log_prob(x).shape == torchs.log_prob(x).shape
    assert layer.predict(x).shape == torchs.predict(x).shape
    assert layer.predict(x).dtype == torchs.predict(x).dtype


def test_leading_dimensions(place):
    layer, x, target = problem(mixed(), 24, 5, device=place)
    output, loss = layer(x, target)
    shaped = layer(x.view(2, 3, 4, 5), target.view(2, 3, 4))
    assert torch.equal(shaped.output, output.view(2, 3, 4)) and torch.equal(shaped.loss, loss)
    assert torch.equal(layer(x[7], target[7]).output, layer(x[7:8], target[7:8]).output[0])
    assert layer.log_prob(x.view(4, 6, 5)).shape == (4, 6, 6)
    assert layer.predict(x[0]).shape == ()
    # Not contiguous: every second feature of every second token.
    wide = torch.randn(24, 10, dtype=torch.float64, device=place)
    strided = layer(wide[::2, ::2], target[::2])
    assert torch.equal(strided.output, layer(wide[::2, ::2].contiguous(), target[::2]).output)


@trees
def test_no_tokens(tree, place):
    layer, x, target = problem(tree(), 0, 4, device=place)
    output, loss = layer(x, target)
    assert output.shape == (0,) and loss.isnan()  # the mean of nothing, as torch has it
    assert cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).isnan()
    for grad in torch.autograd.grad(output.sum(), [x, *layer.parameters()]):
        assert not grad.any()
    assert layer.log_prob(x).shape == (0, layer.hierarchy.words)
    assert layer.predict(x).shape == (0,)


def test_initialised_like_linear():
    torch.manual_seed(3)
    layer = HierarchicalSoftmax(7, Hierarchy.flat(11))
    torch.manual_seed(3)
    linear = nn.Linear(7, 11)
    torch.testing.assert_close(layer.weight, linear.weight, rtol=0, atol=1e-7)
    assert torch.equal(layer.bias, linear.bias)
    assert HierarchicalSoftmax(7, Hierarchy.flat(11), bias=False).bias is None
    assert "flat: 11 words" in repr(layer)


@needs_native
@trees
def test_same_input_same_bits(tree):
    layer, x, target = problem(tree(), 500, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            output = layer(x, target).output
            results.append((output, *gradients(output, layer, x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_backward_twice():
    layer, x, target = problem(mixed(), 9, 4)
    loss = layer(x, target).loss
    first = torch.autograd.grad(loss, [x, layer.weight], retain_graph=True)
    second = torch.autograd.grad(loss, [x, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@trees
def test_second_order(tree, place):
    """Gradients of gradients, as torch's own operators have them; of the first, the same bits."""
    layer, x, target = problem(tree(), 7, 3, device=place)
    wrt = [x, *layer.parameters()]

    def both(output):
        first = torch.autograd.grad(output.square().sum(), wrt, create_graph=True)
        loss = sum((g * torch.linspace(0, 1, g.numel()).view_as(g).to(g)).sum() for g in first)
        return first, torch.autograd.grad(loss + output.sum(), wrt)

    truth = both(by_paths(layer.hierarchy, x, layer.weight, layer.bias, target))
    for output in (
        layer(x, target).output,
        layer.log_prob(x).gather(1, target[:, None])[:, 0],
    ):
        assert_close64(both(output), truth, "gradients")
    plain = torch.autograd.grad(layer(x, target).loss, wrt)
    graph = torch.autograd.grad(layer(x, target).loss, wrt, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, graph, strict=True))


def test_gradients_of_single_tokens():
    """torch.func.vmap over grad: plain PyTorch serves it."""
    layer, x, target = problem(mixed(), 5, 3)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x, target):
        return torch.func.functional_call(layer, parameters, (x, target)).loss

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x.detach(), target)
    for i in range(5):
        grads = torch.autograd.grad(layer(x[i], target[i]).loss, [*parameters.values()])
        assert_close64([g[i] for g in each.values()], grads, "gradients")


# Through torch


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(low, place):
    layer, x, target = problem(mixed(), 50, 24, dtype=torch.float32, device=place)
    linear = nn.Linear(24, 9).to(place)
    with torch.autocast(place.type, low):
        ours = layer(x, target)
        torchs = cross_entropy(linear(x), target)
        every = layer.log_prob(x)
    assert ours.loss.dtype == ours.output.dtype == every.dtype == torchs.dtype == torch.float32
    rounded = copy.deepcopy(layer).to(low).float()  # what autocast makes of the operands
    truth = rounded(x.detach().to(low).float(), target)
    torch.testing.assert_close(ours, truth)
    grads = torch.autograd.grad(ours.loss, [x, *layer.parameters()])
    assert all(g.dtype == torch.float32 for g in grads)


def check_compiled(tree, place, compiler):
    torch.compiler.reset()  # each module is compiled anew: no limit on recompilations is met
    layer, x, target = problem(tree, 33, 12, dtype=torch.float32, device=place)
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    ours, eager = compiled(x, target), layer(x, target)
    torch.testing.assert_close(ours, eager)
    wrt = [x, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(r.loss, wrt) for r in (ours, eager)))
    other = target.flip(0)
    torch.testing.assert_close(compiled(x, other), layer(x, other))


@trees
def test_one_graph_with_its_backward(tree, place):
    check_compiled(tree(), place, "aot_eager")


@pytest.mark.parametrize("tree", [lambda: Hierarchy.flat(23), mixed], ids=["flat", "mixed"])
def test_compile_fullgraph(tree, place):
    check_compiled(tree(), place, "inductor")


@needs_native
def test_compiled_targets_are_checked():
    layer, x, target = problem(Hierarchy.flat(9), 6, 4, dtype=torch.float32)
    torch.compiler.reset()  # each module is compiled anew: no limit on recompilations is met
    compiled = torch.compile(layer, fullgraph=True)
    compiled(x, target)
    target[3] = 9
    with pytest.raises(RuntimeError, match=r"target\[3\] is 9; it must be in 0\.\.8 or -100"):
        compiled(x, target)


@needs_native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    # opcheck compares all of `saved`, which is full only where all paths are equally long.
    "tree",
    [
        lambda: Hierarchy.flat(9),
        lambda: Hierarchy.huffman([1] * 16),
        lambda: Hierarchy.classes([1] * 20, 5, "equal"),
    ],
    ids=["flat", "huffman", "classes"],
)
def test_opcheck(tree, bias, dtype):
    layer, x, target = problem(tree(), 7, 5, bias=bias, dtype=dtype)
    ops = torch.ops.fusedrnn
    tensors = [t if t is None else t.detach() for t in (x, layer.weight, layer.bias)]
    rest = (target, *layer._tree())
    sizes = (layer.hierarchy.max_path_rows, layer.hierarchy.depth)
    for options in [(-100, 0.0, 0.0, True), (-100, 0.0, 0.0, False), (-100, 0.1, 1e-3, True)]:
        opcheck(ops.hierarchical_softmax_forward.native, (*tensors, *rest, *sizes, *options))
    output, _, saved, plan = ops.hierarchical_softmax_forward.native(
        *tensors, *rest, *sizes, -100, 0.0, 0.0, True
    )
    for needs in [(True, True, True), (True, False, False), (False, False, True)]:
        opcheck(
            ops.hierarchical_softmax_backward.native,
            (torch.randn_like(output), *tensors[:2], *rest, saved, plan, -100, *needs, False, None),
        )


@trees
def test_module_round_trips(tree):
    layer, x, target = problem(tree(), 8, 5, dtype=torch.float32)
    loss = layer(x, target).loss
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, target).loss, loss)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = HierarchicalSoftmax(5, tree())
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x, target).loss, loss) and fresh.hierarchy == layer.hierarchy
    names = [f"hierarchy_{name}" for name in layer.hierarchy.tensors()]
    assert list(state) == ["weight", "bias", *names]
    tensors = {name.removeprefix("hierarchy_"): state[name] for name in names}
    assert Hierarchy(**tensors) == layer.hierarchy
    assert torch.equal(layer.half().hierarchy_leaf_rank, state["hierarchy_leaf_rank"])


def test_loading_puts_the_checkpoints_hierarchy_in_force(place):
    first, x, target = problem(Hierarchy.from_clusters([0, 0, 1, 1]), 8, 5, device=place)
    second = HierarchicalSoftmax(
        5, Hierarchy.from_clusters([0, 1, 0, 1]), dtype=torch.float64, device=place
    )
    assert first.hierarchy != second.hierarchy
    second.load_state_dict(first.state_dict())
    assert second.hierarchy == first.hierarchy
    assert torch.equal(first(x, target).loss, second(x, target).loss)


def test_loading_another_size_says_so():
    layer = HierarchicalSoftmax(5, Hierarchy.flat(9))
    state = HierarchicalSoftmax(5, Hierarchy.huffman([1, 2, 3])).state_dict()
    with pytest.raises(
        RuntimeError, match=r"has 3 words and 2 nodes, but this module has .*flat: 9"
    ):
        layer.load_state_dict(state)
    broken = layer.state_dict()
    broken["hierarchy_leaf_rank"] = torch.zeros(9, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="leaf_rank is no permutation"):
        layer.load_state_dict(broken)
    with pytest.raises(RuntimeError, match="Missing key.*hierarchy_leaf_rank"):
        layer.load_state_dict({"weight": layer.weight, "bias": layer.bias})


def test_meta_device():
    layer = HierarchicalSoftmax(5, mixed(), device="meta")
    assert layer.hierarchy_leaf_rank.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    _, x, target = problem(mixed(), 4, 5, dtype=torch.float32)
    assert layer(x, target).loss.isfinite()


# Bad input


def test_bad_input(place):
    layer, x, target = problem(Hierarchy.flat(9), 6, 4, dtype=torch.float32, device=place)
    cases = [
        (lambda: layer(x[:, :3], target), ValueError, r"input has shape \(6, 3\).* in_features, 4"),
        (lambda: layer(x[:5], target), ValueError, r"target has shape \(6,\).*\(5,\)"),
        (lambda: layer(x, target[:, None]), ValueError, r"target has shape \(6, 1\)"),
        (lambda: layer(x, target.int()), TypeError, r"target is torch\.int32; .*target\.long"),
        (lambda: layer(x.double(), target), TypeError, r"input is torch\.float64 and weight"),
        (lambda: layer.log_prob(x.half()), TypeError, r"input is torch\.float16 and weight"),
        (lambda: layer.predict(x[0, 0]), ValueError, r"input has shape \(\)"),
        (lambda: layer(x.to("meta"), target), ValueError, "input is on meta and weight on"),
        (lambda: layer(x, target.to("meta")), ValueError, "target is on meta and input on"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
@pytest.mark.parametrize("name", [pytest.param("cpu", marks=needs_native), "reference"])
def test_targets_out_of_range(bad, name):
    layer, x, target = problem(Hierarchy.flat(9), 6, 4)
    target[2] = bad
    with fusedrnn.backend(name), pytest.raises(IndexError, match=rf"holds {bad}; .* 0\.\.8"):
        layer(x, target)


def test_bad_arguments():
    with pytest.raises(ValueError, match="in_features is 0"):
        HierarchicalSoftmax(0, mixed())
    with pytest.raises(TypeError, match="hierarchy is int; it must be a fusedrnn.Hierarchy"):
        HierarchicalSoftmax(4, 100)
    with pytest.raises(TypeError, match=r"hierarchy is Choice; .* its \.hierarchy"):
        HierarchicalSoftmax(4, Hierarchy.best([3, 2, 1], 4, 10))
    with pytest.raises(TypeError, match=r"dtype is torch\.int32; .* torch\.bfloat16"):
        HierarchicalSoftmax(4, mixed(), dtype=torch.int32)
    with pytest.raises(TypeError, match="word_weight is list"):
        HierarchicalSoftmax(4, mixed(), word_weight=[1.0] * 6)
    for make in (
        lambda ignored: HierarchicalSoftmax(4, mixed(), ignore_index=ignored),
        lambda ignored: fusedrnn.AdaptiveLogSoftmaxWithLoss(4, 9, [3], ignore_index=ignored),
    ):
        for ignored in (None, 1.5):
            with pytest.raises(ValueError, match=f"ignore_index is {ignored}"):
                make(ignored)


def test_a_backend_that_cannot_serve_says_why():
    layer, x, target = problem(mixed(), 6, 4)
    with fusedrnn.backend("cuda"), pytest.raises(RuntimeError, match="tensors are on cpu"):
        layer(x, target)
    assert set(softmax.softmax_limits("cuda", torch.float32).values()) == {None}
    assert set(softmax_score.score_limits("cuda", torch.float32).values()) == {None}
    limits = softmax_score.search_limits("cuda", torch.float32)
    assert limits["cuda"] is None and "searches" in limits["triton"]
    assert "float8" in softmax.softmax_limits("cpu", torch.float8_e5m2)["cpu"]


@needs_native
def test_native_op_checks_its_arguments():
    layer, x, target = problem(mixed(), 6, 4)
    op = torch.ops.fusedrnn.hierarchical_softmax_forward.native
    tree = layer._tree()
    with pytest.raises(RuntimeError, match="weight has 5 rows, but the hierarchy needs 7"):
        op(x.detach(), layer.weight[:5], None, target, *tree, 5, 3, -100, 0.0, 0.0, True)
    with pytest.raises(RuntimeError, match="path_rows is less"):
        op(x.detach(), layer.weight, None, target, *tree, 1, 3, -100, 0.0, 0.0, True)
    with pytest.raises(RuntimeError, match="bias has the wrong dtype"):
        op(x.detach(), layer.weight, layer.bias.float(), target, *tree, 7, 3, -100, 0.0, 0.0, True)
