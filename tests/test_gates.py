"""record and intervene, against step loops that are written out here."""

import pytest
import torch
from exactness import assert_close64
from samples import LAYERS
from torch import sigmoid, tanh

import fusedrnn

T, B, I, H = 6, 3, 4, 5
LENGTHS = torch.tensor([6, 2, 4])
names = pytest.mark.parametrize("name", LAYERS)


def layer_of(name, device, **options):
    _, ours, named = LAYERS[name]
    layer = ours(I, H, **named, **options, dtype=torch.float64, device=device)
    return layer, torch.randn(T, B, I, dtype=torch.float64, device=device)


def gates_of(layer, x, states, suffix="_l0"):
    """One step by formula: all gates and states by name."""
    w = {
        n: getattr(layer, f"{n}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    a = (x @ w["weight_ih"].t() + w["bias_ih"]).split(H, -1)
    u = (states["h"] @ w["weight_hh"].t() + w["bias_hh"]).split(H, -1)
    if isinstance(layer, fusedrnn.LSTM):
        i, f, o = (sigmoid(a[k] + u[k]) for k in (0, 1, 3))
        g = tanh(a[2] + u[2])
        c = f * states["c"] + i * g
        return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * tanh(c)}
    if isinstance(layer, fusedrnn.GRU):
        r, z = sigmoid(a[0] + u[0]), sigmoid(a[1] + u[1])
        n = tanh(a[2] + r * u[2])
        return {"r": r, "z": z, "n": n, "q": u[2], "h": (1 - z) * n + z * states["h"]}
    return {"h": {"tanh": tanh, "relu": torch.relu}[layer.nonlinearity](a[0] + u[0])}


def loop(layer, x, change=None, suffix="_l0", lengths=None):
    """All steps by formula; ``change(states, t)`` after each. Rows beyond their end are zero."""
    zero = x.new_zeros(B, H)
    states, trace = {"h": zero, "c": zero}, []
    reverse = suffix.endswith("reverse")
    end = torch.full((B,), T) if lengths is None else lengths
    for t in reversed(range(T)) if reverse else range(T):
        new = gates_of(layer, x[t], states, suffix)
        alive = (t < end.to(x.device)).unsqueeze(-1)
        if change is not None:
            new |= change({k: new[k] for k in ("h", "c") if k in new}, t)
        states = {k: torch.where(alive, new[k], states[k]) for k in states if k in new}
        trace.append({k: torch.where(alive, v, 0) for k, v in new.items()})
    trace = trace[::-1] if reverse else trace
    return {k: torch.stack([step[k] for step in trace]) for k in trace[0]}, states


@names
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_what_is_recorded_is_the_formula(name, training, lengths, device):
    layer, x = layer_of(name, device, bidirectional=True)
    given = {} if lengths is None else {"lengths": lengths}
    plain, _ = layer(x, **given)
    with torch.set_grad_enabled(training), fusedrnn.record(layer) as gates:
        y, _ = layer(x, **given)
    assert torch.equal(y, plain)
    for d, suffix in enumerate(("_l0", "_l0_reverse")):
        expected, _ = loop(layer, x, suffix=suffix, lengths=lengths)
        assert set(gates.what) == set(expected) == set(fusedrnn.gates.recordable(layer))
        for what, value in expected.items():
            assert gates[what].shape == (T, B, 2, H) and not gates[what].requires_grad
            assert_close64(gates[what][:, :, d], value.detach(), what)


def test_a_recorded_call_has_the_same_gradients(device):
    layer, x = layer_of("lstm", device)
    grads = []
    for what in (None, ("c",)):
        with fusedrnn.record(layer, what):
            y, _ = layer(x)
        grads.append(torch.autograd.grad(y.square().sum(), list(layer.parameters())))
    y, _ = layer(x)
    for grad in grads:
        plain = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(grad, plain, strict=True))


