"""Row-sparse gradients of the hierarchical softmax: the dense ones' rows, and what takes them."""

import copy
import pickle

import pytest
import torch
from exactness import assert_close64
from test_softmax import WHERE, check_gradients, gradients, needs_native, problem
from torch.library import opcheck
from trees import TREES, mixed, trees

import fusedrnn
from fusedrnn import HierarchicalSoftmax, Hierarchy


@pytest.fixture(params=WHERE)
def place(request):
    """A device, with a backend that serves the softmax there in force."""
    name, device = request.param
    with fusedrnn.backend(name):
        yield torch.device(device)


def twins(tree, N, H, few=None, **options):
    """A layer with dense gradients, its equal with sparse ones, input, and targets: few words."""
    dense, x, target = problem(tree, N, H, **options)
    sparse = copy.deepcopy(dense)
    sparse.sparse_grad = True
    return dense, sparse, x, target if few is None else target % few


def met_rows(layer, target):
    """The rows of the nodes on the targets' paths."""
    rows = layer.hierarchy.tensors()["node_rows"].tolist()
    nodes = {node for word in target.tolist() for node, _ in layer.hierarchy.path(word)}
    return sorted(r for node in nodes for r in range(rows[node], rows[node + 1]))


def backward(layer, x, target):
    """Gradients of parameters, left in .grad."""
    weights = torch.linspace(-1, 2, target.numel(), dtype=x.dtype, device=x.device)
    (layer(x, target).output * weights).sum().backward()


@trees
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_the_rows_of_the_dense_gradient(tree, bias, dtype, place):
    for few in (1, 4, None):
        dense, sparse, x, target = twins(tree(), 30, 7, few, bias=bias, dtype=dtype, device=place)
        a, b = dense(x, target).output, sparse(x, target).output
        assert torch.equal(a, b)
        (dx, *wanted), (dx_sparse, *ours) = gradients(a, dense, x), gradients(b, sparse, x)
        assert torch.equal(dx, dx_sparse)
        rows = met_rows(dense, target)
        for full, grad in zip(wanted, ours, strict=True):
            assert grad.layout == torch.sparse_coo and grad.shape == full.shape
            assert grad.is_coalesced() and grad.dtype == full.dtype
            assert grad.indices().tolist() == [rows]
            assert torch.equal(grad.values(), full[rows])


@needs_native
@pytest.mark.parametrize("name", ["flat", "huffman-2", "chain", "singletons", "mixed"])
def test_gradcheck(name):
    layer, x, target = problem(TREES[name](), 5, 3)
    # Dense gradients of the parameters are compared: _Dense makes them so.
    check_gradients(layer, x, target % 4, leaf=_Dense.apply, sparse=True)


class _Dense(torch.autograd.Function):
    """The identity, whose gradient is dense."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        assert grad.is_sparse
        return grad.to_dense()


@trees
def test_gradients_add_up(tree, place):
    """Over two backward calls with different rows; coalesced after each."""
    dense, sparse, x, target = twins(tree(), 12, 5, device=place)
    for few in (2, 5, None):
        some = target if few is None else target % few
        backward(dense, x.detach(), some)
        backward(sparse, x.detach(), some)
        for full, ours in zip(dense.parameters(), sparse.parameters(), strict=True):
            assert ours.grad.is_coalesced()
            assert torch.equal(ours.grad.to_dense(), full.grad)


@needs_native
def test_one_gradient_is_not_copied():
    """It is the kernel's own memory that the optimizer meets, and still coalesced."""
    _, layer, x, target = twins(mixed(), 12, 5)
    seen = []
    layer.weight.register_hook(lambda grad: seen.append(grad.values().data_ptr()))
    for model in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        backward(model, x, target)
        assert model.weight.grad.is_coalesced() and model.bias.grad.is_coalesced()
    assert seen == [layer.weight.grad.values().data_ptr()]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_step_as_with_dense_gradients(make, place):
    dense, sparse, x, target = twins(TREES["sqrt"](), 20, 6, device=place)
    optimizers = [make(layer.parameters()) for layer in (dense, sparse)]
    for few in (3, None, 8):
        some = target if few is None else target % few
        for layer, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            backward(layer, x.detach(), some)
            fusedrnn.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
    assert_close64(list(sparse.parameters()), list(dense.parameters()), "parameters")


