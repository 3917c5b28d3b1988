"""The error rule: against float64, at most twice the error that torch's own operator makes."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

FLOOR = 4
"""In units of the dtype's epsilon, relative to the truth's norm: what rounding the result itself to
the dtype, once or twice, may cost; the only allowance where torch happens to be exact."""


def error(value: Tensor, truth: Tensor) -> float:
    """The relative error in the 2-norm."""
    difference = (value.detach().double().cpu() - truth.detach().double().cpu()).norm()
    return float(difference / truth.detach().double().norm().clamp_min(1e-30).cpu())


def assert_exact(
    ours: object, torchs: object, truth: object, dtype: torch.dtype, what: str
) -> None:
    """Apply the rule to each tensor of three like structures."""
    triples = list(zip(tree_leaves(ours), tree_leaves(torchs), tree_leaves(truth), strict=True))
    assert triples
    for index, (o, t, exact) in enumerate(triples):
        assert o.dtype == t.dtype == dtype and o.shape == t.shape == exact.shape, (what, index)
        if exact.numel() == 0:
            continue
        mine, theirs = error(o, exact), error(t, exact)
        bound = 2 * theirs + FLOOR * torch.finfo(dtype).eps
        assert mine <= bound, f"{what}[{index}]: error {mine:.3g}, torch's {theirs:.3g}, {dtype}"


def assert_close64(ours: object, truth: object, what: str) -> None:
    """In float64, where nothing is more exact: equal but for the order of sums."""
    pairs = list(zip(tree_leaves(ours), tree_leaves(truth), strict=True))
    assert pairs
    for index, (o, t) in enumerate(pairs):
        assert o.shape == t.shape, (what, index)
        if t.numel():
            assert error(o, t) <= 1e-13, f"{what}[{index}]: {error(o, t):.3g}"