def test_layers_steps_and_calls_are_those_asked_for(device):
    layer, x = layer_of("lstm", device, num_layers=3, bidirectional=True)
    with (
        fusedrnn.record(layer) as all_of_it,
        fusedrnn.record(layer, ("o", "h"), layers=[2, 1], steps=[0, -1]) as some,
        fusedrnn.record(layer, ["h"], layers=[2], steps=slice(1, 3)) as few,
    ):
        y, _ = layer(x)
        layer(x[:2], lengths=torch.tensor([1, 2, 2]))
    first = all_of_it.calls[0]
    assert first["o"].shape == (T, B, 6, H) and all_of_it["o"].shape == (2, B, 6, H)
    assert torch.equal(some.calls[0]["o"], first["o"][[0, T - 1], :, 2:])
    assert torch.equal(few.calls[0]["h"].flatten(2), y[1:3])
    assert [len(r.calls) for r in (all_of_it, some, few)] == [2, 2, 2]
    layer(x)
    assert len(few.calls) == 2 and layer._watch is None


def test_a_projected_h_is_as_wide_as_the_output(device):
    layer, x = layer_of("lstm", device, proj_size=2)
    with fusedrnn.record(layer) as gates:
        y, _ = layer(x)
    assert torch.equal(gates["h"][:, :, 0], y) and gates["c"].shape == (T, B, 1, H)


@pytest.mark.parametrize(
    ("name", "state"), [("lstm", "c"), ("lstm", "h"), ("gru", "h"), ("rnn_tanh", "h")]
)
@pytest.mark.parametrize("kind", ["scale", "add", "call"])
@pytest.mark.parametrize("suffix", ["_l0", "_l0_reverse"])
@pytest.mark.parametrize("steps", [None, (1, -2), (0, T - 1)])
def test_an_intervention_is_the_loop_with_it(name, state, kind, suffix, steps, device):
    layer, x = layer_of(name, device, bidirectional=True)
    given = {
        "scale": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5], device=device).double(),
        "add": torch.randn(2, H, device=device).double().requires_grad_(),
        "call": lambda s, t: s.flip(-1) * (t + 1),
    }[kind]
    rows = [2, 0]
    at = range(T) if steps is None else [t % T for t in steps]

    def change(states, t):
        if t not in at:
            return {}
        new = states[state].clone()
        some = new[rows]
        new[rows] = {
            "scale": lambda: some * given,
            "add": lambda: some + given,
            "call": lambda: given(some, t),
        }[kind]()
        if state == "h":
            return {"h": new}
        return {"c": new}  # h of this step is out already

    lengths = LENGTHS.to(device)
    where = {"direction": int(suffix.endswith("reverse")), "steps": steps, "rows": rows}
    with fusedrnn.intervene(layer, state, **where, **{kind: given}):
        y, end = layer(x, lengths=lengths)
    d = where["direction"]
    expected, last = loop(layer, x, change, suffix, lengths)
    mine = y[..., d * H : (d + 1) * H]
    assert_close64([mine], [expected["h"]], name)
    ends = end if isinstance(end, tuple) else (end,)
    assert_close64([s[d] for s in ends], [last[k] for k in ("h", "c") if k in last], name)
    plain, _ = layer(x, lengths=lengths)
    other = slice((1 - d) * H, (2 - d) * H)
    assert_close64(y[..., other], plain[..., other], "the other direction is left alone")
    wrt = [x.requires_grad_(), *layer.parameters(), *([given] if kind == "add" else [])]
    grads = [
        torch.autograd.grad(out.square().sum(), wrt, allow_unused=True, materialize_grads=True)
        for out in (mine, expected["h"])
    ]
    assert_close64(list(grads[0]), list(grads[1]), name)


