"""Every option of every layer in company: all pairs, against equations written out in float64.

The rows are generated (pairwise.py). Of the package the equations take only which units a seed
keeps; what may not be together is refused by a message that names both.
"""

import pytest
import torch
from exactness import assert_close64
from pairwise import cover
from torch.nn.functional import dropout, linear

import fusedrnn
from fusedrnn import random

T, B, I, H = 5, 4, 3, 6
sigmoid = torch.sigmoid
ACTIVATIONS = {
    "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda x: x
}  # fmt: skip

EVERYWHERE = {
    "training": (True, False),
    "bias": (True, False),
    "bidirectional": (False, True),
    "weight_dropout": (0.0, 0.3),
    "dh_clip": (None, 0.05),
    "recurrent_dropout": (0.0, 0.25),
    "variational_dropout": (0.0, 0.35),
    "lengths": (False, True),
    "reset": (False, True),
    "recompute": ("none", "gates"),
}
OPTIONS = {
    "LSTM": EVERYWHERE
    | {
        "coupled": (False, True),
        "peephole": (None, "diagonal", "full"),
        "layer_norm": (False, True),
        "candidate": ("tanh", "sigmoid"),
        "cell_activation": ("identity", "tanh"),
        "output_activation": ("tanh", "identity"),
        "cell_clip": (None, 0.4),
        "zoneout": (0.0, 0.3, (0.2, 0.0), (0.0, 0.4)),
        "proj_size": (0, 2),
    },
    "GRU": EVERYWHERE
    | {
        "reset_after": (True, False),
        "layer_norm": (False, True),
        "candidate": ("tanh", "sigmoid"),
        "zoneout": (0.0, 0.3),
    },
    "RNN": EVERYWHERE
    | {
        "nonlinearity": ("tanh", "sigmoid", "identity"),
        "residual": (False, True),
        "independent": (False, True),
        "zoneout": (0.0, 0.3),
    },
    "SLSTM": EVERYWHERE | {"zoneout": (0.0, 0.3)},
}
HOW = ("training", "lengths", "reset", "recompute")  # not arguments of the class

# What may not be together, what says so, and how it names the two.
REFUSED = {
    "LSTM": [
        (
            lambda o: o.get("peephole") == "diagonal" and shares(o)[1],
            "zoneout is .* and peephole is 'diagonal'",
        ),
        (lambda o: o.get("layer_norm") and shares(o)[1], "zoneout is .* and layer_norm is True"),
        (
            lambda o: o.get("peephole") == "full" and o.get("layer_norm"),
            "peephole is 'full' and layer_norm is True",
        ),
        (lambda o: o.get("proj_size") and shares(o)[0], "zoneout is .* and proj_size is"),
        (
            lambda o: o.get("proj_size") and o.get("variational_dropout"),
            "variational_dropout is .* and proj_size is",
        ),
    ],
    "GRU": [
        (
            lambda o: o.get("layer_norm") and o.get("reset_after") is False,
            "layer_norm is True and reset_after is False",
        ),
        (
            lambda o: o.get("variational_dropout") and o.get("reset_after") is False,
            "variational_dropout is .* and reset_after is False",
        ),
    ],
    "RNN": [
        (
            lambda o: o.get("recurrent_dropout") and o.get("residual") is False,
            "recurrent_dropout is .* and residual is False",
        ),
        (
            lambda o: o.get("weight_dropout") and o.get("independent"),
            "weight_dropout is .* and independent is True",
        ),
        (
            lambda o: o.get("variational_dropout") and o.get("independent"),
            "variational_dropout is .* and independent is True",
        ),
    ],
    "SLSTM": [],
}


def shares(o):
    """The probabilities of zoneout of h and of c."""
    given = o.get("zoneout", 0.0)
    return given if isinstance(given, tuple) else (given, given if "coupled" in o else 0.0)


def refused(layer):
    if layer == "LSTM":  # a single number is for both
        both = lambda o: o | {"coupled": None}  # noqa: E731
        return lambda o: any(rule(both(o)) for rule, _ in REFUSED[layer])
    return lambda o: any(rule(o) for rule, _ in REFUSED[layer])


def describe(o, layer):
    return "-".join(
        [layer, *(f"{k}={v}" for k, v in o.items() if v != OPTIONS[layer][k][0])]
    ).replace(" ", "")


ROWS = [
    pytest.param(layer, row, id=describe(row, layer))
    for layer in OPTIONS
    for row in cover(OPTIONS[layer], refused(layer))
]


