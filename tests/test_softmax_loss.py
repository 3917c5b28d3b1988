"""What HierarchicalSoftmax trains on: ignored tokens, reductions, weights, smoothing, z-loss."""

import copy

import pytest
import torch
from exactness import assert_close64, assert_exact
from test_softmax import WHERE, check_gradients, gradients, needs_native, problem
from torch.nn.functional import cross_entropy, linear, log_softmax, logsigmoid
from trees import TREES, by_paths, mixed, trees, zipf

import fusedrnn
from fusedrnn import HierarchicalSoftmax, Hierarchy
from fusedrnn.softmax_ops import Training


@pytest.fixture(params=WHERE)
def place(request):
    """A device, with a backend that serves the softmax there in force."""
    name, device = request.param
    with fusedrnn.backend(name):
        yield torch.device(device)


def with_options(layer, **options):
    """The same parameters with other options."""
    new = copy.copy(layer)
    for name, value in options.items():
        setattr(new, name, value)
    return new


def losses(layer, x, target):
    """Of each token, by the equations, node after node in torch's own operators."""
    rows = layer.hierarchy.tensors()["node_rows"].tolist()
    e, c = layer.label_smoothing, layer.z_loss
    total = []
    for token, word in enumerate(target.tolist()):
        loss = x.new_zeros(())
        if word != layer.ignore_index:
            for node, branch in layer.hierarchy.path(word):
                own = slice(rows[node], rows[node + 1])
                z = linear(x[token], layer.weight[own], layer.bias[own])
                log_p = logsigmoid(torch.cat([z, -z])) if len(z) == 1 else log_softmax(z, 0)
                loss = loss - (1 - e) * log_p[branch] - e * log_p.mean()
                if len(z) > 1 and c:
                    loss = loss + c * z.logsumexp(0).square()
        total.append(loss)
    return torch.stack(total)


def of_loss(layer, x, target):
    """The loss and its gradients."""
    loss = layer(x, target).loss
    return loss, *gradients(loss, layer, x)


# Ignored tokens


@trees
def test_ignored_tokens_are_as_if_they_were_not_there(tree, place):
    layer, x, target = problem(tree(), 40, 6, device=place)
    ignored = torch.arange(40, device=place) % 3 == 1
    with_holes = torch.where(ignored, -100, target)
    with torch.no_grad():
        x[ignored] = torch.inf  # whatever they are
    output, loss = layer(x, with_holes)
    short = layer(x[~ignored], target[~ignored])
    assert not output[ignored].any()
    assert_close64(loss, short.loss, "loss")
    if fusedrnn._backend.current() == "reference":
        # torch's products round as the number of rows asks for; autograd carries 0 * inf back.
        assert_close64(output[~ignored], short.output, "output")
        return
    assert torch.equal(output[~ignored], short.output)
    grads = torch.autograd.grad(loss, [x, *layer.parameters()])
    wanted = torch.autograd.grad(short.loss, [x, *layer.parameters()])
    assert_close64(grads, wanted, "gradients")
    assert not grads[0][ignored].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@trees
def test_all_tokens_ignored(tree, reduction, place):
    layer, x, target = problem(tree(), 7, 5, device=place)
    layer = with_options(layer, reduction=reduction)
    loss, *grads = of_loss(layer, x, torch.full_like(target, -100))
    torchs = cross_entropy(torch.zeros(7, 3), torch.full((7,), -100), reduction=reduction)
    assert loss.isnan().equal(torchs.to(place).isnan())
    assert reduction == "mean" or not loss.any()
    for grad in grads:
        assert not grad.any()


def test_any_number_may_be_ignored(place):
    layer, x, target = problem(Hierarchy.huffman(zipf(20)), 30, 4, device=place)
    for ignored in (3, -1, 2**40):
        other = with_options(layer, ignore_index=ignored)
        marked = torch.where(target == 3, ignored, target)
        assert_close64(
            of_loss(other, x, marked),
            of_loss(layer, x, torch.where(target == 3, -100, target)),
            "loss and gradients",
        )
    with pytest.raises(IndexError, match=r"holds -100; .* 0\.\.19, and ignore_index is 3"):
        with_options(layer, ignore_index=3)(x, torch.full_like(target, -100))


def test_ignored_tokens_meet_no_rows(place):
    layer, x, target = problem(TREES["sqrt"](), 20, 4, device=place)
    sparse = with_options(layer, sparse_grad=True)
    target[5:] = -100
    (ours,) = torch.autograd.grad(sparse(x, target).loss, sparse.weight)
    (full,) = torch.autograd.grad(layer(x, target).loss, layer.weight)
    (alone,) = torch.autograd.grad(sparse(x[:5], target[:5]).loss, sparse.weight)
    assert ours.indices().equal(alone.indices())
    assert_close64(ours.to_dense(), full, "gradient")


