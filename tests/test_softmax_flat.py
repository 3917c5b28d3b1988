"""The flat softmax in tiles of words: cross_entropy, without the logits of all words in memory."""

import copy

import pytest
import torch
from exactness import assert_close64, assert_exact
from test_softmax import needs_native, problem
from torch.library import opcheck
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

import fusedrnn
from fusedrnn import HierarchicalSoftmax, Hierarchy, softmax_flat

WORDS, TILE = 23, 7


@pytest.fixture(autouse=True)
def _tiles(monkeypatch):
    """No logits are kept, and tiles are narrow."""
    monkeypatch.setattr(softmax_flat, "KEPT", 0)
    monkeypatch.setattr(softmax_flat, "_TILE", 1)
    monkeypatch.setattr(softmax_flat, "_LEAST", TILE)


pytestmark = needs_native


def flat(N=20, H=12, dtype=torch.float64, **options):
    """A layer, input and targets of which some are ignored."""
    _, x, target = problem(Hierarchy.flat(WORDS), N, H, dtype=dtype)
    layer = HierarchicalSoftmax(H, Hierarchy.flat(WORDS), dtype=dtype, **options)
    target = torch.randint(WORDS, (N,))
    target[::5] = -100
    return layer, x, target


def by_torch(x, weight, bias, target, e, c):
    """Of each token, in torch's own operators."""
    z = linear(x, weight, bias)
    loss = cross_entropy(z, target, label_smoothing=e, reduction="none")
    return loss + torch.where(target == -100, 0, c * z.logsumexp(1).square()) if c else loss


def with_gradients(loss, *wrt):
    """The losses of tokens, and the gradients of a fixed random function of them."""
    weights = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
    return loss, *torch.autograd.grad((loss * weights).sum(), wrt)


@pytest.mark.parametrize("options", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.02)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_is_cross_entropy(options, bias, dtype):
    e, c = options
    layer, x, target = flat(dtype=dtype, bias=bias, label_smoothing=e, z_loss=c, reduction="none")
    ours = with_gradients(layer(x, target).loss, x, *layer.parameters())

    def torchs(wide):
        tensors = [t.detach().to(wide).requires_grad_() for t in (x, *layer.parameters())]
        loss = by_torch(*tensors, *[None] * (not bias), target, e, c)
        return with_gradients(loss, *tensors)

    if dtype == torch.float64:
        assert_close64(ours, torchs(dtype), "loss and gradients")
    else:
        assert_exact(ours, torchs(dtype), torchs(torch.float64), dtype, "loss and gradients")


@pytest.mark.parametrize("options", [(0.0, 0.0), (0.2, 0.05)], ids=str)
def test_gradcheck(options):
    layer, x, target = flat(4, 3, label_smoothing=options[0], z_loss=options[1])
    rank = torch.randperm(WORDS)

    def objective(x, weight, bias):
        return softmax_flat.log_prob(x, weight, bias, target, rank, layer._training)[1]

    assert torch.autograd.gradcheck(objective, (x, layer.weight, layer.bias))


def test_second_order():
    layer, x, target = flat(5, 3, label_smoothing=0.1, z_loss=0.01, reduction="none")
    results = []
    for loss in (layer(x, target).loss, by_torch(x, layer.weight, layer.bias, target, 0.1, 0.01)):
        (first,) = torch.autograd.grad(loss.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))
    assert_close64(*results, "gradients")


