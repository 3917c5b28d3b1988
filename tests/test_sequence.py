"""The sequence op: every cell of the registry against the reference, gradients by gradcheck."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from exactness import assert_close64
from sequence_case import (
    AROUND,
    CLIPPED,
    DTYPES,
    EVERY,
    KINDS,
    RANDOM,
    Case,
    arguments,
    check,
    inputs,
    native,
    plain,
    run,
    truth,
)  # fmt: skip
from torch.library import opcheck
from torch.nn.functional import linear
from torch.utils._pytree import tree_leaves, tree_map

import fusedrnn
from fusedrnn import _native, ops, random, reference
from fusedrnn._products import Needs, products
from fusedrnn.cells import CELLS

needs_native = pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
cells = pytest.mark.parametrize("cell", [CELLS[name] for name in KINDS], ids=KINDS)
directions = pytest.mark.parametrize("directions", [1, 2])
ragged = pytest.mark.parametrize("ragged", [False, True])
reset = pytest.mark.parametrize("reset", [None, "zeros", "given"])


def lengths_of(T, B):
    return tuple(torch.randint(0, T + 1, (B,), generator=torch.Generator().manual_seed(B)).tolist())


@cells
@directions
@ragged
@reset
@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 33, 17), (3, 2, 131)])
def test_equals_reference(cell, directions, ragged, reset, sizes, device):
    case = Case(*sizes, directions=directions, reset=reset, bias=sizes[0] != 3)
    if ragged:
        case = replace(case, lengths=lengths_of(case.T, case.B))
    tensors = inputs(cell, case, torch.float64, device)
    ours = run(ops.sequence, cell, case, tensors, torch.float64)
    assert_close64(ours, truth(cell, case, tensors), cell.name)


@pytest.mark.parametrize("name", EVERY + CLIPPED)
def test_every_variant_equals_the_reference(name, device):
    cell, case = CELLS[name], Case(5, 4, 35, directions=2, lengths=(2, 5, 0, 4), reset="given")
    tensors = inputs(cell, case, torch.float64, device)
    ours = run(ops.sequence, cell, case, tensors, torch.float64)
    assert_close64(ours, truth(cell, case, tensors), name)


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_around_a_cell_equals_the_reference(name, P, threads, on_threads):
    """Full peepholes and layer normalisation."""
    on_threads(threads)
    cell = CELLS[name]
    if P and (len(cell.states) == 1 or cell.zoneout_h or cell.variational):
        pytest.skip("no projection of this cell")
    case = Case(5, 4, 35, P, directions=2, lengths=(2, 5, 0, 4), reset="given")
    for one in (case, replace(case, directions=1, lengths=None, reset=None, bias=False, B=1, H=7)):
        tensors = inputs(cell, one, torch.float64)
        ours = run(ops.sequence, cell, one, tensors, torch.float64)
        assert_close64(ours, truth(cell, one, tensors), name)


@pytest.mark.parametrize("name", [n for n in AROUND if "zoneout" not in n])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_what_is_around_a_cell_is_as_exact_as_torch(name, dtype):
    cell, case = CELLS[name], Case(6, 5, 37, directions=2)
    tensors = inputs(cell, case, dtype)
    ours = run(ops.sequence, cell, case, tensors, dtype)
    check(ours, truth(cell, case, tensors), run(plain, cell, case, tensors, dtype), dtype, name)


@pytest.fixture
def on_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RANDOM + tuple(n for n in AROUND if CELLS[n].random))
@pytest.mark.parametrize("training", [False, True])
def test_cells_that_draw_equal_the_reference(name, training, device):
    """They draw the same numbers: masks lie in no tensor, and backward draws them again."""
    cell, case = CELLS[name], Case(5, 4, 35, directions=2, lengths=(2, 5, 0, 4), reset="given")
    tensors = inputs(cell, case, torch.float64, device)

    def drawn(cell, *args):
        torch.manual_seed(5)
        return ops.sequence(cell, *args, seed=random.seeds(2, device) if training else None)

    ours = run(drawn, cell, case, tensors, torch.float64)
    with fusedrnn.backend("reference"):
        assert_close64(ours, run(drawn, cell, case, tensors, torch.float64), name)
    if training:
        assert not torch.equal(
            ours["y"], run(ops.sequence, cell, case, tensors, torch.float64)["y"]
        )


def flat(cell, case, tensors):
    """The op as a function of tensors alone, and those tensors: what gradcheck takes."""
    names = [name for name, t in tensors.items() if t.numel()]

    def call(*values):
        given = tensors | dict(zip(names, values, strict=True))
        y, hn, cn = ops.sequence(cell, *arguments(case, given))
        return (y, hn, cn) if cn.numel() else (y, hn)

    return call, [tensors[name].requires_grad_() for name in names]


@cells
@needs_native
@directions
@pytest.mark.parametrize("lengths", [None, (3, 1, 0)])
@reset
def test_gradcheck_of_the_native_kernel(cell, directions, lengths, reset):
    P = 2 if cell.name == "lstm" else None
    for width in {None, P}:
        case = Case(3, 3, 5, width, directions=directions, lengths=lengths, reset=reset)
        with fusedrnn.backend("cpu"):
            assert torch.autograd.gradcheck(*flat(cell, case, inputs(cell, case, torch.float64)))


def row(case, tensors, b, begin, end, **more):
    """Steps begin..end of row b as a problem of its own."""
    alone = {}
    for name, t in tensors.items():
        if name == "x":
            t = t[:, begin:end, b : b + 1]
        elif name[0] in "hc":
            t = t[..., b : b + 1, :]
        alone[name] = t
    return Case(end - begin, 1, case.H, directions=case.directions), alone | more


@cells
@directions
def test_lengths_equal_rows_run_alone(cell, directions, device):
    case = Case(6, 4, 5, directions=directions, lengths=(6, 1, 4, 2))
    tensors = inputs(cell, case, torch.float64, device)
    y, hn, cn = ops.sequence(cell, *arguments(case, tensors))
    for b, n in enumerate(case.lengths):
        alone, values = row(case, tensors, b, 0, n)
        expected = ops.sequence(cell, *arguments(alone, values))
        pick = slice(b, b + 1)
        assert_close64([y[:n, pick], hn[:, pick], cn[:, :, pick]], list(expected), cell.name)
        assert (y[n:, b] == 0).all()


@cells
@directions
@pytest.mark.parametrize("given", [False, True])
def test_a_reset_splits_a_row_in_two(cell, directions, given, device):
    """Nothing passes the cut: both parts equal sequences of their own."""
    T, cut = 7, 3
    case = Case(T, 2, 5, directions=directions, reset="given" if given else "zeros")
    tensors = inputs(cell, case, torch.float64, device)
    x, weights, h0, c0, _, anew = arguments(case, tensors)
    mask = torch.zeros(T, 2, dtype=torch.bool, device=device)
    mask[cut, 1] = True
    y, hn, cn = ops.sequence(cell, x, weights, h0, c0, None, anew._replace(mask=mask))
    begin = {"h0": h0[:, 1:], "c0": c0[:, :, 1:]}
    fresh = {k: torch.zeros_like(t) for k, t in begin.items()}
    if given:
        fresh = {"h0": anew.h[:, 1:], "c0": anew.c[:, :, 1:]}
    for first, last, forward, backward in ((0, cut, begin, fresh), (cut, T, fresh, begin)):
        alone, values = row(case, tensors, 1, first, last)
        for name in begin:  # each direction begins the part from its own side
            values[name] = torch.cat([forward[name][:1], backward[name][1:]])
        part, h_part, c_part = ops.sequence(cell, *arguments(alone, values))
        assert_close64(y[first:last, 1:], part, cell.name)
        ends = slice(0, 1) if last == T else slice(1, 2)
        assert_close64([hn[ends, 1:], cn[ends, :, 1:]], [h_part[ends], c_part[ends]], cell.name)
    whole, values = row(case, tensors, 0, 0, T)
    assert_close64(y[:, :1], ops.sequence(cell, *arguments(whole, values))[0], cell.name)


@cells
def test_a_reset_at_the_first_step_replaces_the_initial_state(cell, device):
    case = Case(2, 3, 5, reset="given")
    tensors = inputs(cell, case, torch.float64, device)
    x, weights, h0, c0, _, anew = arguments(case, tensors)
    mask = torch.zeros(2, 3, dtype=torch.bool, device=device)
    mask[0] = True
    mine = ops.sequence(cell, x, weights, h0, c0, None, anew._replace(mask=mask))
    assert_close64(mine, ops.sequence(cell, x, weights, anew.h, anew.c), cell.name)


@cells
def test_both_directions_equal_one_after_the_other(cell, device):
    """The second direction is the first on the sequence turned round, bit for bit."""
    case = Case(5, 3, 7, directions=2)
    x, weights, h0, c0, _, _ = arguments(case, inputs(cell, case, torch.float32, device))
    y, hn, cn = ops.sequence(cell, x, weights, h0, c0)
    for d, turn in ((0, lambda t: t), (1, lambda t: t.flip(0))):
        pick = slice(d, d + 1)
        alone = ops.sequence(cell, turn(x[d])[None], weights[pick], h0[pick], c0[pick])
        expected = (turn(alone[0]), *alone[1:])
        found = (y[..., d * 7 : d * 7 + 7], hn[pick], cn[pick])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@cells
@directions
def test_the_input_product_is_part_of_the_call(cell, directions, device):
    """With weight_ih, x is the input of all directions, and its gradient the sum of theirs."""
    case = Case(3, 2, 5, directions=directions)
    tensors = inputs(cell, case, torch.float64, device)
    _, weights, h0, c0, _, _ = arguments(case, tensors)
    rows = len(cell.gates) * case.H
    x = torch.randn(3, 2, 4, dtype=torch.float64, device=device, requires_grad=True)
    ih = [torch.randn(rows, 4, device=device).double().requires_grad_() for _ in weights]
    bias = [torch.randn(rows, device=device).double().requires_grad_() for _ in weights]
    products = list(zip(weights, ih, bias, strict=True))
    full = tuple(w._replace(weight_ih=i, bias_ih=b) for w, i, b in products)
    y, _, _ = ops.sequence(cell, x, full, h0, c0)
    gx = torch.stack([torch.nn.functional.linear(x, i, b) for _, i, b in products])
    z, _, _ = ops.sequence(cell, gx, weights, h0, c0)
    grads = [torch.autograd.grad(t.sin().sum(), [x, *ih, *bias]) for t in (y, z)]
    assert_close64([y, *grads[0]], [z, *grads[1]], cell.name)


@cells
def test_an_empty_row_keeps_its_state(cell, device):
    case = Case(3, 2, 5, directions=2, lengths=(0, 3), reset="zeros")
    x, weights, h0, c0, lengths, anew = arguments(case, inputs(cell, case, torch.float64, device))
    anew.mask.fill_(True)
    y, hn, cn = ops.sequence(cell, x, weights, h0, c0, lengths, anew)
    assert torch.equal(hn[:, 0], h0[:, 0]) and torch.equal(cn[:, :, 0], c0[:, :, 0])
    assert (y[:, 0] == 0).all()


@cells
def test_what_needs_no_gradient_is_not_computed(cell, device):
    case = Case(3, 2, 5, directions=2, reset="given")
    tensors = inputs(cell, case, torch.float64, device)
    for kept in (name for name, t in tensors.items() if t.numel()):
        some = {name: t.detach().requires_grad_(name == kept) for name, t in tensors.items()}
        y, _, _ = ops.sequence(cell, *arguments(case, some))
        y.sum().backward()
        assert [name for name, t in some.items() if t.grad is not None] == [kept]
    with torch.no_grad():
        assert not ops.sequence(cell, *arguments(case, some))[0].requires_grad


@cells
@pytest.mark.parametrize("full", [False, True])
def test_double_backward(cell, full, device):
    """Gradients of the backend's gradients; with lengths, resets and a projection too."""
    case = Case(2, 2, 3)
    if full:
        P = 2 if cell.name == "lstm" else None
        case = Case(3, 3, 3, P, directions=2, lengths=(3, 2, 0), reset="given")
    call, leaves = flat(cell, case, inputs(cell, case, torch.float64, device))
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=full)