class Bounded(torch.autograd.Function):
    """h; its gradient within a bound."""

    @staticmethod
    def forward(ctx, h, bound):
        ctx.bound = bound
        return h.clone()

    @staticmethod
    def backward(ctx, dh):
        return dh.clamp(-ctx.bound, ctx.bound), None


def normal(v, gain, bias=None):
    """Layer normalisation, written out."""
    v = v - v.mean(-1, keepdim=True)
    v = gain * v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return v if bias is None else v + bias


def lstm(o, a, states, own, drop):
    h, c = states
    own, norm = own
    *i, f, g, o_ = (sum(pair) for pair in a(h, c))
    if own is not None:
        *w_i, w_f, w_o = own
        i = [x + w * c for x, w in zip(i, w_i, strict=True)]
        f = f + w_f * c
    f = sigmoid(f)
    i = sigmoid(i[0]) if i else 1 - f
    c = f * c + i * (drop * ACTIVATIONS[o["candidate"]](g))
    c = ACTIVATIONS[o["cell_activation"]](c)
    if o["cell_clip"]:
        c = c.clamp(-o["cell_clip"], o["cell_clip"])
    if own is not None:
        o_ = o_ + w_o * c
    return sigmoid(o_) * ACTIVATIONS[o["output_activation"]](normal(c, *norm) if norm else c), c


def slstm(o, a, states, own, drop):
    """Without the stabiliser: m, the last state, is left out."""
    h, c, n = states
    i, f, z, o_ = (sum(pair) for pair in a(h))
    i, f = i.exp(), sigmoid(f)
    c, n = f * c + i * (drop * torch.tanh(z)), f * n + i
    return sigmoid(o_) * c / n, c, n


def gru(o, a, states, own, drop):
    (h,) = states
    act = ACTIVATIONS[o["candidate"]]
    (x_r, u_r), (x_z, u_z), (x_n, u_n) = a(h)
    r, z = sigmoid(x_r + u_r), sigmoid(x_z + u_z)
    if o["reset_after"]:
        n = act(x_n + r * u_n)
    else:
        n = act(x_n + a(r * h)[2][1])
    return ((1 - z) * (drop * n) + z * h,)


def rnn(o, a, states, own, drop):
    (h,) = states
    ((x, u),) = a(h)
    g = ACTIVATIONS[o["nonlinearity"]](x + u)
    return (h + drop * g if o["residual"] else g,)


STEPS = {"LSTM": lstm, "GRU": gru, "RNN": rnn, "SLSTM": slstm}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1, "SLSTM": 3}


def written_out(layer, o, module, x, lengths, reset):
    """y, from zero states."""
    gates, training = (
        {"LSTM": 4 - o.get("coupled", 0), "GRU": 3, "RNN": 1, "SLSTM": 4}[layer],
        o["training"],
    )
    suffixes = ["_l0", "_l0_reverse"][: 1 + o["bidirectional"]]
    torch.manual_seed(11)
    U = [getattr(module, "weight_hh" + s) for s in suffixes]
    if training and o["weight_dropout"]:
        U = [dropout(u, o["weight_dropout"]) for u in U]
    p_h, p_c = shares(o)
    draws = training and (p_h or p_c or o["recurrent_dropout"] or o["variational_dropout"])
    seeds = random.seeds(len(suffixes), x.device) if draws else [None] * len(suffixes)
    return torch.cat(
        [
            direction(layer, o, module, x, lengths, reset, gates, s, u, seed)
            for s, u, seed in zip(suffixes, U, seeds, strict=True)
        ],
        -1,
    )


