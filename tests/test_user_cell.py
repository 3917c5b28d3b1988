"""fusedrnn.Cell and fusedrnn.Recurrent: the page's example, and others, against their formulas.

The Triton kernels run them in tests/user_cell_numbers.py, in Triton's interpreter or on a GPU.
"""

import copy
import pickle
import subprocess
import sys
from collections import namedtuple
from itertools import product

import pytest
import torch
import user_cells
from exactness import assert_close64
from samples import run
from test_triton import needs_triton, run_numbers
from torch.nn.functional import linear

import fusedrnn
from fusedrnn import _backend, ops, plan
from fusedrnn.cells import CELLS

T, B, I, H = 5, 3, 4, 6
LENGTHS = torch.tensor([2, 5, 4])


@pytest.fixture(autouse=True)
def cells():
    with user_cells.registered() as named:
        yield named


def mgu(x, u, s):
    """The page's equations, written again."""
    f = 1 / (1 + (-x.f - u.f).exp())
    n = (x.n + f * u.n).tanh()
    return s.h - f * s.h + f * n


def written_out(cell, step, layer, x, hx=None, lengths=None, reset=None, reset_hx=None):
    """y and the last states, row by row and step by step, of ``step`` on tensors."""
    G, S, hx = len(cell.gates), len(cell.states), hx and iter(zip(*hx, strict=True))
    reset_hx = reset_hx and iter(zip(*reset_hx, strict=True))
    finals = []
    for number in range(layer.num_layers):
        halves = []
        for suffix in layer._suffixes(number):
            W, U, b, b2 = (getattr(layer, f"{n}{suffix}") for n in
                           ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            rows, last = [], []
            begin = next(hx) if hx else [x.new_zeros(B, H)] * S
            anew = next(reset_hx) if reset_hx else [x.new_zeros(B, H)] * S
            for row in range(B):
                length = T if lengths is None else int(lengths[row])
                s, y = [state[row] for state in begin], [x.new_zeros(H)] * T
                for i in range(length):
                    t = length - 1 - i if suffix.endswith("reverse") else i
                    cut = t + 1 if suffix.endswith("reverse") else t
                    if reset is not None and cut < length and reset[cut, row]:
                        s = [state[row] for state in anew]
                    gx = linear(x[t, row], W, b).chunk(G)
                    gu = linear(s[0], U, b2).chunk(G)
                    named = (
                        namedtuple("Values", names)(*values)
                        for names, values in
                        ((cell.gates, gx), (cell.gates, gu), (cell.states, s))
                    )  # fmt: skip
                    s = step(*named)
                    s = [s] if isinstance(s, torch.Tensor) else list(s)
                    y[t] = s[0]
                rows.append(torch.stack(y))
                last.append(s)
            halves.append(torch.stack(rows, 1))
            finals.append([torch.stack(states) for states in zip(*last, strict=True)])
        x = torch.cat(halves, -1)
    return x, [torch.stack(states) for states in zip(*finals, strict=True)]


def normal(*size):
    return torch.randn(*size, dtype=torch.float64)


def layer_of(cell, **options):
    return fusedrnn.Recurrent(cell, I, H, dtype=torch.float64, **options)


def check_equal(ours, theirs, wrt):
    """Values, gradients and gradients of gradients."""
    results = []
    weights = [torch.randn(o.shape).to(o) for o in ours]
    for outputs in (ours, theirs):
        pairs = zip(outputs, weights, strict=True)
        first = torch.autograd.grad(sum((o * w).sum() for o, w in pairs), wrt, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wrt)
        results.append([*outputs, *first, *second])
    assert_close64(*results, "values, first and second gradients")


def test_the_pages_example_runs_and_shows_its_gates():
    names = user_cells.example()
    assert names["y"].shape == (2, 5) and names["gates"]["n"].shape == (7, 2, 4, 5)
    assert fusedrnn.gates.recordable(names["layer"]) == ("f", "n", "h")


@pytest.mark.parametrize("lengths", (None, LENGTHS))
@pytest.mark.parametrize("reset", (None, "zeros", "given"))
def test_minimal_gated_unit(cells, lengths, reset):
    layer = layer_of(cells["mgu"], num_layers=2, bidirectional=True)
    x, h, anew = normal(T, B, I), normal(4, B, H), normal(4, B, H)
    for leaf in (x, h, anew):
        leaf.requires_grad_()
    mask = None if reset is None else torch.rand(T, B) < 0.4
    given = {"lengths": lengths, "reset": mask, "reset_hx": anew if reset == "given" else None}
    ours = layer(x, h, **given)
    given["reset_hx"] = given["reset_hx"] and (anew,) if reset != "given" else (anew,)
    y, (hn,) = written_out(cells["mgu"], mgu, layer, x, (h,), **given)
    wrt = [x, h, *([anew] if reset == "given" else []), *layer.parameters()]
    check_equal(list(ours), [y, hn], wrt)


@pytest.mark.parametrize("zoneout", [0.0, (0.0, 0.4)])
def test_written_as_lstm_it_is_the_lstm(cells, zoneout):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "zoneout": zoneout}
    layer = layer_of(cells["user_lstm"], **options)
    theirs = fusedrnn.LSTM(I, H, dtype=torch.float64, **options)
    theirs.load_state_dict(layer.state_dict(), strict=True)
    x, hx = normal(T, B, I), (normal(4, B, 3), normal(4, B, H))
    given = {"lengths": LENGTHS, "reset": torch.rand(T, B) < 0.4, "reset_hx": hx}
    results = []
    for module in (layer, theirs):
        torch.manual_seed(3)
        y, states = module(x, hx, **given)
        grads = torch.autograd.grad(y.square().sum() + states[1].sum(), list(module.parameters()))
        results.append([y, *states, *grads])
    assert_close64(*results, "lstm")