@cells
def test_third_derivatives(cell, device):
    case = Case(2, 1, 2)
    call, leaves = flat(cell, case, inputs(cell, case, torch.float64, device))
    x = leaves[0]

    def curvature(value):
        y, *_ = call(value, *leaves[1:])
        (g,) = torch.autograd.grad(y.sin().sum(), value, create_graph=True)
        return torch.autograd.grad(g.square().sum(), value, create_graph=True)[0]

    assert torch.autograd.gradcheck(curvature, x)


@cells
def test_the_first_gradient_is_the_kernels_even_if_more_follow(cell, device):
    case = Case(4, 3, 5, directions=2)
    call, leaves = flat(cell, case, inputs(cell, case, torch.float32, device))
    grads = [
        torch.autograd.grad(
            call(*leaves)[0].square().sum(), leaves, create_graph=more, allow_unused=True
        )
        for more in (False, True)
    ]
    for once, twice in zip(*grads, strict=True):
        assert (once is None and twice is None) or torch.equal(once, twice)


@needs_native
@pytest.mark.parametrize(
    ("name", "directions", "lengths"),
    [
        ("lstm", 1, None),
        *((name, 2, (2, 4)) for name in (*KINDS, "lstm:peephole=diagonal", "gru:layer_norm=True")),
    ],
)
def test_opcheck(name, directions, lengths):
    """With nothing that may be left out, and with everything."""
    cell, P = CELLS[name], 2 if name == "lstm" else None
    for width in {None, P}:
        case = Case(4, 2, 3, width, True, directions, lengths, lengths and "given")
        given = native(case, inputs(cell, case, torch.float32))
        forward = (cell.name, *given, True)
        opcheck(torch.ops.fusedrnn.sequence_forward.native, forward)
        opcheck(torch.ops.fusedrnn.sequence_forward.native, [*forward[:-1], False])
        y, hn, cn, saved, kept, _ = torch.ops.fusedrnn.sequence_forward.native(*forward)
        _, W, _, r, v, seed, h0, c0, *spans = given
        grads = (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn))
        for some in (grads, (grads[0], None, None)):
            opcheck(
                torch.ops.fusedrnn.sequence_backward.native,
                (cell.name, *some, y, h0, c0, W, r, v, seed, *spans, saved, kept),
            )


@cells
@needs_native
@directions
@pytest.mark.parametrize("given", [False, True], ids=["y", "met and dgx"])
def test_products_of_the_native_op_are_those_of_torch(cell, directions, given):
    """Also of x that is not contiguous, as batch_first hands it over."""
    N, T, B, I, H, G = directions, 4, 3, 5, 6, len(cell.gates)
    new = partial(torch.randn, dtype=torch.float64)
    x, h0, weight_ih = new(B, T, I).transpose(0, 1), new(N, B, H), list(new(N, G * H, I))
    tensors = (new(N, T, B, cell.grads, H), x, weight_ih, new(T, B, N * H), h0)
    tensors += (new(N, T, B, cell.kept, H), list(new(N, T, B, H)) if given else [])
    tensors += (list(new(N, T, B, G * H)) if given else [],)
    for some in (Needs(True, True, True, True), Needs(False, False, True, False)):
        ours, theirs = (products(cell, kind, *tensors, some) for kind in ("cpu", "triton"))
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            torch.testing.assert_close(a, b)
        opcheck(torch.ops.fusedrnn.sequence_products, (cell.name, *tensors, *some))


# Rows, features and units on both sides of what the kernel of csrc/cpu/matrix.cpp takes at a time.
SIZES = ((2, 3, 5, 4), (13, 8, 70, 33), (41, 53, 17, 9), (3, 4, 40, 530))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_many_rows(size, dtype, on_threads):
    """Against torch's in float64, and the same bits on one thread and two."""
    (T, B, I, H), cell, new = size, CELLS["lstm"], partial(torch.randn, dtype=torch.float64)
    x, w, b = new(T, B, I), new(4 * H, I), new(4 * H)
    given = (new(1, T, B, 4, H), x, [w], new(T, B, H), new(1, B, H), new(1, T, B, cell.kept, H))
    given += ([], [])
    narrow = [tree_map(lambda t: t.to(dtype), part) for part in ((x, [w], [b]), given)]
    results = []
    for threads in (1, 2):
        on_threads(threads)
        gx = torch.ops.fusedrnn.sequence_inputs(*narrow[0])
        all_sums = products(cell, "cpu", *narrow[1], Needs(True, True, True, True))
        results.append((gx, tuple(all_sums)))
    for one, two in zip(*map(tree_leaves, results), strict=True):
        assert torch.equal(one, two)
    true = [linear(x, w, b)], tuple(products(cell, "triton", *given, Needs(*[True] * 4)))
    for ours, right in zip(*map(tree_leaves, (results[0], true)), strict=True):
        # Of the sums' own size: a sum of n numbers of size 1 is of size sqrt(n).
        bound = 30 * torch.finfo(dtype).eps * right.abs().max()
        assert (ours.double() - right).abs().max() <= bound


