"""The layers that torch.nn does not have, each against its own equations, written out, in float64.

The kernels of every cell are tested by test_sequence.py; here are the options that choose them.
"""

import copy
import pickle

import pytest
import torch
from exactness import assert_close64, assert_exact
from samples import run
from torch.nn.functional import dropout, linear

import fusedrnn
from fusedrnn import _native
from fusedrnn.cells import CELLS

T, B, I, H = 6, 3, 4, 5
sigmoid, tanh, relu = torch.sigmoid, torch.tanh, torch.relu


def lstm(*s, g_of=tanh, update=lambda c: c, output=tanh):
    """c = update(f * c' + i * g), h = o * output(c); rows i, f, g, o, or coupled f, g, o."""
    a, h, c = s
    *i, f, g, o = (linear(x, W, b) + linear(h, U, b2) for x, W, U, b, b2 in a)
    f = sigmoid(f)
    i = sigmoid(i[0]) if i else 1 - f
    c = update(f * c + i * g_of(g))
    return sigmoid(o) * output(c), c


def identity(x):
    return x


def clipped(c):
    return torch.where(c.abs() < 0.05, c, 0.05 * c.sign())


def slstm(a, h, c, n, _):
    """The sLSTM of the paper without its stabiliser: exponentials as they are; rows i, f, z, o."""
    i, f, z, o = (linear(x, W, b) + linear(h, U, b2) for x, W, U, b, b2 in a)
    c = sigmoid(f) * c + i.exp() * tanh(z)
    n = sigmoid(f) * n + i.exp()
    return sigmoid(o) * c / n, c, n, torch.zeros_like(n)


def gru(a, h, *, after, candidate=relu):
    """h = (1 - z) * n + z * h', the reset gate after or before the product."""
    (r, z, n) = a
    r, z = (sigmoid(linear(x, W, b) + linear(h, U, b2)) for x, W, U, b, b2 in (r, z))
    x, W, U, b, b2 = n
    inner = r * linear(h, U, b2) if after else linear(r * h, U, b2)
    return ((1 - z) * candidate(linear(x, W, b) + inner) + z * h,)


def rnn_identity(a, h):
    """h = W x + b + U h' + b'."""
    return tuple(linear(x, W, b) + linear(h, U, b2) for x, W, U, b, b2 in a)


VARIANTS = {
    "coupled": (fusedrnn.LSTM, {"coupled": True}, 3, 2, lstm),
    "activation-on-the-update": (
        fusedrnn.LSTM,
        {"cell_activation": "tanh", "output_activation": "identity"},
        4,
        2,
        lambda *s: lstm(*s, update=tanh, output=identity),
    ),
    "keras-relu": (
        fusedrnn.LSTM,
        {"candidate": "relu", "output_activation": "relu"},
        4,
        2,
        lambda *s: lstm(*s, g_of=relu, output=relu),
    ),
    "clipped": (fusedrnn.LSTM, {"cell_clip": 0.05}, 4, 2, lambda *s: lstm(*s, update=clipped)),
    "coupled-everything": (
        fusedrnn.LSTM,
        {
            "coupled": True,
            "candidate": "sigmoid",
            "output_activation": "identity",
            "cell_activation": "tanh",
            "cell_clip": 0.05,
        },
        3,
        2,
        lambda *s: lstm(*s, g_of=sigmoid, update=lambda c: clipped(tanh(c)), output=identity),
    ),
    "slstm": (fusedrnn.SLSTM, {}, 4, 4, slstm),
    "relu": (fusedrnn.GRU, {"candidate": "relu"}, 3, 1, lambda *s: gru(*s, after=True)),
    "before-relu": (
        fusedrnn.GRU,
        {"candidate": "relu", "reset_after": False},
        3,
        1,
        lambda *s: gru(*s, after=False),
    ),
    "identity": (fusedrnn.RNN, {"nonlinearity": "identity"}, 1, 1, rnn_identity),
    "residual": (
        fusedrnn.RNN,
        {"residual": True},
        1,
        1,
        lambda a, h: (h + tanh(rnn_identity(a, h)[0]),),
    ),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def written_out(name, layer, x):
    """y of a stacked, maybe bidirectional layer from zero states, step by step."""
    _, _, gates, states, step = VARIANTS[name]
    for number in range(layer.num_layers):
        halves = []
        for suffix in layer._suffixes(number):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            parts = [getattr(layer, n + suffix).chunk(gates) for n in names]
            s, y = (x.new_zeros(B, H),) * states, [None] * T
            for t in reversed(range(T)) if suffix.endswith("reverse") else range(T):
                s = step([(x[t], *p) for p in zip(*parts, strict=True)], *s)
                y[t] = s[0]
            halves.append(torch.stack(y))
        x = torch.cat(halves, -1)
    return x


def layer_of(name, device="cpu", dtype=torch.float64, **options):
    cls, named, *_ = VARIANTS[name]
    return cls(I, H, **named, **options, dtype=dtype, device=device)


@variants
@pytest.mark.parametrize("both", [False, True])
def test_equations(name, both, device):
    """Values, gradients and gradients of gradients."""
    layer = layer_of(name, device, num_layers=1 + both, bidirectional=both)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device, requires_grad=True)
    weight, wrt = torch.randn(T, B, H * (1 + both)).to(x), [x, *layer.parameters()]
    results = []
    for y in (layer(x)[0], written_out(name, layer, x)):
        first = torch.autograd.grad((weight * y).sum(), wrt, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wrt)
        results.append([y, *first, *second])
    assert_close64(*results, name)


