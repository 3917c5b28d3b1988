"""Sequences in pieces: step, truncated_bptt, and what recompute keeps."""

import pytest
import torch
from exactness import assert_close64, assert_exact
from samples import LAYERS, twins

import fusedrnn

names = pytest.mark.parametrize("name", LAYERS)
leaves = torch.utils._pytree.tree_leaves


def layer_of(name, device, dtype=torch.float64, **options):
    _, ours, named = LAYERS[name]
    layer = ours(4, 5, **named, **options, dtype=dtype, device=device)
    return layer, torch.randn(7, 3, 4, dtype=dtype, device=device)


@names
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_make_the_sequence(name, batch_first, device):
    layer, x = layer_of(name, device, num_layers=2, batch_first=batch_first)
    y, end = layer(x.transpose(0, 1) if batch_first else x)
    state, outputs = None, []
    for t in range(7):
        out, state = fusedrnn.step(layer, x[t], state)
        outputs.append(out)
    assert_close64([torch.stack(outputs, int(batch_first)), state], [y, end], name)
    alone, _ = fusedrnn.step(layer, x[0, 1])
    assert_close64(alone, outputs[0][1], "without a batch")


@names
def test_steps_keep_the_error_rule(name, device, dtype):
    ours, theirs, exact = twins(name, (4, 5), dtype, device)
    x = torch.randn(9, 3, 4, device=device).to(dtype)
    x = x.abs() if name == "rnn_relu" else x
    state = None
    for t in range(9):
        y, state = fusedrnn.step(ours, x[t], state)
    results = [m(x.to(next(m.parameters()).dtype)) for m in (theirs, exact)]
    (their_y, their_state), (true_y, true_state) = results
    mine, torchs, truth = [y, state], [their_y[-1], their_state], [true_y[-1], true_state]
    if dtype == torch.float64:
        assert_close64(mine, truth, name)
    else:
        assert_exact(mine, torchs, truth, dtype, name)


@names
@pytest.mark.parametrize("batch_first", [False, True])
def test_truncated_bptt_is_a_loop_with_detach(name, batch_first, device):
    layer, x = layer_of(name, device, batch_first=batch_first)
    mask = torch.rand(7, 3, device=device) < 0.3
    time = int(batch_first)
    if batch_first:
        x, mask = x.transpose(0, 1), mask.t()
    chunks = fusedrnn.truncated_bptt(layer, x, steps=3, reset=mask)
    state, total = None, 0
    for (y, end), a in zip(chunks, (0, 3, 6), strict=True):
        n = min(3, 7 - a)
        piece, state = layer(x.narrow(time, a, n), state, reset=mask.narrow(time, a, n))
        assert torch.equal(y, piece) and y.shape[time] == n
        assert all(torch.equal(p, q) for p, q in zip(leaves(end), leaves(state), strict=True))
        total = total + piece.square().sum()
        y.square().sum().backward()
        state = torch.utils._pytree.tree_map(torch.detach, state)
    grads = torch.autograd.grad(total, list(layer.parameters()))
    assert_close64([p.grad for p in layer.parameters()], list(grads), name)


def held(layer, x, **given):
    """Bytes that backward holds on to, but for parameters and input."""
    seen = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    total = 0

    def pack(t):
        nonlocal total
        if t.untyped_storage().data_ptr() not in seen:
            seen.add(t.untyped_storage().data_ptr())
            total += t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = layer(x, **given)
    return total, outputs


@names
@pytest.mark.parametrize("recompute", ["gates", "chunks"])
@pytest.mark.parametrize("given", ["plain", "lengths", "reset"])
def test_recompute_changes_memory_alone(name, recompute, given, device):
    layer, x = layer_of(name, device, num_layers=2)
    more = {
        "plain": {},
        "lengths": {"lengths": torch.tensor([7, 2, 4], device=device)},
        "reset": {"reset": torch.rand(7, 3, device=device) < 0.3},
    }[given]
    results = []
    for mode in ("none", recompute):
        layer.recompute = mode
        y, end = layer(x, **more)
        total = y.square().sum() + sum(s.sin().sum() for s in leaves(end))
        results.append([y, end, *torch.autograd.grad(total, list(layer.parameters()))])
    if recompute == "gates":
        assert all(torch.equal(a, b) for a, b in zip(*map(leaves, results), strict=True))
    else:
        assert_close64(*results, name)


def test_recompute_of_both_directions(device):
    layer, x = layer_of("gru", device, num_layers=2, bidirectional=True)
    grads = []
    for layer.recompute in ("none", "gates"):
        grads.append(torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with pytest.raises(ValueError, match="use 'gates' for a bidirectional layer"):
        layer.recompute = "chunks"
    with pytest.raises(ValueError, match="recompute is 'all'; it must be"):
        layer.recompute = "all"


@pytest.mark.skipif(fusedrnn._native.MISSING is not None, reason=str(fusedrnn._native.MISSING))
def test_recompute_holds_less():
    """LSTM: y and the output's share, instead of that and five values a unit and step."""
    layer, x = fusedrnn.LSTM(32, 32), torch.randn(64, 4, 32)
    plain, _ = held(layer, x)
    layer.recompute = "gates"
    less, _ = held(layer, x)
    values = 64 * 4 * 32 * 4
    assert plain - less >= 5 * values and less < 2 * values


def test_bad_arguments():
    both, layer = fusedrnn.GRU(4, 5, bidirectional=True), fusedrnn.GRU(4, 5)
    with pytest.raises(ValueError, match="needs the whole sequence first"):
        fusedrnn.step(both, torch.randn(3, 4))
    with pytest.raises(ValueError, match="input has 3 dimensions; one step is"):
        fusedrnn.step(layer, torch.randn(1, 3, 4))
    with pytest.raises(ValueError, match="cannot run chunk by chunk"):
        fusedrnn.truncated_bptt(both, torch.randn(3, 2, 4), steps=2)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        fusedrnn.truncated_bptt(layer, torch.randn(3, 2, 4), steps=0)
