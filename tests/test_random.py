"""Random numbers by counter: their distribution, and that a run can be repeated."""

import math

import pytest
import torch
from exactness import assert_close64

import fusedrnn
from fusedrnn import random

T, B, I, H = 40, 16, 3, 64


def masks(p, seed=1, stream=random.DROP):
    """[T, B, H] of one seed."""
    return torch.stack([random.kept(torch.tensor(seed), t, B, H, stream, p) for t in range(T)])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_that_is_kept(p):
    """Over all, and along every row, unit and step: within five standard deviations."""
    kept = masks(p).double()
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        count = math.prod(kept.shape[a] for a in axes)
        spread = 5.5 * (p * (1 - p) / count) ** 0.5
        assert (kept.mean(axes) - (1 - p)).abs().max() <= spread + 1e-9, axes


def test_neighbours_do_not_go_together():
    """Correlation between neighbouring steps, rows, units, streams and seeds."""
    signs = masks(0.5).double() * 2 - 1
    others = [masks(0.5, seed=1, stream=s).double() * 2 - 1 for s in (random.KEEP_H, random.KEEP_C)]
    others += [masks(0.5, seed=s).double() * 2 - 1 for s in (0, 2, 1 << 32, -1)]
    pairs = [
        (signs.narrow(a, 0, n - 1), signs.narrow(a, 1, n - 1)) for a, n in enumerate((T, B, H))
    ]
    for one, other in pairs + [(signs, other) for other in others]:
        assert (one * other).mean().abs() < 5 / one.numel() ** 0.5


@pytest.mark.skipif(fusedrnn._native.MISSING is not None, reason="no native library")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_library_draws_the_same_factors(p, dtype):
    like = torch.empty(B, H + 1, dtype=dtype)
    for seed in (0, 5, -(2**63), 2**63 - 1):
        seeds = torch.tensor([3, seed])  # the steps' is of no influence
        ours = random.meeting(seeds, like, p, "cpu")
        assert torch.equal(ours, random.meeting(seeds, like, p))


def layer(**options):
    cls = {"lstm": fusedrnn.LSTM, "gru": fusedrnn.GRU}[options.pop("cls", "lstm")]
    return cls(I, H, 2, bidirectional=True, zoneout=0.3, recurrent_dropout=0.2, **options)


@pytest.mark.parametrize("cls", ["lstm", "gru"])
def test_a_run_can_be_repeated(cls):
    model, x = layer(cls=cls), torch.randn(T, B, I)
    torch.manual_seed(3)
    first, second = model(x)[0], model(x)[0]
    torch.manual_seed(3)
    again = model(x)[0]
    assert torch.equal(first, again) and not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_backward_draws_what_forward_drew(threads):
    """With the op run again, too: gradients are those of that one forward, bit for bit."""
    model, x = layer(), torch.randn(T, B, I, requires_grad=True)
    grads, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for recompute in ("none", "none", "gates"):
            model.recompute = recompute
            torch.manual_seed(3)
            loss = model(x)[0].square().sum()
            torch.manual_seed(4)  # of no influence
            grads.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    finally:
        torch.set_num_threads(before)
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_chunks_draw_what_the_whole_draws():
    """The mask for all steps, and those of each step."""
    model = fusedrnn.GRU(I, H, zoneout=0.5, recurrent_dropout=0.2, variational_dropout=0.3)
    model, x = model.double(), torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = []
    for model.recompute in ("none", "chunks"):
        torch.manual_seed(3)
        found.append(model(x)[0])
    assert_close64(*found, "in chunks")
    found[1].sum().backward()
    assert x.grad.isfinite().all()