def test_interventions_meet_resets_and_recordings(device):
    """Cut by hand where the mask cuts; what is recorded is what the next step saw."""
    layer, x = layer_of("lstm", device, bidirectional=True)
    mask = torch.zeros(T, B, dtype=torch.bool, device=device)
    mask[3] = True
    bump = torch.ones(H, dtype=torch.float64, device=device)
    for direction, step in ((0, 2), (0, 4), (1, 3), (1, 1)):
        where = {"direction": direction, "add": bump}
        with fusedrnn.intervene(layer, "c", steps=[step], **where), fusedrnn.record(layer) as gates:
            y, _ = layer(x, reset=mask)
        first, second = ({"steps": [s] if 0 <= s < 3 else []} for s in (step, step - 3))
        with fusedrnn.intervene(layer, "c", **first, **where):
            before, _ = layer(x[:3])
        with fusedrnn.intervene(layer, "c", **second, **where):
            after, _ = layer(x[3:])
        assert_close64(y, torch.cat([before, after]), f"{direction} {step}")
        plain = fusedrnn.record(layer)
        with plain as untouched:
            layer(x, reset=mask)
        found = (gates["c"] - untouched["c"])[step, :, direction]
        assert_close64(found, bump.expand(B, H), "c as the next step sees it")


def test_nested_interventions_come_one_after_the_other(device):
    layer, x = layer_of("gru", device, num_layers=2)
    with fusedrnn.intervene(layer, add=torch.ones(H, device=device).double(), layer=1, steps=[2]):
        with fusedrnn.intervene(layer, call=lambda s, t: 2 * s, layer=1, steps=[2, 5]):
            y, h = layer(x)
    plain, _ = layer(x)
    assert_close64(y[:2], plain[:2], "before")
    assert_close64(y[2], 2 * (plain[2] + 1), "at the step")
    assert torch.equal(y[5], h[1]) and layer._watch is None


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("record", {"module": torch.nn.LSTM(I, H)}, TypeError, "must be an LSTM, GRU or RNN of"),
        ("record", {"what": ("i", "x")}, ValueError, "what has 'x'.*it has i, f, g, o, c, h"),
        ("record", {"what": ()}, ValueError, "must name something"),
        ("record", {"layers": [1]}, ValueError, r"layer 1 does not exist; .* 0\.\.0"),
        ("intervene", {"module": torch.nn.GRU(I, H), "scale": 1}, TypeError, "of fusedrnn"),
        ("intervene", {"state": "z", "scale": 1.0}, ValueError, "state is 'z'; LSTM has h, c"),
        ("intervene", {"layer": -1, "scale": 1.0}, ValueError, "layer -1 does not exist"),
        ("intervene", {"direction": 1, "scale": 1.0}, ValueError, "direction is 1; it must be 0"),
        ("intervene", {}, ValueError, "one of scale, add and call must be given, got none"),
        ("intervene", {"scale": 1.0, "add": 1.0}, ValueError, "got scale and add"),
    ],
)
def test_bad_arguments(function, arguments, error, message):
    given = {"module": fusedrnn.LSTM(I, H)} | arguments
    with pytest.raises(error, match=message), getattr(fusedrnn, function)(**given):
        pass


def test_bad_calls():
    layer, x = fusedrnn.LSTM(I, H), torch.randn(T, B, I)
    with fusedrnn.record(layer) as gates:
        with pytest.raises(RuntimeError, match="nothing is recorded yet"):
            gates["i"]
        with pytest.raises(ValueError, match="pass the padded batch"):
            layer(torch.nn.utils.rnn.pack_padded_sequence(x, [6, 4, 2]))
        layer(x)
        with pytest.raises(KeyError, match="'r' was not recorded"):
            gates["r"]
    for wrong, found in ((lambda s, t: s[:1], r"\(1, 5\)"), (lambda s, t: 0, "int")):
        with fusedrnn.intervene(layer, call=wrong, steps=[0]):
            with pytest.raises(ValueError, match=f"gave {found}; it must give .*\\(3, 5\\)"):
                layer(x)