@pytest.mark.parametrize("name", user_cells.CELLS)
def test_many_states_and_operations(cells, name):
    layer = layer_of(cells[name], bidirectional=True)
    x, hx = normal(T, B, I).requires_grad_(), tuple(normal(2, B, H) for _ in cells[name].states)
    y, states = layer(x, hx, lengths=LENGTHS)
    y2, states2 = written_out(cells[name], user_cells.CELLS[name][0], layer, x, hx, LENGTHS)
    check_equal([y, *states], [y2, *states2], [x, *layer.parameters()])


@pytest.mark.parametrize("name", ("mgu", *user_cells.CELLS))
def test_derived_backward_is_autograds(cells, name):
    """The text for Triton, on tensors: random numbers, and equal ones, where slopes jump."""
    record = CELLS[name]
    forward, backward = (getattr(record.triton, which).python for which in ("forward", "backward"))
    G, S = len(record.gates), len(record.states)
    for scale in (1.0, 0.0):
        rows = [(scale * normal(9) + 0.7).requires_grad_() for _ in range(2 * G + S)]
        x, u, s = rows[:G], rows[G : 2 * G], rows[2 * G :]
        out, saved = forward(x, u, s)
        assert len(saved) == len(record.saved)
        dout = [normal(9) for _ in out]
        expected = torch.autograd.grad(out, rows, dout, allow_unused=True, materialize_grads=True)
        d, ds = backward(saved, s, out, dout)
        assert len(d) == record.grads
        found = [*d[:G], *(d[i] for i in record.h_grad), *ds]
        found = [torch.as_tensor(f, dtype=torch.float64).expand(9) for f in found]
        assert_close64(found, list(expected), name)


def test_what_is_kept_is_what_backward_cannot_calculate(cells):
    kept = {name: (len(CELLS[name].saved), CELLS[name].h_grad) for name in cells}
    assert kept["mgu"] == (3, (0, 2))  # f, n, U h of n; n has gradients of its own for U h
    assert kept["user_lstm"] == (4, (0, 1, 2, 3))  # as the package's; tanh(c) is made of c anew
    assert kept["user_residual"] == (2, (0, 2))  # both nonlinearities; c is there; zeros for u.b


@needs_triton
def test_triton_kernels_in_the_interpreter():
    run_numbers("1", "user_cell_numbers.py")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_triton_kernels_on_the_gpu():
    run_numbers("0", "user_cell_numbers.py")


def test_gradcheck(cells):
    layer = layer_of(cells["mgu"])
    x = normal(3, 2, I).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


