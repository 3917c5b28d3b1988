"""AdaptiveLogSoftmaxWithLoss: torch's results and state_dict, and what torch's cannot do."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from exactness import assert_close64, assert_exact
from test_softmax import WHERE, gradients, needs_native
from torch import nn
from torch.nn.functional import linear
from trees import zipf

import fusedrnn
from fusedrnn import AdaptiveLogSoftmaxWithLoss, adaptive, softmax_score

CUTOFFS = {"two": (50, [10]), "three": (60, [7, 20]), "singletons": (12, [4, 5, 11])}
cutoffs = pytest.mark.parametrize("sizes", CUTOFFS.values(), ids=CUTOFFS)


@pytest.fixture(params=WHERE)
def place(request):
    """A device, with a backend that serves the softmax there in force."""
    name, device = request.param
    with fusedrnn.backend(name):
        yield torch.device(device)


def pair(V, ends, *, H=24, N=40, dtype=torch.float64, device="cpu", **options):
    """Ours and torch's with the same numbers, an input, and targets that hold every word."""
    like = {"dtype": dtype, "device": device}
    torchs = nn.AdaptiveLogSoftmaxWithLoss(H, V, ends, 2.0, **options, **like)
    ours = AdaptiveLogSoftmaxWithLoss(H, V, ends, 2.0, **options, **like)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(N, H, **like, requires_grad=True)
    return ours, torchs, x, (torch.randperm(max(N, V))[:N] % V).to(device)


@cutoffs
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_torchs_results(sizes, bias, dtype, place):
    ours, torchs, x, target = pair(*sizes, head_bias=bias, dtype=dtype, device=place)
    exact, x64 = copy.deepcopy(torchs).double(), x.detach().double().requires_grad_()
    values = []
    for module, inputs in [(ours, x), (torchs, x), (exact, x64)]:
        output, loss = module(inputs, target)
        every = module.log_prob(inputs)
        values.append((output, loss, every, *gradients(output, module, inputs)))
        values[-1] += tuple(gradients(every, module, inputs))
    if dtype == torch.float64:
        assert_close64(values[0], values[1], "results and gradients")
    else:
        assert_exact(*values, dtype, "results and gradients")


@cutoffs
def test_torchs_predictions(sizes, place):
    ours, torchs, x, _ = pair(*sizes, device=place)
    for scale in (0.1, 5.0):
        assert torch.equal(ours.predict(scale * x), torchs.predict(scale * x))
        assert torch.equal(ours.predict(scale * x), ours.log_prob(scale * x).argmax(1))


@cutoffs
def test_the_state_dict_is_torchs(sizes):
    V, ends = sizes
    for bias in (False, True):
        torch.manual_seed(1)
        ours = AdaptiveLogSoftmaxWithLoss(16, V, ends, head_bias=bias)
        torch.manual_seed(1)
        torchs = nn.AdaptiveLogSoftmaxWithLoss(16, V, ends, head_bias=bias)
        assert list(ours.state_dict()) == list(torchs.state_dict())
        for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
            assert torch.equal(a, b)  # initialised alike
        torchs.load_state_dict(ours.state_dict(), strict=True)
        ours.load_state_dict(torchs.state_dict(), strict=True)
    assert isinstance(ours, nn.AdaptiveLogSoftmaxWithLoss)


@cutoffs
def test_probabilities_sum_to_one(sizes, place):
    ours, _, x, _ = pair(*sizes, dtype=torch.float32, device=place)
    assert (ours.log_prob(3 * x).double().exp().sum(1) - 1).abs().max() <= 1e-6


@cutoffs
def test_ignored_tokens(sizes, place):
    ours, _, x, target = pair(*sizes, device=place)
    keep = torch.arange(40, device=place) % 3 != 1
    output, loss = ours(x, torch.where(keep, target, -100))
    short = ours(x[keep], target[keep])
    assert_close64((output[keep], loss), (short.output, short.loss), "output and loss")
    assert not output[~keep].any()
    assert_close64(gradients(loss, ours, x), gradients(short.loss, ours, x), "gradients")
    ours.reduction = "none"
    assert torch.equal(ours(x, target).loss, -ours(x, target).output)
    ours.reduction = "sum"
    assert_close64(ours(x, target).loss, -ours(x, target).output.sum(), "sum")
    assert not torch.stack(
        [g.abs().max() for g in gradients(ours(x, torch.full_like(target, -100)).loss, ours, x)]
    ).any()


def test_leading_dimensions(place):
    ours, torchs, x, target = pair(50, [10], device=place)
    output, loss = ours(x, target)
    shaped = ours(x.view(4, 10, 24), target.view(4, 10))
    assert torch.equal(shaped.output, output.view(4, 10)) and torch.equal(shaped.loss, loss)
    assert_close64(ours(x[3], target[3]), torchs(x[3], target[3]), "one token")
    assert ours.log_prob(x.view(4, 10, 24)).shape == (4, 10, 50)
    assert ours.predict(x[0]).shape == ()
    empty = ours(x[:0], target[:0])
    assert empty.output.shape == (0,) and empty.loss.isnan()