def direction(layer, o, module, x, lengths, reset, gates, suffix, U, seed):
    names = ("weight_ih", "bias_ih", "bias_hh")
    W, b_ih, b_hh = (getattr(module, n + suffix, None) for n in names)
    own, V, norm = getattr(module, "weight_ch" + suffix, None), None, None
    if o.get("peephole") == "full":
        own, V = None, own
    own = None if own is None else own.view(-1, H)
    if o.get("layer_norm"):
        gain, gain_h = (getattr(module, n + suffix) for n in ("weight_ln_ih", "weight_ln_hh"))
        if layer == "LSTM":
            norm = [getattr(module, n + suffix) for n in ("weight_ln_c", "bias_ln_c")]
    R = getattr(module, "weight_hr" + suffix, None)
    backwards = suffix.endswith("reverse")
    p_h, p_c = shares(o)

    def share(p, stream, t):
        if not p:
            return 1.0
        return 1 - p if seed is None else random.kept(seed[0], t, B, H, stream, p).to(x)

    p, meets = o["variational_dropout"], 1.0
    if p and seed is not None:
        meets = random.kept(seed[1], -1, B, H, random.SEQUENCE, p).to(x) / (1 - p)
    states = [x.new_zeros(B, H)] * STATES[layer]
    if R is not None:
        states[0] = x.new_zeros(B, len(R))
    begin, y = list(states), [x.new_zeros(B, len(R) if R is not None else H)] * T
    for t in reversed(range(T)) if backwards else range(T):
        edge = t + 1 if backwards else t
        if edge < T:
            cut = (reset[edge] & (edge < lengths)).unsqueeze(-1)
            states = [torch.where(cut, a, b) for a, b in zip(begin, states, strict=True)]

        def a(h, c=None, t=t):
            recur = U * h if o.get("independent") else linear(h * meets, U)
            if V is not None:
                recur = recur + linear(c, V)
            if o.get("layer_norm"):
                parts = normal(linear(x[t], W), gain, b_ih), normal(recur, gain_h, b_hh)
            else:
                parts = linear(x[t], W, b_ih), recur if b_hh is None else recur + b_hh
            return list(zip(*(p.chunk(gates, -1) for p in parts), strict=True))

        p = o["recurrent_dropout"]
        drop = share(p, random.DROP, t) / (1 - p) if seed is not None else 1.0
        h, *inner = STEPS[layer](o, a, states, (own, norm), drop)
        kept = share(p_c, random.KEEP_C, t)
        inner = [kept * new + (1 - kept) * old for new, old in zip(inner, states[1:], strict=True)]
        kept = share(p_h, random.KEEP_H, t)
        if p_h:
            h = kept * h + (1 - kept) * states[0]
        if R is not None:
            h = linear(h, R)
        if o["dh_clip"]:
            h = Bounded.apply(h, o["dh_clip"])
        alive = (t < lengths).unsqueeze(-1)
        y[t] = torch.where(alive, h, 0)
        states = [torch.where(alive, n, s) for n, s in zip((h, *inner), states, strict=True)]
    return torch.stack(y)


@pytest.mark.parametrize(("layer", "o"), ROWS)
def test_all_pairs_of_options(layer, o, device):
    """Values, gradients and gradients of gradients."""
    torch.manual_seed(0)
    kwargs = {k: v for k, v in o.items() if k not in HOW}
    module = getattr(fusedrnn, layer)(I, H, **kwargs, dtype=torch.float64, device=device)
    module.train(o["training"])
    module.recompute = o["recompute"]
    x = torch.randn(T, B, I, dtype=torch.float64, device=device, requires_grad=True)
    full = torch.full((B,), T, device=device)
    lengths = torch.tensor([2, T, 1, 3], device=device) if o["lengths"] else full
    reset = torch.rand(T, B, device=device) < (0.3 if o["reset"] else 0)
    given = {"lengths": lengths if o["lengths"] else None, "reset": reset if o["reset"] else None}
    weight, wrt = None, [x, *module.parameters()]
    results = []
    for ours in (True, False):
        torch.manual_seed(11)
        if ours:
            y = module(x, **given)[0]
        else:
            y = written_out(layer, o, module, x, lengths, reset)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        first = torch.autograd.grad((weight * y).sum(), wrt, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wrt)
        results.append([y, *first, *second])
    assert_close64(*results, describe(o, layer))


@pytest.mark.parametrize("layer", OPTIONS)
def test_refused_pairs_are_named(layer):
    """Each pair of values that the cover leaves out raises, by a rule that names both."""
    found = set()
    names = [k for k in OPTIONS[layer] if k not in HOW]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for va in OPTIONS[layer][a]:
                for vb in OPTIONS[layer][b]:
                    pair = {a: va, b: vb}
                    if not refused(layer)(pair):
                        continue
                    rules = [r for r in REFUSED[layer] if refused_by(layer, r, pair)]
                    with pytest.raises(ValueError, match="|".join(m for _, m in rules)):
                        getattr(fusedrnn, layer)(I, H, **pair)
                    found |= {m for _, m in rules}
    assert found == {m for _, m in REFUSED[layer]}


def refused_by(layer, rule, pair):
    return rule[0](pair | ({"coupled": None} if layer == "LSTM" else {}))
