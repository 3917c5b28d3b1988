"""What the host builds of the kernels with W_hh on chip are both asked (cluster, grid).

The fixture ``on`` of each test file takes how the problem is shared among CTAs, and the order of
what happens; after it the ops run on that kernel.
"""

import test_cuda_host as stepwise
import torch
from exactness import FLOOR, assert_exact, error
from sequence_case import CELLS, Case, check, inputs, native, plain, run, truth
from torch.utils._pytree import tree_leaves

SERVED = tuple(name for name, cell in CELLS.items() if cell.resident)
CLUSTERED = tuple(name for name in SERVED if CELLS[name].clustered)
DTYPES = (torch.bfloat16, torch.float16)
KINDS = ("lstm", "lstm_coupled", "gru", "rnn_tanh")
"""A cell of each kernel that they have."""


def judge(cell, case, dtype):
    """The error rule for every output and gradient."""
    tensors = inputs(cell, case, dtype)
    theirs = run(plain, cell, case, tensors, dtype)
    check(
        run(stepwise.sequence, cell, case, tensors, dtype),
        truth(cell, case, tensors),
        theirs,
        dtype,
        cell.name,
    )


def judge_float32(host, cell, case):
    """The error rule for products of parts, on tensor cores that cut their sums off; and for those
    of numbers rounded to tf32 the rule with tf32's epsilon, which is that of float16.

    Returns the largest error of each, over all outputs and gradients.
    """
    tensors = inputs(cell, case, torch.float32)
    theirs = run(plain, cell, case, tensors, torch.float32)
    true, worst = truth(cell, case, tensors), []
    for tf32, eps in ((False, torch.float32), (True, torch.float16)):
        host.tensor_cores(tf32=tf32, cut=True)
        got = run(stepwise.sequence, cell, case, tensors, torch.float32)
        host.tensor_cores()
        assert got.keys() == true.keys()
        errors = {key: error(got[key], true[key]) for key in got if got[key].numel()}
        for key, mine in errors.items():
            bound = 2 * error(theirs[key], true[key]) + FLOOR * torch.finfo(eps).eps
            assert mine <= bound, f"{cell.name} {key}, tf32 {tf32}: {mine:.3g}, at most {bound:.3g}"
        worst.append(max(errors.values()))
    return worst


def same_bits_in_any_order(on, shared, name, case, dtype=torch.bfloat16):
    """What is read before it has come, or overwritten before it was read, would change bits."""
    tensors, results = inputs(CELLS[name], case, dtype), []
    for order in range(6):  # ascending, descending, random ones
        on(shared, order)
        results.append(run(stepwise.sequence, CELLS[name], case, tensors, dtype))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


def both_directions_are_two_calls(name, case):
    """Bit for bit."""
    tensors = inputs(CELLS[name], case, torch.float16)
    together, apart = (
        stepwise.round_trip(stepwise.Host(7, apart=one), CELLS[name], case, tensors)
        for one in (False, True)
    )
    for a, b in zip(tree_leaves(together), tree_leaves(apart), strict=True):
        assert torch.equal(a, b)


def an_absent_gradient_is_zero(name, missing):
    """``missing``: dy, dhn or dcn."""
    cell, case, device = CELLS[name], Case(3, 2, 5, directions=2), stepwise.Host()
    gx, W, b, R, V, seed, h0, c0, *spans = given = native(case, inputs(cell, case, torch.float16))
    y, hn, cn, saved, cells, _ = device.forward(cell.name, *given, True)
    dout = {"dy": torch.ones_like(y), "dhn": torch.ones_like(hn), "dcn": torch.ones_like(cn)}
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    with_zero = device.backward(name, *(dout | {missing: dout[missing] * 0}).values(), *rest)
    without = device.backward(name, *(dout | {missing: None}).values(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(with_zero, without, strict=True))


def inference_is_training(name="lstm", H=35, dtype=torch.bfloat16):
    """Bit for bit."""
    case = Case(4, 3, H, directions=2, lengths=(4, 2, 3), reset="zeros")
    given = native(case, inputs(CELLS[name], case, dtype))
    saved, unsaved = (stepwise.Host().forward(name, *given, save)[:3] for save in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(saved, unsaved, strict=True))


def states_pass_through_no_steps(name):
    """Forward and backward."""
    case = Case(0, 3, 4, directions=2, reset="given")
    given = native(case, inputs(CELLS[name], case, torch.float16))
    gx, W, b, R, V, seed, h0, c0, *spans = given
    y, hn, cn, saved, cells, _ = stepwise.Host().forward(name, *given, True)
    assert y.numel() == 0 and torch.equal(hn, h0) and torch.equal(cn, c0)
    rest = (y, h0, c0, W, R, V, seed, *spans, saved, cells)
    _, dh0, dc0, _, *dreset = stepwise.Host().backward(name, None, hn, cn, *rest)
    assert torch.equal(dh0, hn) and torch.equal(dc0, cn)
    assert not any(t.any() for t in dreset)


def it_is_needed(on, shared, case, leave_out, part, name="lstm"):
    """Without this part of the protocol runs go wrong, and these tests see it."""
    cell, seen = CELLS[name], 0
    tensors = inputs(cell, case, torch.bfloat16)
    theirs = run(plain, cell, case, tensors, torch.bfloat16)
    true = truth(cell, case, tensors)
    leave_out(part)
    for order in range(2, 8):
        on(shared, order)
        try:
            got = run(stepwise.sequence, cell, case, tensors, torch.bfloat16)
            assert_exact(got, theirs, true, torch.bfloat16, part)
        except (AssertionError, RuntimeError):
            seen += 1
    assert seen >= 3, seen