def test_func_transforms(cells):
    layer, x = layer_of(cells["mgu"]), normal(T, B, I)
    parameters = dict(layer.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(layer, parameters, (row,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
    for row in range(B):
        one = torch.func.grad(loss)(parameters, x[:, row])
        assert_close64([each[n][row] for n in one], list(one.values()), "per-sample")
    y, dy = torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))
    step = 1e-6
    assert torch.allclose(dy, (layer(x + step)[0] - y) / step, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_compile_in_one_graph(cells):
    layer = fusedrnn.Recurrent(cells["mgu"], I, H, num_layers=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    eager, graph = (run(m, [torch.ones(3, B, I)]) for m in (layer, compiled))
    for a, b in zip(eager[0] + eager[1], graph[0] + graph[1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


def test_record_and_intervene(cells):
    layer, x = layer_of(cells["mgu"], bidirectional=True), normal(T, B, I)
    with fusedrnn.record(layer) as gates:
        y, _ = layer(x, lengths=LENGTHS)
    f, n, h = (gates[name] for name in ("f", "n", "h"))
    assert_close64(h.flatten(2), y, "h")
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    new = torch.where(f == 0, 0, before - f * before + f * n)  # f is 0 where a row has ended
    assert_close64(new[:, :, 0], h[:, :, 0], "f and n make h")
    with fusedrnn.intervene(layer, scale=torch.zeros(H, dtype=torch.float64), steps=[1]):
        cut, _ = layer(x)
    assert not cut[1, :, :H].any() and torch.equal(cut[0], layer(x)[0][0])
    with fusedrnn.record(layer_of(cells["user_lstm"])) as gates:
        assert gates.what == ("c", "h")  # what the function names, and the states


def test_other_features(cells):
    x = normal(T, B, I)
    layer = layer_of(cells["mgu"], num_layers=2, weight_dropout=0.5, dropout=0.5, dh_clip=0.1)
    torch.manual_seed(0)
    first = layer(x)[0]
    assert not torch.equal(first, layer(x)[0])
    layer.recompute = "chunks"
    layer.eval()
    y, h = layer(x)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0])
    assert_close64(padded, layer(x, lengths=LENGTHS)[0], "packed")
    state, outputs = None, []
    for row in x:
        out, state = fusedrnn.step(layer, row, state)
        outputs.append(out)
    assert_close64([torch.stack(outputs), state], [y, h], "step by step")
    chunks = [y for y, _ in fusedrnn.truncated_bptt(layer, x, steps=2)]
    assert_close64(torch.cat(chunks), y, "in chunks")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float())[0].dtype == torch.bfloat16
    fusedrnn.init.forget_bias_(layer, 1.0)
    assert (layer.bias_ih_l1[:H] == 1).all()


def test_copies(cells):
    for cell, shown in ((cells["mgu"], "mgu, 4, 6"), (cells["user_lstm"], "user_lstm, 4, 6")):
        layer, x = layer_of(cell), normal(T, B, I)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x)[0], layer(x)[0])
            assert repr(other) == repr(layer) == f"Recurrent({shown})"
        assert pickle.loads(pickle.dumps(cell)) is cell
        fresh = layer_of(cell)
        fresh.load_state_dict(layer.state_dict(), strict=True)
        assert torch.equal(fresh(x)[0], layer(x)[0])


def test_another_process_must_register_first(cells, tmp_path):
    path = tmp_path / "layer.pt"
    torch.save(layer_of(cells["mgu"]), path)
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cell 'mgu' is not registered in this process: make the fusedrnn.Cell" in found.stderr


def test_who_serves_and_why(cells):
    limits = ops.limits("mgu", torch.float32, False)
    why = "cell 'mgu' was registered at run time: no native kernel has it"
    assert limits == {"cpu": why, "cuda": why, "triton": None}
    assert _backend.choose("cpu", limits) == ("reference", f"not cpu: {why}")
    with fusedrnn.backend("cpu"), pytest.raises(RuntimeError, match=f"serve this call: {why}"):
        layer_of(cells["mgu"], dh_clip=1.0)(normal(T, B, I))
    assert "mgu" in CELLS and "mgu" not in list(CELLS)
    with pytest.raises(ValueError, match="cell is 'mgu'; it must be one of lstm"):
        plan.plans("mgu", 8, 2, 16, dtype=torch.float32, device="h200")


def test_names(cells):
    again = fusedrnn.Cell("user_lstm", *user_cells.CELLS["user_lstm"])
    assert layer_of(again)(normal(T, B, I))[0].shape == (T, B, H)
    with pytest.raises(ValueError, match=r"'mgu', which another cell has: fusedrnn.Cell.unregiste"):
        fusedrnn.Cell("mgu", lambda x, u, s: x.f + u.f, ("f",))
    for taken in ("lstm", "rnn_tanh"):
        with pytest.raises(ValueError, match=f"{taken}', which another cell has: choose another"):
            fusedrnn.Cell(taken, lambda x, u, s: x.f + u.f, ("f",))
    with pytest.raises(ValueError, match="name is 'gru'; of the registered cells there is: mgu, "):
        fusedrnn.Cell.unregister("gru")
    fusedrnn.Cell.unregister("mgu")
    with pytest.raises(RuntimeError, match="cell 'mgu' is not registered in this process"):
        layer_of(cells["mgu"])
    other = fusedrnn.Cell("mgu", lambda x, u, s: x.f + u.f, ("f",))
    assert CELLS["mgu"].gates == ("f",) and CELLS["mgu:dh_clip=0.5"].gates == ("f",)
    assert torch.equal(layer_of(other)(normal(T, B, I))[0].isfinite().all(), torch.tensor(True))


