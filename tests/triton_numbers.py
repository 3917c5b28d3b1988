"""The numbers of the Triton kernels: run by test_triton.py, once in the interpreter, once on a GPU.

Not collected by itself: the interpreter must be chosen before triton is imported.
"""

from dataclasses import replace

import pytest
import torch
from exactness import assert_close64
from sequence_case import CLIPPED, EVERY, KINDS, Case, arguments, inputs, native, plain, run, truth
from sequence_case import check as check_results

import fusedrnn
from fusedrnn import ops, reference
from fusedrnn._call import Weights
from fusedrnn.cells import CELLS
from fusedrnn.triton import plan as planner
from fusedrnn.triton import tune

DEVICE = "cpu" if planner.INTERPRETED else "cuda"
pytestmark = pytest.mark.usefixtures("one_thread", "round_to_nearest")

# Cells that can have a projection: those whose maths do not see h itself.
PROJECTED = ("lstm", "rnn_tanh")
KERNELS = ("whole", "step")
LENGTHS = (1, 4, 0)  # unsorted, with the longest and an empty row
BOTH = Case(4, 3, 7, directions=2, lengths=LENGTHS)


@pytest.fixture
def one_thread():
    """The interpreter's tiles are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def round_to_nearest(monkeypatch):
    """Triton's interpreter cuts float32 off to bfloat16, where GPUs round to nearest even."""
    if not planner.INTERPRETED:
        return
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounded(self, source, target):
        if (source.dtype.scalar, target.scalar) != (float32, bfloat16):
            return cast(self, source, target)
        data = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(data, bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded)


@pytest.fixture
def force(monkeypatch):
    """Give the planner a device on which only the kernel asked for can run."""

    def choose(kernel):
        room = 1 << 30 if kernel == "whole" else 0
        monkeypatch.setattr(planner, "shared_memory", lambda device: room)

    return choose


def triton(*args):
    with fusedrnn.backend("triton"):
        return ops.sequence(*args)


def tensors_of(cell, case):
    return inputs(CELLS[cell], case, torch.float64, DEVICE)


def check(cell, case, dtype=torch.float64):
    """The error rule, for all results."""
    cell = CELLS[cell]
    tensors = inputs(cell, case, dtype, DEVICE)
    theirs = run(plain, cell, case, tensors, dtype)
    found = run(triton, cell, case, tensors, dtype)
    check_results(found, truth(cell, case, tensors), theirs, dtype, f"{cell.name}-{case}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", EVERY + CLIPPED)
def test_every_variant(force, kernel, cell):
    if CELLS[cell].independent and kernel == "step":
        pytest.skip("without a product there is one kernel")
    force(kernel)
    check(cell, Case(3, 2, 7))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize(
    "case",
    (
        Case(4, 3, 7),
        replace(BOTH, reset="given"),
        Case(4, 3, 7, lengths=LENGTHS, reset="zeros"),
    ),
    ids=str,
)
def test_values_and_gradients(force, kernel, cell, case):
    force(kernel)
    check(cell, case)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reset", ("zeros", "given"))
@pytest.mark.parametrize("directions", (1, 2))
def test_options_alone(force, kernel, reset, directions):
    """Lengths, directions and resets are each without the others somewhere."""
    force(kernel)
    check("lstm", Case(4, 3, 7, directions=directions, reset=reset))
    check("lstm", Case(4, 3, 7, directions=directions, lengths=LENGTHS))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_error_rule(force, kernel, cell, dtype):
    force(kernel)
    check(cell, Case(3, 3, 16, reset="given"), dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("size", "lengths"),
    (
        ((1, 1, 1), None),
        ((5, 1, 7), (3,)),
        ((1, 3, 33), (1, 0, 1)),
        ((2, 33, 1), (2, 0, 1) * 11),
    ),
)
@pytest.mark.parametrize("cell", ("lstm", "gru_reset_before"))
def test_odd_sizes(force, kernel, size, lengths, cell):
    force(kernel)
    check(cell, Case(*size, directions=2, lengths=lengths))


@pytest.mark.parametrize("cell", PROJECTED)
@pytest.mark.parametrize("reset", (None, "given"))
@pytest.mark.parametrize(("H", "P"), ((7, 1), (7, 33), (33, 5)))
def test_projection(cell, reset, H, P):
    lengths = (1, 3, 2) if reset else None
    check(cell, Case(3, 3, H, P, directions=2, lengths=lengths, reset=reset))


