"""The numbers of the Triton kernels: run by test_triton.py, once in the interpreter, once on a GPU.

Not collected by itself: the interpreter must be chosen before triton is imported.
"""

import pytest
import torch

import fusedrnn
from fusedrnn import ops, reference
from fusedrnn.cells import CELLS
from fusedrnn.triton import plan as planner

DEVICE = "cpu" if planner.INTERPRETED else "cuda"
pytestmark = pytest.mark.usefixtures("one_thread", "round_to_nearest")

# Cells that can have a projection: those whose maths do not see h itself.
PROJECTED = ("lstm", "rnn_tanh")
KERNELS = ("whole", "step")


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


def problem(cell, T=4, B=3, H=7, P=None, *, dtype=torch.float64, bias=True, lengths=False):
    """Arguments of ops.sequence, in float64 but with values that ``dtype`` can hold."""
    record, rng = CELLS[cell], torch.Generator().manual_seed(T * 1000 + B * 100 + H)
    G, S, width = len(record.gates), len(record.states), P or H

    def normal(*size, scale=1.0):
        values = torch.randn(*size, generator=rng, dtype=torch.float64) * scale
        return values.to(dtype).double().to(DEVICE)

    return {
        "gx": normal(T, B, G * H),
        "weight_hh": normal(G * H, width, scale=H**-0.5),
        "bias_hh": normal(G * H, scale=H**-0.5) if bias else None,
        "weight_hr": normal(P, H, scale=H**-0.5) if P else None,
        "h0": normal(B, width),
        "c0": normal(S - 1, B, H),
        # Unsorted, with the longest and an empty row somewhere.
        "lengths": (torch.arange(B) * 3 + T).remainder(T + 1).to(DEVICE) if lengths else None,
    }


def results(run, cell, args, reverse, dtype):
    """y, hn, cn and the gradients of a random functional of them, by name."""
    args = {k: v if v is None or k == "lengths" else v.to(dtype) for k, v in args.items()}
    wanted = {k: v.requires_grad_() for k, v in args.items() if v is not None and k != "lengths"}
    out = dict(zip(("y", "hn", "cn"), run(CELLS[cell], *args.values(), reverse), strict=True))
    rng = torch.Generator().manual_seed(1)
    weigh = [torch.randn(o.shape, generator=rng).to(DEVICE, dtype) for o in out.values()]
    grads = torch.autograd.grad(
        list(out.values()), list(wanted.values()), weigh, materialize_grads=True
    )
    return {**out, **{f"d{k}": g for k, g in zip(wanted, grads, strict=True)}}


def triton(*args):
    with fusedrnn.backend("triton"):
        return ops.sequence(*args)


def check(cell, args, *, reverse=False, dtype=torch.float64):
    """Every result is as near to float64's as twice torch's own operators in that dtype are.

    Floor: one rounding of the largest value of a result. In float64 there is nothing to measure
    both against, so there ``torch.testing``'s own tolerances hold.
    """
    exact = results(reference.sequence, cell, args, reverse, torch.float64)
    found = results(triton, cell, args, reverse, dtype)
    if dtype == torch.float64:
        torch.testing.assert_close(found, exact)
        return
    with pytest.MonkeyPatch.context() as patch:
        # Without float32 states and sums, as torch's own operators compute in a 16-bit type.
        patch.setattr(reference, "state_dtype", lambda dtype: dtype)
        torchs = results(reference.sequence, cell, args, reverse, dtype)
    for name, value in exact.items():
        assert found[name].dtype == dtype
        if value.numel():
            error, allowed = (
                (r[name].double() - value).abs().max().item() for r in (found, torchs)
            )
            floor = torch.finfo(dtype).eps * value.abs().max().item()
            assert error <= 2 * allowed + floor, (name, error, allowed, floor)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("reverse", "lengths"), ((False, False), (True, True)))
def test_values_and_gradients(force, kernel, cell, reverse, lengths):
    force(kernel)
    check(cell, problem(cell, lengths=lengths), reverse=reverse)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reverse", (False, True))