def test_second_order(place):
    """A penalty on gradients: torch's own differentiates them, and so must what replaces it."""
    ours, torchs, x, target = pair(60, [7, 20], device=place)
    results = []
    for module in (ours, torchs):
        for output in (module(x, target).output, module.log_prob(x)):
            (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            loss = first.square().sum() + output.sum()
            results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    assert_close64(results[:2], results[2:], "gradients")


def test_arguments_have_torchs_names():
    ours, torchs, x, target = pair(50, [10])
    assert_close64(ours(input_=x, target_=target), torchs(input_=x, target_=target), "results")


def test_words_in_any_order(place):
    counts = zipf(60)
    rank = torch.empty_like(counts).scatter_(
        0, counts.argsort(descending=True, stable=True), torch.arange(60)
    )
    ours, torchs, x, target = pair(60, [7, 20], device=place)
    other = AdaptiveLogSoftmaxWithLoss(
        24, 60, [7, 20], 2.0, counts=counts, dtype=torch.float64, device=place
    )
    other.load_state_dict({**torchs.state_dict(), "word_rank": rank})
    rank = rank.to(place)
    assert_close64(other(x, target).output, torchs(x, rank[target]).output, "output")
    assert_close64(other.log_prob(x), torchs.log_prob(x)[:, rank], "log_prob")
    assert torch.equal(rank[other.predict(5 * x)], torchs.predict(5 * x))
    target[3] = -100
    assert other(x, target).output[3] == 0


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(low, place):
    """torch's own crashes here: pytorch#44724."""
    ours, _, x, target = pair(60, [7, 20], dtype=torch.float32, device=place)
    with torch.autocast(place.type, low):
        output, loss = ours(x, target)
        every, words = ours.log_prob(x), ours.predict(x)
    assert output.dtype == loss.dtype == every.dtype == torch.float32
    assert words.dtype == torch.int64
    rounded = copy.deepcopy(ours).to(low)
    truth = rounded(x.detach().to(low), target)
    torch.testing.assert_close(output.to(low), truth.output)
    for grad in gradients(loss, ours, x):
        assert grad.dtype == torch.float32


@cutoffs
def test_one_graph(sizes, place):
    """torch's own breaks the graph: pytorch#194765."""
    torch.compiler.reset()
    ours, _, x, target = pair(*sizes, dtype=torch.float32, device=place)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for targets in (target, target.flip(0), torch.full_like(target, -100)):
        torch.testing.assert_close(compiled(x, targets), ours(x, targets), equal_nan=True)
        pairs = zip(
            gradients(compiled(x, targets).loss, ours, x),
            gradients(ours(x, targets).loss, ours, x),
            strict=True,
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b)
            assert a.isfinite().all()


@needs_native
def test_compiled_targets_are_checked():
    torch.compiler.reset()
    ours, _, x, target = pair(50, [10], dtype=torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for bad in (-1, 50):
        with pytest.raises(RuntimeError, match="target|out of bounds"):
            compiled(x, target.index_fill(0, torch.tensor([3]), bad))


def test_every_parameter_has_a_gradient(place):
    """Also those of clusters that no target is in; torch's have none."""
    ours, torchs, x, _ = pair(60, [7, 20], device=place)
    few = torch.zeros(40, dtype=torch.int64, device=place)
    ours(x, few).loss.backward()
    torchs(x, few).loss.backward()
    assert all(p.grad is not None for p in ours.parameters())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert_close64(a.grad, torch.zeros_like(a) if b.grad is None else b.grad, "gradient")


def test_copies_and_meta():
    ours, _, x, target = pair(60, [7, 20], dtype=torch.float32)
    loss = ours(x, target).loss
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, target).loss, loss)
    layer = AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(x, target).loss.isfinite()


def test_convert():
    torchs = nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], 3.0, head_bias=True)
    model = nn.ModuleDict({"out": torchs, "own": AdaptiveLogSoftmaxWithLoss(24, 60, [7])})
    before = dict(model.named_parameters())
    x, target = torch.randn(5, 24), torch.randint(60, (5,))
    wanted = torchs(x, target)
    name = "AdaptiveLogSoftmaxWithLoss"
    result = fusedrnn.convert(model)
    assert result.replaced == {"out": f"torch.nn.{name} -> fusedrnn.{name}"} and not result.left
    assert type(model["out"]) is AdaptiveLogSoftmaxWithLoss
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[n] is before[n] for n in before)
    torch.testing.assert_close(tuple(model["out"](x, target)), tuple(wanted))
    model.eval()
    assert fusedrnn.convert(torchs.half()).module.head.weight is torchs.head.weight


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, t: m(x[:, :3], t), ValueError, r"input has shape \(40, 3\)"),
        (lambda m, x, t: m(x, t[:5]), ValueError, r"target has shape \(5,\)"),
        (lambda m, x, t: m(x, t.int()), TypeError, r"target is torch\.int32"),
        (lambda m, x, t: m(x, t + 50), IndexError, r"0\.\.49, and ignore_index is -100"),
        (lambda m, x, t: m(x, t - 51), IndexError, "target holds -"),
        (lambda m, x, t: m.log_prob(x.float()), TypeError, "input is torch.float32"),
        (lambda m, x, t: m.predict(x[:, :3]), ValueError, "in_features, 24"),
    ],
)
def test_bad_input(call, error, message):
    ours, _, x, target = pair(50, [10])
    with pytest.raises(error, match=message):
        call(ours, x, target)


