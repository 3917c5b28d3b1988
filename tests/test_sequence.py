"""The sequence op: every cell of the registry against the reference, gradients by gradcheck."""

import pytest
import torch
from exactness import assert_close64
from torch.library import opcheck

import fusedrnn
from fusedrnn import _native, ops, reference
from fusedrnn.cells import CELLS

needs_native = pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def problem(cell, T, B, H, *, P=None, bias=True, dtype=torch.float64, device="cpu"):
    """Random tensors for one call: gx, weight_hh, bias_hh, weight_hr, h0, c0."""
    G, S, width = len(cell.gates), len(cell.states), P or H
    new = {"dtype": dtype, "device": device}
    tensors = [
        torch.randn(T, B, G * H, **new),
        torch.randn(G * H, width, **new) / width**0.5,
        torch.randn(G * H, **new) if bias else None,
        torch.randn(P, H, **new) / H**0.5 if P else None,
        torch.randn(B, width, **new),
        torch.randn(S - 1, B, H, **new),
    ]
    return [None if t is None else t.requires_grad_() for t in tensors]


def run(cell, tensors, lengths, reverse):
    """Outputs and all gradients of a fixed random function of them."""
    outputs = ops.sequence(cell, *tensors, lengths, reverse)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=o.dtype).to(o.device) for o in outputs]
    wrt = [t for t in tensors if t is not None]
    live = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    outs, grads = zip(*live, strict=True)
    values = torch.autograd.grad(outs, wrt, grads, allow_unused=True)
    return outputs, [
        torch.zeros_like(t) if v is None else v for v, t in zip(values, wrt, strict=True)
    ]


@cells
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 3, 7), (4, 33, 17), (3, 2, 131)])
def test_equals_reference(cell, reverse, ragged, sizes, device):
    T, B, H = sizes
    lengths = torch.randint(0, T + 1, (B,), device=device) if ragged else None
    for bias in (True, False):
        tensors = problem(cell, T, B, H, bias=bias, device=device)
        ours = run(cell, tensors, lengths, reverse)
        with fusedrnn.backend("reference"):
            truth = run(cell, tensors, lengths, reverse)
        assert_close64(ours, truth, cell.name)


@cells
@needs_native
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck_of_the_native_kernel(cell, reverse, ragged):
    lengths = torch.tensor([3, 1, 0]) if ragged else None
    P = 2 if cell.name == "lstm" else None
    for width in {None, P}:
        tensors = problem(cell, 3, 3, 5, P=width)
        wrt = [t for t in tensors if t is not None and t.numel()]

        def call(*values, tensors=tensors):
            it = iter(values)
            filled = [t if t is None or not t.numel() else next(it) for t in tensors]
            y, hn, cn = ops.sequence(cell, *filled, lengths, reverse)
            return (y, hn, cn) if cn.numel() else (y, hn)

        with fusedrnn.backend("cpu"):
            assert torch.autograd.gradcheck(call, wrt)


@cells
def test_lengths_equal_rows_run_alone(cell, device):
    T, B, H = 6, 4, 5
    lengths = torch.tensor([6, 1, 4, 2], device=device)
    gx, W, b, _, h0, c0 = problem(cell, T, B, H, device=device)
    for reverse in (False, True):
        y, hn, cn = ops.sequence(cell, gx, W, b, None, h0, c0, lengths, reverse)
        for row, n in enumerate(lengths.tolist()):
            pick = slice(row, row + 1)
            alone = ops.sequence(
                cell, gx[:n, pick], W, b, None, h0[pick], c0[:, pick], None, reverse
            )
            assert_close64([y[:n, pick], hn[pick], cn[:, pick]], list(alone), cell.name)
            assert (y[n:, row] == 0).all()


@cells
def test_an_empty_row_keeps_its_state(cell, device):
    gx, W, b, _, h0, c0 = problem(cell, 3, 2, 5, device=device)
    lengths = torch.tensor([0, 3], device=device)
    y, hn, cn = ops.sequence(cell, gx, W, b, None, h0, c0, lengths)
    assert torch.equal(hn[0], h0[0]) and torch.equal(cn[:, 0], c0[:, 0]) and (y[:, 0] == 0).all()