def test_sparse_adam(place):
    """As Adam on the rows it meets; the others stay as they are."""
    dense, sparse, x, target = twins(TREES["sqrt"](), 20, 6, few=5, device=place)
    before = copy.deepcopy(sparse)
    for layer, make in [(dense, torch.optim.Adam), (sparse, torch.optim.SparseAdam)]:
        optimizer = make(list(layer.parameters()), lr=0.1, eps=1e-30)  # each adds it elsewhere
        for _ in range(3):
            optimizer.zero_grad()
            backward(layer, x.detach(), target)
            optimizer.step()
    rows = met_rows(sparse, target)
    rest = [r for r in range(sparse.hierarchy.rows) if r not in rows]
    for ours, full, old in zip(*(m.parameters() for m in (sparse, dense, before)), strict=True):
        torch.testing.assert_close(ours[rows], full[rows])
        assert torch.equal(ours[rest], old[rest]) and not torch.equal(ours[rows], old[rows])


def test_no_tokens(place):
    _, layer, x, target = twins(mixed(), 0, 4, device=place)
    for grad in gradients(layer(x, target).output, layer, x)[1:]:
        assert grad.is_sparse and grad.values().numel() == 0


def test_only_the_gradients_that_are_needed(place):
    _, layer, x, target = twins(mixed(), 9, 4, device=place)
    layer.bias.requires_grad_(False)
    backward(layer, x.detach(), target)
    assert layer.weight.grad.is_sparse and layer.bias.grad is None
    with torch.no_grad():
        assert not layer(x, target).output.requires_grad


def test_autocast(place):
    dense, layer, x, target = twins(mixed(), 20, 8, few=1, dtype=torch.float32, device=place)
    for model in (dense, layer):
        with torch.autocast(place.type, torch.bfloat16):
            loss = model(x, target).loss
        loss.backward()
    assert layer.weight.grad.is_coalesced()
    for ours, full in zip(layer.parameters(), dense.parameters(), strict=True):
        assert ours.grad.is_sparse and ours.grad.dtype == torch.float32
        assert torch.equal(ours.grad.to_dense(), full.grad)


def test_compiled_models_run_it_outside_their_graphs(place):
    torch.compiler.reset()  # no graph of another test is in the way
    _, layer, x, target = twins(mixed(), 20, 8, few=4, device=place)
    compiled = torch.compile(lambda x, target: layer(2 * x, target).loss * 3, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, target), [x, *layer.parameters()])
    eager = torch.autograd.grad(layer(2 * x, target).loss * 3, [x, *layer.parameters()])
    assert torch.equal(ours[0], eager[0])
    for a, b in zip(ours[1:], eager[1:], strict=True):
        assert a.is_sparse and torch.equal(a.to_dense(), b.to_dense())
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"sparse_grad=True\) runs outside compiled graphs"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x, target)
    with torch.no_grad():  # nothing sparse is made: one graph
        output = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, target).output
        assert torch.equal(output, layer(x, target).output)


@needs_native
def test_opcheck(dtype):
    layer, x, target = problem(Hierarchy.classes([1] * 20, 5, "equal"), 7, 5, dtype=dtype)
    ops = torch.ops.fusedrnn
    tensors = [t.detach() for t in (x, layer.weight, layer.bias)]
    rest = (target % 8, *layer._tree())
    sizes = (layer.hierarchy.max_path_rows, layer.hierarchy.depth)
    output, _, saved, plan = ops.hierarchical_softmax_forward.native(
        *tensors, *rest, *sizes, -100, 0.0, 0.0, True
    )
    for needs in [(True, True, True), (False, True, False), (True, False, False)]:
        opcheck(
            ops.hierarchical_softmax_backward.native,
            (torch.randn_like(output), *tensors[:2], *rest, saved, plan, -100, *needs, True, None),
        )


@needs_native
def test_same_input_same_bits():
    _, layer, x, target = twins(TREES["sqrt"](), 500, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(layer(x, target).output, layer, x)[1:])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.indices(), b.indices()) and torch.equal(a.values(), b.values())


def test_the_state_dict_is_the_same():
    dense = HierarchicalSoftmax(5, mixed())
    sparse = HierarchicalSoftmax(5, mixed(), sparse_grad=True)
    sparse.load_state_dict(dense.state_dict())
    assert list(sparse.state_dict()) == list(dense.state_dict())
    assert "sparse_grad=True" in repr(sparse) and "sparse_grad" not in repr(dense)