@variants
def test_states_carry_on(name, device):
    """Two calls in a row are one, and the states are named in what is raised."""
    layer = layer_of(name, device)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    whole, last = layer(x)
    first, state = layer(x[:2])
    second, end = layer(x[2:], state)
    assert_close64([torch.cat([first, second]), end], [whole, last], name)


@variants
def test_lengths_and_packing_agree(name, device):
    layer = layer_of(name, device, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    lengths = torch.tensor([2, 6, 3])
    padded, states = layer(x, lengths=lengths)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, other = layer(packed)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert_close64([y, other], [padded, states], name)


@variants
def test_copy_pickle_state_dict_repr(name):
    layer, x = layer_of(name), torch.randn(T, B, I, dtype=torch.float64)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], layer(x)[0]) and repr(other) == repr(layer)
    rows = VARIANTS[name][2] * H
    shapes = {n: tuple(p.shape) for n, p in layer.state_dict().items()}
    assert shapes == {
        "weight_ih_l0": (rows, I),
        "weight_hh_l0": (rows, H),
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
    }


def test_reprs():
    assert repr(fusedrnn.LSTM(2, 3, coupled=True)) == "LSTM(2, 3, coupled=True)"
    assert repr(fusedrnn.GRU(2, 3, candidate="relu")) == "GRU(2, 3, candidate=relu)"
    assert repr(fusedrnn.SLSTM(2, 3, weight_dropout=0.5)) == "SLSTM(2, 3, weight_dropout=0.5)"
    assert repr(fusedrnn.RNN(2, 3, nonlinearity="identity")) == "RNN(2, 3, nonlinearity=identity)"


def test_coupled_forget_bias_is_its_first_rows():
    lstm = fusedrnn.LSTM(3, 2, coupled=True, forget_bias=1.5)
    both = lstm.bias_ih_l0 + lstm.bias_hh_l0
    assert torch.equal(both[:2], torch.full((2,), 1.5)) and (both[2:].abs() < 1.5).all()
    assert torch.equal(fusedrnn.init.forget_bias_(fusedrnn.SLSTM(3, 2)).bias_ih_l0[2:4].data,
                       torch.ones(2))  # fmt: skip


def test_coupled_with_projection_equals_the_reference():
    lstm = fusedrnn.LSTM(I, H, coupled=True, proj_size=2, bidirectional=True, dtype=torch.float64)
    x = [torch.randn(T, B, I)]
    ours = run(lstm, x)
    with fusedrnn.backend("reference"):
        assert_close64(ours, run(lstm, x), "coupled, projected")
    assert lstm.weight_hh_l0.shape == (3 * H, 2) and lstm.weight_hr_l0.shape == (2, H)


@pytest.mark.parametrize("log_i", [-300.0, 300.0])
def test_slstm_is_stable(log_i, dtype, device):
    """exp(log_i) is 0 or infinity in float32; the first input has all the weight all the same."""
    layer = fusedrnn.SLSTM(I, H, dtype=dtype, device=device)
    with torch.no_grad():
        layer.weight_ih_l0[:H] = layer.weight_hh_l0[:H] = layer.bias_hh_l0[:H] = 0
        layer.bias_ih_l0[:H] = log_i
    x = torch.randn(T, B, I, dtype=dtype, device=device, requires_grad=True)
    y, (h, c, n, _) = layer(x)
    assert (n >= 1).all() and (c.abs() <= n).all() and h.isfinite().all()
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()

    def first(wide):
        W, b, b2 = (p.to(wide) for p in (layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0))
        _, _, z, o = (linear(x[0].to(wide), W, b) + b2).chunk(4, -1)
        return sigmoid(o) * tanh(z)

    if dtype == torch.float64:
        assert_close64(y[0], first(dtype), "first step")
    else:
        assert_exact(y[0], first(dtype), first(torch.float64), dtype, "first step")