@cells
def test_what_needs_no_gradient_is_not_computed(cell, device):
    tensors = problem(cell, 3, 2, 5, device=device)
    for kept in (0, 1, 2, 4):
        some = [
            None if t is None else t.detach().requires_grad_(i == kept)
            for i, t in enumerate(tensors)
        ]
        y, _, _ = ops.sequence(cell, *some)
        y.sum().backward()
        got = [i for i, t in enumerate(some) if t is not None and t.grad is not None]
        assert got == [kept]
    with torch.no_grad():
        assert not ops.sequence(cell, *tensors)[0].requires_grad


@needs_native
def test_double_backward_through_the_kernels_is_an_error():
    tensors = problem(CELLS["gru"], 3, 2, 5)
    with fusedrnn.backend("cpu"):
        y, _, _ = ops.sequence(CELLS["gru"], *tensors)
    (g,) = torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_double_backward_through_the_reference():
    tensors = problem(CELLS["gru"], 2, 2, 3)
    with fusedrnn.backend("reference"):
        wrt = [t for t in tensors if t is not None and t.numel()]

        def call(*values):
            it = iter(values)
            return ops.sequence(
                CELLS["gru"], *(t if t is None or not t.numel() else next(it) for t in tensors)
            )[0]

        assert torch.autograd.gradgradcheck(call, wrt)


@cells
@needs_native
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(cell, ragged):
    P = 2 if cell.name == "lstm" else None
    for width in {None, P}:
        gx, W, b, r, h0, c0 = problem(cell, 4, 2, 3, P=width, dtype=torch.float32)
        lengths = torch.tensor([2, 4]) if ragged else None
        forward = (cell.name, gx, W, b, r, h0, c0, lengths, ragged, True)
        forward = [t.detach() if isinstance(t, torch.Tensor) else t for t in forward]
        opcheck(torch.ops.fusedrnn.sequence_forward.native, forward)
        opcheck(torch.ops.fusedrnn.sequence_forward.native, [*forward[:-1], False])
        y, hn, cn, saved, kept, _ = torch.ops.fusedrnn.sequence_forward.native(*forward)
        _, _, W, _, r, h0, c0, *_ = forward
        grads = (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn))
        for some in (grads, (grads[0], None, None)):
            opcheck(
                torch.ops.fusedrnn.sequence_backward.native,
                (cell.name, *some, y, h0, c0, W, r, lengths, ragged, saved, kept),
            )


def test_many_steps(device):
    """More steps than fit in 16 bits (torch.nn on cuDNN fails there, pytorch#133751)."""
    cell, T = CELLS["rnn_tanh"], 70_000
    if fusedrnn._backend.current() == "reference":
        T = 700  # one Python step each; the kernels are the point
    gx, W, b, _, h0, c0 = problem(cell, T, 1, 2, device=device)
    half = T // 2
    y, hn, cn = ops.sequence(cell, gx, W, b, None, h0, c0)
    y1, h1, c1 = ops.sequence(cell, gx[:half], W, b, None, h0, c0)
    y2, h2, c2 = ops.sequence(cell, gx[half:], W, b, None, h1, c1)
    assert torch.equal(y, torch.cat([y1, y2])) and torch.equal(hn, h2)
    y.sum().backward()
    assert torch.isfinite(gx.grad).all()


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: lambda t: t[:, :-1]}, "weight_hh must be"),
        ({2: lambda t: t[:-1]}, "bias_hh has shape"),
        ({4: lambda t: t[:-1]}, "h0 has shape"),
        ({5: lambda t: t[:, :-1]}, "c0 has shape"),
        ({4: lambda t: t.float()}, "matching dtypes"),
        ({0: lambda t: t[0]}, "gx must be"),
    ],
)
def test_the_op_checks_what_would_read_out_of_bounds(change, message):
    tensors = [None if t is None else t.detach() for t in problem(CELLS["lstm"], 3, 2, 5)]
    for index, how in change.items():
        tensors[index] = how(tensors[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fusedrnn.sequence_forward.native("lstm", *tensors, None, False, True)


def test_reference_rounds_like_the_kernels_in_16_bits():
    """State and accumulation are float32; what is stored and what meets the weights is 16 bits."""
    for cell in CELLS.values():
        tensors = [
            None if t is None else t.detach().bfloat16().requires_grad_()
            for t in problem(cell, 12, 4, 16)
        ]
        y, _, _ = reference.sequence(cell, *tensors, None, False)
        z, _, _ = ops.sequence(cell, *tensors)
        assert y.dtype == z.dtype == torch.bfloat16
        assert (y.float() - z.float()).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps
