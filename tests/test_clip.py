"""Norm clipping of dense and sparse gradients: torch's, on the same gradients made dense."""

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_ as torchs

from fusedrnn import clip_grad_norm_

ORDERS = [2.0, 1.0, 3.5, math.inf, 0.0, -1.0, -math.inf]
each_way = pytest.mark.parametrize("foreach", [None, True, False])


def parameter(grad):
    p = torch.nn.Parameter(torch.zeros((), dtype=grad.dtype).expand(grad.shape))
    p.grad = grad
    return p


def dense(shape, dtype):
    return torch.randn(shape).to(dtype)


def sparse(rows, shape, dtype, *, coalesced=True):
    """Of these rows; one that comes twice counts as the sum, so it is not coalesced."""
    values = torch.randn(len(rows), *shape[1:]).to(dtype)
    return torch.sparse_coo_tensor(
        [rows], values, shape, is_coalesced=coalesced, check_invariants=False
    )


def mixture(dtype):
    """Gradients of every kind, and none."""
    grads = [
        dense((4, 3), dtype),
        sparse([1, 4, 5], (9, 2), dtype),
        sparse([0, 1, 2], (3, 2), dtype),  # all rows are there
        sparse([4, 1, 4, 4], (8, 5), dtype, coalesced=False),
        sparse([], (6, 2), dtype),
        sparse([2, 7], (10,), dtype),
        dense((), dtype),
    ]
    return [*map(parameter, grads), torch.nn.Parameter(torch.zeros(3))]


def densified(parameters):
    """Equals with dense gradients."""
    twins = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    for twin, p in zip(twins, parameters, strict=True):
        twin.grad = None if p.grad is None else p.grad.to_dense().clone()
    return twins


@each_way
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("max_norm", [0.3, 1e6])
def test_equals_torch_on_dense_gradients(order, max_norm, foreach, dtype):
    parameters = mixture(dtype)
    twins = densified(parameters)
    layouts = [p.grad.layout for p in parameters if p.grad is not None]
    norm = clip_grad_norm_(parameters, max_norm, order, foreach=foreach)
    wanted = torchs(twins, max_norm, order, foreach=foreach)
    # Sums of the same numbers in another order, and the zeros left out.
    torch.testing.assert_close(norm, wanted)
    assert layouts == [p.grad.layout for p in parameters if p.grad is not None]
    for p, twin in zip(parameters, twins, strict=True):
        assert (p.grad is None) == (twin.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad.to_dense(), twin.grad)
            assert p.grad.layout == torch.strided or p.grad.is_coalesced()


@each_way
@pytest.mark.parametrize("order", ORDERS)
def test_dense_gradients_get_torchs_bits(order, foreach, dtype):
    parameters = [parameter(dense(shape, dtype)) for shape in [(50, 7), (33,), (2, 3, 5)]]
    twins = densified(parameters)
    norm = clip_grad_norm_(parameters, 0.7, order, foreach=foreach)
    assert torch.equal(norm, torchs(twins, 0.7, order, foreach=foreach))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(parameters, twins, strict=True))


def test_only_values_that_are_there_are_scaled():
    p = parameter(sparse([1, 4], (10**12, 2), torch.float32))  # no memory would hold it dense
    values = p.grad.values()
    before = values.clone()
    norm = clip_grad_norm_(p, 0.5)
    torch.testing.assert_close(norm, before.norm())
    assert p.grad.values().data_ptr() == values.data_ptr()
    torch.testing.assert_close(p.grad.values(), before * (0.5 / (norm + 1e-6)))


def test_dtypes_mix():
    parameters = [p for d in (torch.float32, torch.float64) for p in mixture(d)]
    twins = densified(parameters)
    torch.testing.assert_close(clip_grad_norm_(parameters, 0.1), torchs(twins, 0.1))
    for p, twin in zip(parameters, twins, strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad.to_dense(), twin.grad)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_norms_that_are_not_finite(bad):
    p = parameter(sparse([1, 4], (9, 2), torch.float32))
    p.grad.values()[0, 0] = bad
    twin = densified([p])
    with pytest.raises(RuntimeError) as ours:
        clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    with pytest.raises(RuntimeError) as wanted:
        torchs(twin, 1.0, error_if_nonfinite=True)
    assert str(ours.value) == str(wanted.value)
    before = p.grad.values().clone()
    norm = clip_grad_norm_([p], 1.0)
    torch.testing.assert_close(norm, torchs(twin, 1.0), equal_nan=True)
    rest = ~before.isnan() & ~before.isinf()
    torch.testing.assert_close(p.grad.values()[rest], twin[0].grad[[1, 4]][rest], equal_nan=True)


def test_kinds_of_parameters_argument():
    p = parameter(torch.full((4,), 2.0))
    assert clip_grad_norm_(p, 9.0) == 4
    assert clip_grad_norm_((q for q in [p]), 9.0) == 4
    assert clip_grad_norm_([torch.nn.Parameter(torch.zeros(3))], 9.0) == 0
    assert clip_grad_norm_([], 9.0) == 0
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((q for q in []), 9.0)