def test_projection_in_16_bits():
    check("lstm", Case(4, 8, 16, 9, reset="given"), torch.bfloat16)


@pytest.mark.parametrize(("kernel", "cell"), (("whole", "lstm"), ("step", "gru_reset_before")))
def test_without_bias(force, kernel, cell):
    force(kernel)
    check(cell, Case(4, 3, 7, bias=False, directions=2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("P", (None, 5))
@pytest.mark.parametrize("output", (0, 2))
def test_one_output_used(force, kernel, P, output):
    """Backward gets None for the gradients of what is not used."""
    force(kernel)
    case = Case(2, 3, 7, P, directions=2)
    given = tensors_of("lstm", case)

    def only(function):
        leaves = {k: t.clone().requires_grad_() for k, t in given.items()}
        function(CELLS["lstm"], *arguments(case, leaves))[output].square().sum().backward()
        return [t.grad for t in leaves.values()]

    torch.testing.assert_close(only(triton), only(reference.sequence))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", ("lstm", "gru_reset_before"))
def test_same_bits(force, kernel, cell):
    """Again, without anything kept for backward, and each direction by itself."""
    force(kernel)
    cell, case = CELLS[cell], Case(2, 3, 17, directions=2, lengths=(2, 0, 1))
    tensors = inputs(cell, case, torch.float32, DEVICE)
    first, second = (run(triton, cell, case, tensors, torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    x, weights, h0, c0, lengths, _ = arguments(case, tensors)
    with torch.no_grad():
        y, hn, cn = triton(cell, x, weights, h0, c0, lengths)
        y0, hn0, cn0 = triton(cell, x[:1], weights[:1], h0[:1], c0[:1], lengths)
    for name, value in (("y", y), ("hn", hn), ("cn", cn)):
        assert torch.equal(value, first[name]), name
    assert torch.equal(y[..., :17], y0) and torch.equal(hn[:1], hn0) and torch.equal(cn[:1], cn0)


@pytest.mark.parametrize("P", (None, 5))
def test_nothing_kept_with_projection(P):
    case = replace(BOTH, P=P, reset="given")
    given = arguments(case, tensors_of("lstm", case))
    with torch.no_grad():
        found = triton(CELLS["lstm"], *given)
    torch.testing.assert_close(found, reference.sequence(CELLS["lstm"], *given))


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_no_rows(cell):
    case = Case(4, 0, 7, directions=2)
    leaves = {name: t.requires_grad_() for name, t in tensors_of(cell, case).items()}
    y, hn, _ = triton(CELLS[cell], *arguments(case, leaves))
    assert hn.shape == (2, 0, 7) and y.shape == (4, 0, 14)
    y.sum().backward()
    assert not leaves["weight_hh1"].grad.any() and leaves["x"].grad.shape == leaves["x"].shape


def test_length_past_the_end():
    """Lengths on a GPU are not checked; none may lead to memory past the end."""
    case = Case(3, 3, 7, directions=2, lengths=(3, 9, 1), reset="given")
    tensors = tensors_of("gru", case)
    found = triton(CELLS["gru"], *arguments(case, tensors))
    right = arguments(replace(case, lengths=(3, 3, 1)), tensors)
    torch.testing.assert_close(found, reference.sequence(CELLS["gru"], *right))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_the_trace_is_the_references(force, kernel, cell):
    """Zero beyond a row's end, too."""
    force(kernel)
    case = Case(4, 3, 7, directions=2, lengths=(2, 4, 0))
    call = arguments(case, tensors_of(cell, case))
    with fusedrnn.backend("triton"):
        found = ops.sequence(CELLS[cell], *call, trace=True)
    assert_close64(list(found), list(reference.sequence(CELLS[cell], *call, trace=True)), cell)


@pytest.mark.parametrize(
    ("kernel", "P", "reset"),
    (("whole", None, None), ("step", 5, "given")),
)
def test_opcheck(force, kernel, P, reset):
    force(kernel)
    case = replace(BOTH, T=2, P=P, lengths=(1, 2, 0), reset=reset)
    given = native(case, tensors_of("lstm", case))
    torch.library.opcheck(torch.ops.fusedrnn.sequence_forward.triton, ("lstm", *given, True))
    gx, W, b, R, V, seed, h0, c0, *spans = given
    y, hn, cn, saved, cells, _ = torch.ops.fusedrnn.sequence_forward.triton("lstm", *given, True)
    call = ("lstm", y, hn, cn, y, h0, c0, W, R, V, seed, *spans, saved, cells)
    torch.library.opcheck(torch.ops.fusedrnn.sequence_backward.triton, call)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    (
        ("h0", torch.zeros(1, 3, 8), r"h0 has shape \[1, 3, 8\], must be \[1, 3, 7\]"),
        ("h0", torch.zeros(1, 3, 7), r"h0 is torch.float32 on .*, must be torch.float64 on"),
        ("lengths", torch.zeros(3), r"lengths is torch.float32 on .*, must be torch.int64 on"),
        ("bias_hh", [torch.zeros(3)], r"bias_hh has shape \[3\], must be \[28\]"),
        ("bias_hh", [torch.zeros(28)] * 2, r"bias_hh must hold 1 tensors, one for .*, got 2"),
        ("weight_hh", [], r"weight_hh must hold 1 tensors, one for each direction, got 0"),
        ("weight_hh", [torch.zeros(28, 6)], r"weight_hh must be \[28, 7\] without a projection"),
        ("gx", [torch.zeros(3, 7).double()], r"gx must be \[T, B, G\*H\] and weight_hh .* G = 4"),
        ("weight_unit", [torch.zeros(1, 7)], "weight_unit must hold 0 tensors, got 1"),
        ("seed", torch.zeros(1, 2), "seed is torch.float32 on .*, must be torch.int64 on"),
        ("gx", [], "a layer has one direction or two, got 0 of gx"),
        ("reset", torch.zeros(4, 3), "reset is torch.float32 on .*, must be torch.bool on"),
        ("reset", None, "reset_h is given without reset, the mask that says where"),
        ("reset_c", None, "reset_h and reset_c must be given together"),
    ),
)
def test_wrong_arguments(name, wrong, message):
    case = Case(4, 3, 7, reset="given")
    names = ("gx", "weight_hh", "bias_hh", "weight_hr", "weight_unit", "seed", "h0", "c0")
    names += ("lengths", "reset", "reset_h", "reset_c")
    args = dict(zip(names, native(case, tensors_of("lstm", case)), strict=True))
    args[name] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fusedrnn.sequence_forward.triton("lstm", *args.values(), False)


@pytest.mark.parametrize("kernel", KERNELS)
def test_measured_tiles_serve(force, monkeypatch, kernel):
    """Other tiles than the rule's, the same results."""
    force(kernel)
    shape, device = (
        planner.Shape("gru", torch.float64, 33, 17),
        torch.zeros(1, device=DEVICE).device,
    )
    rule = tune.choose(shape, device)
    other = planner.Plan(rule.whole, 32, rule.units, 16, 2, 1, "measured")
    monkeypatch.setattr(tune, "table", lambda: {tune.key(shape, device): other})
    assert tune.choose(shape, device) == other != rule
    check("gru", Case(2, 33, 17))


@pytest.mark.parametrize("name", ("sigmoid", "tanh"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_activations(name, dtype):
    """Near zero, over the whole range, at its ends: to four roundings, relative to the value."""
    near, far = torch.logspace(-30, 0, 512), torch.linspace(0, 100, 511)
    x = torch.cat((near, far, torch.tensor([float("inf")]))).to(dtype)
    x = torch.cat((x, -x)).to(DEVICE).view(1, 1, 16, 128)
    cell, weights = CELLS[f"rnn_{name}"], (Weights(None, x.new_zeros(128, 128)),)
    states = (x.new_zeros(1, 16, 128), x.new_zeros(1, 0, 16, 128))
    y, _, _ = triton(cell, x, weights, *states)
    truth = getattr(torch, name)(x[0].double())
    error = (y.double() - truth).abs()
    assert (error <= 4 * torch.finfo(dtype).eps * truth.abs() + torch.finfo(dtype).tiny).all()
    y, _, _ = triton(cell, x * torch.nan, weights, *states)
    assert y.isnan().all()