def test_bad_arguments():
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        AdaptiveLogSoftmaxWithLoss(4, 9, [3], reduction="avg")
    with pytest.raises(ValueError, match="counts has 8 words"):
        AdaptiveLogSoftmaxWithLoss(4, 9, [3], counts=[1] * 8)


PROCESS = """
    import sys, torch, fusedrnn
    from torch import distributed, nn
    from torch.nn.parallel import DistributedDataParallel

    rank = int(sys.argv[1])
    distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank,
                                   world_size=2)
    torch.set_num_threads(1)
    for make in (
        lambda: fusedrnn.AdaptiveLogSoftmaxWithLoss(8, 30, [5, 12]),
        lambda: fusedrnn.HierarchicalSoftmax(8, fusedrnn.Hierarchy.classes(range(1, 31))),
    ):
        torch.manual_seed(3)
        layer = make().double()
        x, target = torch.randn(16, 8).double(), torch.randint(30, (16,))
        target[:8] %= 5  # one process meets the head alone, and no cluster
        mine = slice(8 * rank, 8 * rank + 8)
        parallel = DistributedDataParallel(layer)
        for step in range(2):  # the second finds what the first left unfinished
            parallel.zero_grad()
            parallel(x[mine], target[mine]).loss.backward()
        ours = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        layer(x, target).loss.backward()
        for a, p in zip(ours, layer.parameters()):
            torch.testing.assert_close(a, p.grad)
    distributed.destroy_process_group()
    print("done")
"""


@needs_native
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(tmp_path):
    """DistributedDataParallel without find_unused_parameters: the gradients of the whole batch."""
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(PROCESS))
    root = os.path.dirname(os.path.dirname(fusedrnn.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path / "meet")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "done" in output, output


@needs_native
@pytest.mark.parametrize("cutoffs", [[6, 20, 30], [5, 6, 30], [49], [40, 41, 49]], ids=str)
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("block", [3, 64])
def test_words_scored_in_blocks_are_the_same(cutoffs, renamed, block, dtype, monkeypatch):
    """In place, or beside where words have another order; clusters of one word; several blocks."""
    counts = torch.randperm(50) + 1 if renamed else None
    ours = AdaptiveLogSoftmaxWithLoss(24, 50, cutoffs, 2.0, counts=counts, dtype=dtype)
    x = 3 * torch.randn(10, 24).to(dtype)
    apart = ours.log_prob(x).detach()
    monkeypatch.setattr(adaptive, "_LARGE", 0)
    monkeypatch.setattr(softmax_score, "_BLOCK", block)
    with torch.no_grad():
        found = ours.log_prob(x)
    bits = torch.finfo(dtype).eps
    torch.testing.assert_close(found, apart, rtol=8 * bits, atol=8 * bits)


@needs_native
def test_what_cannot_be_scored_in_place():
    op = torch.ops.fusedrnn.hierarchical_log_softmax.native_in_place
    for hierarchy, message in (
        (fusedrnn.Hierarchy.from_clusters([1, 0, 1, 0]), "words in the order of leaves"),
        (fusedrnn.Hierarchy.balanced(27, arity=3), "words in the order of leaves"),
        (fusedrnn.Hierarchy.balanced(8), "rows, but the hierarchy needs"),
    ):
        root, out = torch.randn(2, hierarchy.root_rows), torch.randn(2, hierarchy.words)
        with pytest.raises(RuntimeError, match=message):
            op(root, *hierarchy.tensors().values(), out=out)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(1, 5, 3), (9, 200, 33), (96, 70, 8), (97, 1, 40)], ids=str)
def test_logits_into_the_columns_of_a_wider_matrix(size, dtype):
    """Few rows and many, beside columns that stay as they were."""
    N, V, H = size
    x, weight = torch.randn(N, H, dtype=dtype), torch.randn(V, H, dtype=dtype)
    wide = torch.full((N, V + 7), 5.0, dtype=dtype)
    for bias in (None, torch.randn(V, dtype=dtype)):
        torch.ops.fusedrnn.word_logits(x, weight, bias, out=wide[:, 3 : V + 3])
        torch.testing.assert_close(wide[:, 3 : V + 3], linear(x, weight, bias))
        assert (wide[:, :3] == 5).all() and (wide[:, V + 3 :] == 5).all()
    for wrong in (wide[:, :V].T, wide[:, :V].half()):
        with pytest.raises(RuntimeError, match="out must be"):
            torch.ops.fusedrnn.word_logits(x, weight, None, out=wrong)