@needs_native
def test_compiled_with_ignored_tokens_and_replayed():
    """The wrong loss under compile with ignored tokens is a known bug elsewhere."""
    torch.compiler.reset()
    layer, x, target = problem(mixed(), 24, 6, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    for holes in ([1, 5], [], list(range(24)), [0, 23]):
        new = target.roll(len(holes))
        new[holes] = -100
        ours, eager = compiled(x, new), layer(x, new)
        torch.testing.assert_close(ours, eager, equal_nan=True)
        torch.testing.assert_close(
            *(torch.autograd.grad(r.loss, [x, *layer.parameters()]) for r in (ours, eager))
        )


# Reductions and weights


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_flat_is_cross_entropy(reduction, smoothing, weighted, dtype, place):
    """With every option of cross_entropy that there is for class indices."""
    weight = torch.rand(23, dtype=dtype, device=place) if weighted else None
    layer, x, target = problem(Hierarchy.flat(23), 60, 31, dtype=dtype, device=place)
    layer = HierarchicalSoftmax(
        31, Hierarchy.flat(23), reduction=reduction, word_weight=weight, dtype=dtype, device=place,
        label_smoothing=smoothing, smooth_over="words", ignore_index=5,
    )  # fmt: skip
    ours = of_loss(layer, x, target)

    def torchs(wide):
        W, b, inputs = (t.detach().to(wide).requires_grad_() for t in (layer.weight, layer.bias, x))
        loss = cross_entropy(
            linear(inputs, W, b),
            target,
            None if weight is None else weight.to(wide),
            reduction=reduction,
            label_smoothing=smoothing,
            ignore_index=5,
        )
        weights = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
        return loss, *torch.autograd.grad((loss * weights).sum(), [inputs, W, b])

    truth = torchs(torch.float64)
    if dtype == torch.float64:
        assert_close64(ours, truth, "loss and gradients")
    else:
        assert_exact(ours, torchs(dtype), truth, dtype, "loss and gradients")


@trees
def test_reductions(tree, place):
    layer, x, target = problem(tree(), 20, 5, device=place)
    weight = torch.rand(layer.hierarchy.words, dtype=torch.float64, device=place)
    layer = with_options(layer, word_weight=weight)
    target[3] = -100
    each = with_options(layer, reduction="none")(x, target).loss
    share = torch.where(target == -100, 0, weight[target.clamp(min=0)])
    assert each.shape == target.shape and each[3] == 0
    assert_close64(each, -layer(x, target).output * share, "none")
    assert_close64(with_options(layer, reduction="sum")(x, target).loss, each.sum(), "sum")
    assert_close64(layer(x, target).loss, each.sum() / share.sum(), "mean")
    shaped = with_options(layer, reduction="none")(x.view(2, 10, 5), target.view(2, 10))
    assert torch.equal(shaped.loss, each.view(2, 10))


# Smoothing and z-loss


@pytest.mark.parametrize("options", [(0.3, 0.0), (0.0, 0.01), (0.1, 0.002), (1.0, 0.0)], ids=str)
@trees
def test_smoothing_and_z_loss(tree, options, place):
    layer, x, target = problem(tree(), 20, 5, device=place)
    layer = with_options(layer, label_smoothing=options[0], z_loss=options[1], reduction="none")
    target[7] = -100
    output, loss = layer(x, target)
    truth = losses(layer, x, target)
    assert_close64(loss, truth, "loss")
    assert_close64(gradients(loss, layer, x), gradients(truth, layer, x), "gradients")
    plain = with_options(layer, label_smoothing=0.0, z_loss=0.0)
    assert_close64(output, plain(x, target).output, "output")
    assert not output.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@trees
def test_error_rule_of_smoothing(tree, dtype, place):
    layer, x, target = problem(tree(), 33, 24, dtype=dtype, device=place)
    layer = with_options(layer, label_smoothing=0.1, z_loss=0.01, reduction="none")
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    values = []
    for module, inputs in [(layer, x), (exact, x64)]:
        loss = losses(module, inputs, target)
        values.append((loss, *gradients(loss, module, inputs)))
    assert_exact(of_loss(layer, x, target), *values, dtype, "loss and gradients")


def test_smoothing_of_one_node_is_over_words(place):
    layer, x, target = problem(Hierarchy.flat(1100), 20, 5, device=place)
    layer = with_options(layer, label_smoothing=0.2)
    words = with_options(layer, smooth_over="words")
    assert_close64(of_loss(layer, x, target), of_loss(words, x, target), "loss and gradients")


@trees
def test_smoothing_over_words(tree, place):
    layer, x, target = problem(tree(), 12, 5, device=place)
    target[2] = -100
    smooth = with_options(
        layer, label_smoothing=0.2, smooth_over="words", z_loss=0.01, reduction="none"
    )
    with_z = with_options(layer, z_loss=0.01, reduction="none")
    mean = torch.where(target == -100, 0, -layer.log_prob(x).mean(1))
    truth = 0.8 * with_z(x, target).loss + 0.2 * mean
    loss = smooth(x, target).loss
    assert_close64(loss, truth, "loss")
    assert_close64(gradients(loss, smooth, x), gradients(truth, layer, x), "gradients")


def test_huge_logits_and_smoothing(dtype, place):
    """The mean of log-probabilities of 1e4 must not drown in them."""
    for tree in (mixed(), Hierarchy.flat(1100)):
        layer, _, target = problem(tree, 30, 1, dtype=dtype, device=place)
        layer = with_options(layer, label_smoothing=0.1, reduction="none")
        with torch.no_grad():
            layer.weight.copy_((torch.arange(layer.hierarchy.rows) % 3 - 1)[:, None] * 1e4)
            layer.bias.zero_()
        x = torch.ones(30, 1, dtype=dtype, device=place).requires_grad_()
        exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
        truth, torchs = losses(exact, x64, target), losses(layer, x, target)
        if dtype == torch.float64:
            assert_close64(layer(x, target).loss, truth, "loss")
        else:
            assert_exact(layer(x, target).loss, torchs, truth, dtype, "loss")


def test_z_loss_of_a_masked_word_is_infinite_and_no_nan(place):
    layer, x, target = problem(Hierarchy.flat(9), 9, 4, device=place)
    with torch.no_grad():
        layer.bias[3] = -torch.inf
    loss = with_options(layer, z_loss=0.1, reduction="none")(x, target).loss
    assert loss.isinf().equal(target == 3) and not loss.isnan().any()


@needs_native
@pytest.mark.parametrize("name", ["flat", "huffman-2", "singletons", "mixed"])
def test_gradcheck_of_the_objective(name):
    layer, x, target = problem(TREES[name](), 6, 3)
    target[1] = -7
    check_gradients(layer, x, target, which=1, training=Training(-7, 0.2, 0.05))


def test_z_loss_draws_logits_to_zero():
    """What the probabilities alone leave where it is: a number added to all logits."""
    for z_loss in (0.0, 1.0):
        layer, x, target = problem(Hierarchy.flat(8), 40, 4)
        layer.z_loss = z_loss
        with torch.no_grad():
            layer.bias.add_(30.0)
        before = layer.bias.mean().item()
        optimizer = torch.optim.SGD(layer.parameters(), 0.05)
        for _ in range(100):
            optimizer.zero_grad()
            layer(x.detach(), target).loss.backward()
            optimizer.step()
        after = layer.bias.mean().item()
        assert after == pytest.approx(before) if z_loss == 0 else abs(after) < before / 2


@needs_native
def test_same_bits_with_options():
    layer, x, target = problem(TREES["sqrt"](), 300, 40, dtype=torch.float32)
    layer = with_options(layer, label_smoothing=0.1, z_loss=1e-3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(of_loss(layer, x, target))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# The module


def test_word_weight_is_part_of_the_state():
    weight = torch.rand(9)
    layer = HierarchicalSoftmax(4, Hierarchy.flat(9), word_weight=weight)
    assert torch.equal(layer.state_dict()["word_weight"], weight)
    assert "word_weight" not in HierarchicalSoftmax(4, Hierarchy.flat(9)).state_dict()
    assert layer.half().word_weight.dtype == torch.float16


def test_repr_names_what_differs():
    layer = HierarchicalSoftmax(4, Hierarchy.flat(9), reduction="sum", label_smoothing=0.1)
    assert "reduction='sum', label_smoothing=0.1" in repr(layer)
    assert "reduction" not in repr(HierarchicalSoftmax(4, Hierarchy.flat(9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "avg"}, "reduction is 'avg'; it must be one of 'none', 'mean', 'sum'"),
        ({"word_weight": torch.ones(8)}, r"word_weight is \(8,\)"),
        ({"word_weight": torch.ones(9).long()}, r"int64; it must be floating point"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"smooth_over": "classes"}, "smooth_over is 'classes'"),
        ({"z_loss": -1.0}, "z_loss is -1.0"),
        (
            {"sparse_grad": True, "label_smoothing": 0.1, "smooth_over": "words"},
            "the gradient of all words is dense",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalSoftmax(4, Hierarchy.flat(9), **options)


def test_output_is_what_it_was(place):
    """Without options the loss is that of the path, as the oracle has it."""
    layer, x, target = problem(TREES["sqrt"](), 30, 6, device=place)
    truth = by_paths(layer.hierarchy, x, layer.weight, layer.bias, target)
    assert_close64(layer(x, target).loss, -truth.mean(), "loss")


@needs_native
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_gradients_larger_than_the_caches(sparse):
    """From 32 MB on they are written past the caches: classes of few and of many tokens, gaps."""
    tree = Hierarchy.classes(zipf(17_000))
    layer, x, target = problem(tree, 200, 512, dtype=torch.float32)
    assert layer.weight.nbytes > 32 << 20
    target[:150] %= 40
    exact, x64 = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    truth = gradients(by_paths(tree, x64, exact.weight, exact.bias, target), exact, x64)
    torchs = gradients(by_paths(tree, x, layer.weight, layer.bias, target), layer, x)
    layer.sparse_grad = sparse
    ours = gradients(layer(x, target).output, layer, x)
    assert_exact([g.to_dense() for g in ours], torchs, truth, torch.float32, "gradients")