# What a function does, and what is said.
FORBIDDEN = {
    "cumsum": (lambda x, u, s: torch.cumsum(x.f, 0), "called torch's cumsum. It may use"),
    "method": (lambda x, u, s: x.f.sin(), r"used .sin. It may use \+ - \* /"),
    "if": (lambda x, u, s: x.f if u.f > 0 else u.f, r"decides by a value .* use torch.where\("),
    "truth": (lambda x, u, s: x.f or u.f, "decides by a value"),
    "equality": (lambda x, u, s: torch.where(x.f == u.f, x.f, u.f), "asks whether values are equ"),
    "math": (lambda x, u, s: x.f + float(u.f), "takes a value for a number"),
    "tensor": (
        lambda x, u, s: x.f * torch.ones(3),
        "calculates with a tensor: take a Python number",
    ),
    "tensor-right": (lambda x, u, s: torch.ones(()) + x.f, "make the tensor a gate"),
    "tensor-given": (lambda x, u, s: torch.where(x.f > 0, torch.ones(3), 1.0), "gave a tensor to"),
    "tensor-to": (lambda x, u, s: torch.addcmul(torch.ones(3), x.f, u.f), "gave a tensor to"),
    "comparison": (lambda x, u, s: (x.f > 0) * u.f, "calculates with a comparison"),
    "condition": (lambda x, u, s: torch.where(x.f, u.f, 0.0), "condition that is no comparison"),
    "infinite": (lambda x, u, s: x.f * float("inf"), "uses the number inf"),
    "power": (lambda x, u, s: x.f**0.5, r"to the power 0.5, which is not within"),
    "string": (lambda x, u, s: x.f + "1", "calculates with '1', a str"),
    "arguments": (lambda x, u, s: torch.clamp(x.f, 0, 1, out=u.f), "clamp with other arguments"),
    "unpacking": (lambda x, u, s: [*x.f], "takes a value of one unit apart"),
    "returned": (lambda x, u, s: None, "function of cell 'bad' returned None as 'h'; it must be"),
    "number": (lambda x, u, s: 0.5, "returned 0.5 as 'h'; it must be calculated from x, u and s"),
    "states": (lambda x, u, s: (x.f, u.f), "returned 2 states; it must return 1: h"),
    "shown": (lambda x, u, s: (x.f, {"f": 1}), "returned 1 as 'f'"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_be_written_down(what):
    function, said = FORBIDDEN[what]
    with pytest.raises((TypeError, AttributeError), match=said):
        fusedrnn.Cell("bad", function, ("f",))
    assert "bad" not in CELLS


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        (("my cell", None, ("f",)), "name is 'my cell'; it must be an identifier"),
        (("bad", None, "fn"), "gates is 'fn'; it must be a tuple of names"),
        (("bad", None, ()), r"gates is \(\); it must hold at least one name"),
        (("bad", None, ("f", "f")), "and none twice"),
        (("bad", None, ("f", "_n")), "gates has '_n'; a name must be an identifier that begins"),
        (("bad", None, ("f",), ("c", "h")), "states begin with 'c'; the first must be 'h'"),
        (("bad", lambda x, u, s: x.f, ("f", "n")), "gates has 'n', which the function of cell"),
        (("bad", lambda x, u, s: (x.f, {"h": x.f}), ("f",)), "names h to be recorded, a state"),
        (("bad", lambda x, u, s: (x.f, {"a b": x.f}), ("f",)), "names to record has 'a b'"),
    ),
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        fusedrnn.Cell(*arguments)


def test_wrong_layers(cells):
    with pytest.raises(AttributeError, match="x has no 'o'; it has f, n"):
        fusedrnn.Cell("bad", lambda x, u, s: x.o, ("f", "n"))
    with pytest.raises(TypeError, match="cell is 'mgu'; it must be a fusedrnn.Cell"):
        fusedrnn.Recurrent("mgu", I, H)
    with pytest.raises(ValueError, match="proj_size is 2, but the function of cell 'mgu' uses s.h"):
        layer_of(cells["mgu"], proj_size=2)
    with pytest.raises(RuntimeError, match="hx must hold 2 tensors, got 1"):
        layer_of(cells["user_lstm"])(normal(T, B, I), (normal(1, B, H),))


def test_powers_and_constants():
    """Whole powers on both sides, numbers of numpy, constants on either side of an operator."""
    numpy = pytest.importorskip("numpy")
    for power, scale in product((1, 3, -2), (numpy.float32(0.5), 2)):
        name = "powers"
        cell = fusedrnn.Cell(
            name, lambda x, u, s, p=power, a=scale: (x.f + a) ** p + a / u.f, ("f",)
        )
        forward = CELLS[name].triton.forward.python
        x, u = normal(7) + 3, normal(7) + 3
        (h,), _ = forward([x], [u], [x])
        assert_close64(h, (x + float(scale)) ** power + float(scale) / u, f"{cell} {power}")
        fusedrnn.Cell.unregister(name)