def test_lengths_or_reverse_alone(force, kernel, reverse):
    force(kernel)
    check("lstm", problem("lstm", lengths=not reverse), reverse=reverse)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_error_rule(force, kernel, cell, dtype):
    force(kernel)
    check(cell, problem(cell, T=3, H=16, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", ((1, 1, 1), (5, 1, 7), (1, 3, 33), (2, 33, 1)))
@pytest.mark.parametrize("cell", ("lstm", "gru_reset_before"))
def test_odd_sizes(force, kernel, size, cell):
    force(kernel)
    check(cell, problem(cell, *size, lengths=True), reverse=True)


@pytest.mark.parametrize("cell", PROJECTED)
@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize(("H", "P"), ((7, 1), (7, 33), (33, 5)))
def test_projection(cell, reverse, H, P):
    check(cell, problem(cell, T=3, H=H, P=P, lengths=reverse), reverse=reverse)


def test_projection_in_16_bits():
    check("lstm", problem("lstm", B=8, H=16, P=9, dtype=torch.bfloat16), dtype=torch.bfloat16)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", ("lstm", "gru_reset_before"))
def test_without_bias(force, kernel, cell):
    force(kernel)
    check(cell, problem(cell, bias=False))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("P", (None, 5))
@pytest.mark.parametrize("output", (0, 2))
def test_one_output_used(force, kernel, P, output):
    """Backward gets None for the gradients of what is not used."""
    force(kernel)
    args = problem("lstm", T=2, P=P)

    def only(run):
        leaves = {k: v if v is None else v.clone().requires_grad_() for k, v in args.items()}
        run(CELLS["lstm"], *leaves.values(), False)[output].square().sum().backward()
        return [v.grad for v in leaves.values() if v is not None]

    torch.testing.assert_close(only(triton), only(reference.sequence))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits(force, kernel, cell):
    """The same call twice, and the same values whether or not anything is kept for backward."""
    force(kernel)
    args = problem(cell, T=2, H=17, lengths=True)
    first, second = (results(triton, cell, args, False, torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    with torch.no_grad():
        args = {k: v if v is None or k == "lengths" else v.float() for k, v in args.items()}
        for name, value in zip(
            ("y", "hn", "cn"), triton(CELLS[cell], *args.values(), False), strict=True
        ):
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("P", (None, 5))
def test_nothing_kept_with_projection(P):
    args = problem("lstm", P=P, lengths=True)
    with torch.no_grad():
        found = triton(CELLS["lstm"], *args.values(), False)
    torch.testing.assert_close(found, reference.sequence(CELLS["lstm"], *args.values(), False))


@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_no_rows(cell):
    found = results(triton, cell, problem(cell, B=0), False, torch.float64)
    assert {k: tuple(v.shape) for k, v in found.items() if "h" in k and v.shape[0] == 0} == {
        "hn": (0, 7),
        "dh0": (0, 7),
    }
    assert not found["dweight_hh"].any()


def test_length_past_the_end():
    """Lengths on a GPU are not checked; none may lead to memory past the end."""
    args = problem("gru", T=3, lengths=True)
    args["lengths"] = torch.tensor([3, 9, 1], device=DEVICE)
    found = triton(CELLS["gru"], *args.values(), True)
    args["lengths"] = torch.tensor([3, 3, 1], device=DEVICE)
    torch.testing.assert_close(found, reference.sequence(CELLS["gru"], *args.values(), True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("P", (None, 5))
def test_opcheck(force, kernel, P):
    force(kernel)
    args = problem("lstm", T=2, P=P, lengths=True)
    call = ("lstm", *list(args.values())[:6], args["lengths"], False, True)
    torch.library.opcheck(torch.ops.fusedrnn.sequence_forward.triton, call)
    y, hn, cn, saved, cells, _ = torch.ops.fusedrnn.sequence_forward.triton(*call)
    states = (args["h0"], args["c0"], args["weight_hh"], args["weight_hr"], args["lengths"])
    call = ("lstm", y, hn, cn, y, *states, False, saved, cells)
    torch.library.opcheck(torch.ops.fusedrnn.sequence_backward.triton, call)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    (
        ("h0", torch.zeros(3, 8), r"h0 has shape \[3, 8\], must be \[3, 7\]"),
        ("h0", torch.zeros(3, 7), r"h0 is torch.float32 on .*, must be torch.float64 on"),
        ("lengths", torch.zeros(3), r"lengths is torch.float32 on .*, must be torch.int64 on"),
        ("bias_hh", torch.zeros(3), r"bias_hh has shape \[3\], must be \[28\]"),
        ("weight_hh", torch.zeros(28, 6), r"weight_hh must be \[28, 7\] without a projection"),
        ("gx", torch.zeros(3, 7).double(), r"gx must be \[T, B, G\*H\] and weight_hh .* G = 4"),
    ),
)
def test_wrong_arguments(name, wrong, message):
    args = {**problem("lstm"), name: wrong.to(DEVICE)}
    with pytest.raises(RuntimeError, match=message):
        triton(CELLS["lstm"], *args.values(), False)


@pytest.mark.parametrize("name", ("sigmoid", "tanh"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_activations(name, dtype):
    """Near zero, over the whole range, at its ends: to four roundings, relative to the value."""
    near, far = torch.logspace(-30, 0, 512), torch.linspace(0, 100, 511)
    x = torch.cat((near, far, torch.tensor([float("inf")]))).to(dtype)
    x = torch.cat((x, -x)).to(DEVICE).view(1, 16, 128)
    cell = CELLS[f"rnn_{name}"]
    states = (x.new_zeros(128, 128), None, None, x.new_zeros(16, 128), x.new_zeros(0, 16, 128))
    y, _, _ = triton(cell, x, *states)
    truth = getattr(torch, name)(x.double())
    error = (y.double() - truth).abs()
    assert (error <= 4 * torch.finfo(dtype).eps * truth.abs() + torch.finfo(dtype).tiny).all()
    y, _, _ = triton(cell, x * torch.nan, *states)
    assert y.isnan().all()