def test_slstm_loss_of_h_has_no_gradient_through_m(device):
    """Shifting m by s and scaling c and n by e^-s is the same state: the gradients must say so."""
    layer = fusedrnn.SLSTM(I, H, dtype=torch.float64, device=device)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    _, (h, c, n, m) = layer(x)
    c, n, m = (s.detach().requires_grad_() for s in (c, n, m))
    y, _ = layer(x, (h.detach(), c, n, m))
    dc, dn, dm = torch.autograd.grad(y.square().sum(), (c, n, m))
    assert_close64(dm, c * dc + n * dn, "the direction in which h stands still")


DROPPED = {
    "lstm": lambda **o: fusedrnn.LSTM(I, H, **o),
    "gru": lambda **o: fusedrnn.GRU(I, H, **o),
    "rnn": lambda **o: fusedrnn.RNN(I, H, **o),
    "slstm": lambda **o: fusedrnn.SLSTM(I, H, **o),
}


@pytest.mark.parametrize("name", DROPPED)
def test_weight_dropout_is_dropout_of_the_matrix(name, device):
    """As with the dropped matrices in the place of the weights; gradients go through the masks."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, "device": device}
    layer = DROPPED[name](weight_dropout=0.4, **options)
    plain = DROPPED[name](**options)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    torch.manual_seed(3)
    y, _ = layer(x)
    torch.manual_seed(3)
    given = {
        n: dropout(p, 0.4) if n.startswith("weight_hh") else p for n, p in layer.named_parameters()
    }
    truth, _ = torch.func.functional_call(plain, given, (x,))
    wrt, weight = list(layer.parameters()), torch.randn_like(y)
    ours, theirs = (torch.autograd.grad((o * weight).sum(), wrt) for o in (y, truth))
    assert_close64([y, *ours], [truth, *theirs], name)


def test_weight_dropout_draws_anew_and_only_in_training():
    layer, x = fusedrnn.LSTM(I, H, weight_dropout=0.5), torch.randn(T, B, I)
    plain = fusedrnn.LSTM(I, H)
    plain.load_state_dict(layer.state_dict(), strict=True)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize("p", [-0.1, 1.5, True, "0.5"])
def test_weight_dropout_must_be_a_probability(p):
    with pytest.raises(ValueError, match=r"weight_dropout should be a number in range \[0, 1\]"):
        fusedrnn.GRU(I, H, weight_dropout=p)


@pytest.mark.filterwarnings("error")
def test_weight_dropout_warns_of_nothing():
    fusedrnn.LSTM(I, H, weight_dropout=0.5)(torch.randn(T, B, I))[0].sum().backward()


def test_a_candidate_must_be_known():
    known = "it must be one of 'tanh', 'relu', 'sigmoid', 'identity'"
    for option in ("candidate", "cell_activation", "output_activation"):
        with pytest.raises(ValueError, match=f"Unknown {option} 'elu': {known}"):
            fusedrnn.LSTM(I, H, **{option: "elu"})
    with pytest.raises(ValueError, match=f"Unknown candidate 'elu': {known}"):
        fusedrnn.GRU(I, H, candidate="elu")


@pytest.mark.parametrize("clip", [0, -1.0, float("inf"), float("nan")])
def test_a_bound_is_positive(clip):
    with pytest.raises(
        ValueError, match="cell_clip is .*; it must be a finite number > 0, or None"
    ):
        fusedrnn.LSTM(I, H, cell_clip=clip)


def test_names_with_options():
    assert fusedrnn.LSTM(2, 3).cell == "lstm"
    layer = fusedrnn.LSTM(2, 3, cell_activation="tanh", output_activation="identity", cell_clip=3)
    assert layer.cell == "lstm:update=tanh:output=identity:clip=3.0" and layer.cell in CELLS
    for wrong in ("lstm:gain=2", "gru:clip=3.0", "elman", "lstm:", "lstm:clip"):
        assert wrong not in CELLS, wrong
    if not _native.MISSING:
        with pytest.raises(ValueError, match="no nonlinearity named 'elu'"):
            _native_forward("gru:candidate=elu")
        with pytest.raises(ValueError, match="no cell has an option 'gain'; there are candidate"):
            _native_forward("gru:gain=2")
        with pytest.raises(ValueError, match="'-1' is not a number above 0"):
            _native_forward("lstm:clip=-1")


def _native_forward(cell):
    x = torch.zeros(1, 1, 6)
    torch.ops.fusedrnn.sequence_forward.native(
        cell, [x], [torch.zeros(6, 2)], [], [], [], None, x[:, :, :2], x[:0, :, :2],
        None, None, None, None, False,
    )  # fmt: skip