def test_words_in_another_order():
    """One class whose words are not in the order of their ids."""
    layer, x, target = flat()
    other = HierarchicalSoftmax(
        12, Hierarchy.classes(torch.arange(1, WORDS + 1), 1), dtype=torch.float64
    )
    assert other.hierarchy.nodes == 1 and other.hierarchy != layer.hierarchy
    with torch.no_grad():
        other.weight.copy_(layer.weight.flip(0))
        other.bias.copy_(layer.bias.flip(0))
    assert_close64(other(x, target).output, layer(x, target).output, "output")


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operator made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run it and look."""
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_has_the_logits_of_all_words():
    layer, x, target = flat(500, 4, torch.float32)
    operands = (x.detach(), layer.weight, layer.bias, target, layer.hierarchy_leaf_rank)
    with Largest() as seen:
        *_, saved = softmax_flat._forward(*operands, -100, 0.1, 0.01)
        softmax_flat._backward(torch.ones(500), *operands, -100, 0.1, 0.01, saved, True, True, True)
    assert seen.numel == 500 * TILE


def test_many_logits_alone_are_computed_in_tiles(monkeypatch):
    """Up to KEPT bytes the kernel that keeps them serves."""
    monkeypatch.setattr(softmax_flat, "KEPT", 4 * WORDS * 20)
    tree, x = Hierarchy.flat(WORDS), torch.zeros(21, 4)
    assert softmax_flat.serves(tree, x) and not softmax_flat.serves(tree, x[1:])
    assert softmax_flat.serves(tree, x[:20].double())
    for other in (Hierarchy.huffman([1] * WORDS), Hierarchy.huffman([1, 2])):
        assert not softmax_flat.serves(other, torch.zeros(10**6, 4))
    with fusedrnn.backend("reference"):
        assert not softmax_flat.serves(tree, x)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits(scale, dtype):
    e = 0.0 if dtype == torch.float16 else 0.1  # torch's own smoothing overflows there
    layer, x, target = flat(dtype=dtype, reduction="none", label_smoothing=e)
    with torch.no_grad():
        layer.weight.copy_(((torch.arange(WORDS) % 3 - 1) * scale)[:, None] / 12)
        x.fill_(1)
    ours = with_gradients(layer(x, target).loss, x, *layer.parameters())

    def torchs(wide):
        tensors = [t.detach().to(wide).requires_grad_() for t in (x, *layer.parameters())]
        return with_gradients(by_torch(*tensors, target, e, 0.0), *tensors)

    if dtype == torch.float64:
        assert_close64(ours, torchs(dtype), "loss and gradients")
    else:
        assert_exact(ours, torchs(dtype), torchs(torch.float64), dtype, "loss and gradients")


def test_masked_words_nan_and_ignored_tokens():
    """A tile of masked words, a token that is NaN, ignored ones that are anything."""
    layer, x, target = flat(reduction="none")
    target = torch.where(target == -100, target, target % 7 + 16)
    with torch.no_grad():
        layer.bias[:16] = -torch.inf
    clean = layer(x, target)
    assert_close64(clean.loss, cross_entropy(linear(x, layer.weight, layer.bias), target,
                                             reduction="none"), "loss")  # fmt: skip
    with torch.no_grad():
        x[1], x[0], x[5] = torch.nan, torch.inf, torch.nan
    spoilt = layer(x, target)
    assert spoilt.output[1].isnan()
    keep = torch.arange(20) != 1
    assert torch.equal(spoilt.output[keep], clean.output[keep])
    grads = torch.autograd.grad(spoilt.loss[keep].sum(), [x, *layer.parameters()])
    assert not grads[0][0].any() and not grads[0][5].any() and grads[0][2].any()


def test_only_the_gradients_that_are_needed():
    layer, x, target = flat()
    everything = [x, layer.weight, layer.bias]
    grads = torch.autograd.grad(layer(x, target).loss, everything)
    for tensor, grad in zip(everything, grads, strict=True):
        for other in everything:
            other.requires_grad_(other is tensor)
        (alone,) = torch.autograd.grad(layer(x, target).loss, tensor)
        assert torch.equal(alone, grad)
    with torch.no_grad():
        assert torch.equal(layer(x, target).output, layer(x.detach(), target).output)


def test_one_graph_and_replays():
    torch.compiler.reset()
    layer, x, target = flat(dtype=torch.float32, label_smoothing=0.1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for targets in (target, target.flip(0), torch.full_like(target, -100)):
        ours, eager = compiled(x, targets), layer(x, targets)
        torch.testing.assert_close(ours, eager, equal_nan=True)
        wrt = [x, *layer.parameters()]
        torch.testing.assert_close(*(torch.autograd.grad(r.loss, wrt) for r in (ours, eager)))
    with pytest.raises(RuntimeError, match=r"target\[3\] is 23; it must be in 0\.\.22 or -100"):
        compiled(x, target.index_fill(0, torch.tensor([3]), WORDS))


def test_autocast():
    layer, x, target = flat(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer(x, target)
    rounded = copy.deepcopy(layer).bfloat16().float()
    torch.testing.assert_close(ours, rounded(x.detach().bfloat16().float(), target))
    grads = torch.autograd.grad(ours.loss, [x, *layer.parameters()])
    assert all(g.dtype == torch.float32 for g in grads)


def test_no_tokens():
    layer, x, target = flat()
    loss = layer(x[:0], target[:0]).output.sum()
    for grad in torch.autograd.grad(loss, [x, *layer.parameters()]):
        assert not grad.any()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_opcheck(bias, dtype):
    layer, x, target = flat(bias=bias, dtype=dtype)
    tensors = (
        x.detach(),
        layer.weight.detach(),
        None if layer.bias is None else layer.bias.detach(),
    )
    rest, ops = (target, layer.hierarchy_leaf_rank, -100, 0.1, 0.01), torch.ops.fusedrnn
    opcheck(ops.flat_softmax_forward, (*tensors, *rest))
    output, _, saved = ops.flat_softmax_forward(*tensors, *rest)
    for needs in [(True, True, bias), (True, False, False), (False, True, False)]:
        opcheck(ops.flat_softmax_backward, (output, *tensors, *rest, saved, *needs))