@needs_native
def test_opcheck_and_checks_of_the_input_product():
    new, op = torch.randn, torch.ops.fusedrnn.sequence_inputs
    x, weights, biases = new(4, 3, 5), [new(8, 5), new(8, 5)], [new(8), new(8)]
    for given in (biases, []):
        opcheck(op, (x, weights, given))
    right = [linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    for many in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(op(many, weights, biases), right)
    for wrong, message in (
        ((x[0], weights, biases), "x must be"),
        ((x, [w[:, 1:] for w in weights], biases), "weight_ih has shape"),
        ((x, weights, biases[:1]), "bias_ih must hold a tensor for each direction or none, got 1"),
        ((x, weights, [b.double() for b in biases]), "matching dtypes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*wrong)


@needs_native
def test_kept_memory_is_nobody_elses():
    """What a layer keeps for backward is not handed to the next one while it is needed."""
    layer, inputs_ = fusedrnn.LSTM(64, 96), torch.randn(2, 40, 24, 64)

    def gradient(y):
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    alone = [gradient(layer(x)[0]) for x in inputs_]
    both = [layer(x)[0] for x in inputs_]
    for expected, found in zip(alone, map(gradient, both), strict=True):
        assert all(map(torch.equal, expected, found))
    del both
    assert fusedrnn.empty_cache() >= 40 * 24 * 4 * 96 * 4  # the gates of one call at least
    assert fusedrnn.empty_cache() == 0
    assert all(map(torch.equal, alone[0], gradient(layer(inputs_[0])[0])))


@needs_native
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda grads: grads[0], "grads must be"),
        (1, lambda grads: grads[:, :, :, :3], "grads has shape"),
        (2, lambda x: x[:3], "x has shape"),
        (2, lambda x: x.double(), "x and grads do not have matching dtypes"),
        (3, lambda w: [], "weight_ih must hold a tensor for each direction"),
        (3, lambda w: [w[0][1:]], "weight_ih has shape"),
        (4, lambda y: y[:3], "y has shape"),
        (5, lambda h0: h0[..., 1:], "y has shape"),
        (5, lambda h0: h0[0], "grads must be"),
        (6, lambda saved: saved[0], "saved has shape"),
        (7, lambda met: met * 2, "met must hold a tensor for each direction or none"),
        (7, lambda met: [met[0][1:]], "met has shape"),
        (8, lambda dgx: dgx * 2, "dgx must hold a tensor for each direction or none"),
        (8, lambda dgx: [dgx[0][1:]], "dgx has shape"),
    ],
)
def test_products_check_what_would_read_out_of_bounds(index, change, message):
    new = torch.randn
    given = ["lstm", new(1, 4, 2, 4, 3), new(4, 2, 5), [new(12, 5)], new(4, 2, 3), new(1, 2, 3)]
    given += [new(1, 4, 2, CELLS["lstm"].kept, 3), [new(4, 2, 3)], [new(4, 2, 12)], *[True] * 4]
    torch.ops.fusedrnn.sequence_products(*given)
    given[index] = change(given[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fusedrnn.sequence_products(*given)


@needs_native
def test_opcheck_of_a_step():
    new = torch.randn
    for name, c, biases in (("lstm", new(2, 3), 2), ("rnn_tanh", None, 0)):
        rows = 3 * len(CELLS[name].gates)
        weights = [new(rows, 5), new(rows, 3), *[new(rows) for _ in range(biases)]]
        weights += [None] * (4 - len(weights))
        opcheck(torch.ops.fusedrnn.sequence_step, (name, new(2, 5), new(2, 3), c, *weights))
    with pytest.raises(RuntimeError, match="a step takes h, and one more state as c"):
        torch.ops.fusedrnn.sequence_step("lstm", new(2, 5), new(2, 3), None, *weights)
    with pytest.raises(RuntimeError, match="weight_ih has shape"):
        torch.ops.fusedrnn.sequence_step("lstm", new(2, 5), new(2, 3), new(2, 3), *weights)


@needs_native
@pytest.mark.parametrize("name", (*KINDS, "lstm:layer_norm=True", "lstm:peephole=full"))
def test_crews_have_the_bits_of_one_thread(name, on_threads):
    """Two threads with rows of their own (B = 16), and with units of the same rows (B = 6)."""
    cell, results = CELLS[name], []
    for B, case in ((16, Case(9, 16, 80, lengths=(9, 1) * 8, reset="given")), (6, Case(9, 6, 80))):
        tensors = inputs(cell, case, torch.float32)
        for threads in (1, 2):
            on_threads(threads)
            results.append(run(ops.sequence, cell, case, tensors, torch.float32))
        one, two = results[-2:]
        assert all(torch.equal(one[key], two[key]) for key in one), B


def test_many_steps(device):
    """More steps than fit in 16 bits (torch.nn on cuDNN fails there, pytorch#133751)."""
    cell, T = CELLS["rnn_tanh"], 70_000
    if fusedrnn._backend.current() == "reference":
        T = 700  # one Python step each; the kernels are the point
    case = Case(T, 1, 2)
    tensors = inputs(cell, case, torch.float64, device)
    x, weights, h0, c0, _, _ = arguments(case, tensors)
    x.requires_grad_()
    y, hn, _ = ops.sequence(cell, x, weights, h0, c0)
    y1, h1, c1 = ops.sequence(cell, x[:, : T // 2], weights, h0, c0)
    y2, h2, _ = ops.sequence(cell, x[:, T // 2 :], weights, h1, c1)
    assert torch.equal(y, torch.cat([y1, y2])) and torch.equal(hn, h2)
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@needs_native
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda gx: [gx[0][0]], "gx must be"),
        (1, lambda gx: gx * 3, "one direction or two"),
        (1, lambda gx: [], "gx is empty"),
        (2, lambda w: [w[0][:, :-1]], "weight_hh must be"),
        (2, lambda w: w * 2, "weight_hh must hold 1"),
        (3, lambda b: [b[0][:-1]], "bias_hh has shape"),
        (3, lambda b: b * 2, "bias_hh must hold"),
        (4, lambda r: [torch.zeros(5, 5)] * 2, "weight_hr must hold"),
        (5, lambda v: [torch.zeros(3, 5)], "weight_unit must hold 0 tensors"),
        (6, lambda s: torch.zeros(2), "seed has shape"),
        (7, lambda h: h[:, :-1], "h0 has shape"),
        (7, lambda h: h.float(), "matching dtypes"),
        (8, lambda c: c[..., :-1], "c0 has shape"),
        (10, lambda m: m[:-1], "reset has shape"),
        (10, lambda m: m.long(), "matching dtypes|dtype"),
        (10, lambda m: None, "without reset"),
        (11, lambda h: None, "given together"),
        (12, lambda c: c[:, :, :-1], "reset_c has shape"),
    ],
)
def test_the_op_checks_what_would_read_out_of_bounds(index, change, message):
    case = Case(3, 2, 5, reset="given")
    given = ["lstm", *native(case, inputs(CELLS["lstm"], case, torch.float64)), True]
    given[index] = change(given[index])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fusedrnn.sequence_forward.native(*given)


def test_reference_rounds_like_the_kernels_in_16_bits():
    """State and accumulation are float32; what is stored and what meets the weights is 16 bits."""
    case = Case(12, 4, 16)
    for cell in CELLS.values():
        tensors = inputs(cell, case, torch.bfloat16)
        y, _, _ = reference.sequence(cell, *arguments(case, tensors))
        z, _, _ = ops.sequence(cell, *arguments(case, tensors))
        assert y.dtype == z.dtype == torch.bfloat16
        last_bits = 2 * torch.finfo(torch.bfloat16).eps * y.abs().clamp_min(1)
        assert ((y.float() - z.float()).abs() <= last_bits).all(), cell.name


@cells
@directions
@pytest.mark.parametrize("lengths", [None, (3, 6, 0, 1)])
def test_the_trace_is_the_references(cell, directions, lengths, device):
    """What the kernels save is what the equations call by the same names."""
    P = 3 if cell.name == "lstm" and directions == 2 else None
    case = Case(6, 4, 5, P, directions=directions, lengths=lengths, reset="given")
    call = arguments(case, inputs(cell, case, torch.float64, device))
    with fusedrnn.backend("reference"):
        expected = ops.sequence(cell, *call, trace=True)
    for grad in (False, True):
        call[0].requires_grad_(grad)
        found = ops.sequence(cell, *call, trace=True)
        assert_close64(found, expected, cell.name)
        assert [t.requires_grad for t in found[3:]] == [False, False]
