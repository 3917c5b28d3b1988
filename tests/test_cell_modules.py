"""LSTMCell, GRUCell and RNNCell against torch.nn, and against the layers."""

import copy
import pickle

import pytest
import torch
from exactness import assert_close64, assert_exact
from samples import keep_off_the_kink, run
from torch import nn

import fusedrnn

CELLS = {
    "lstm": (nn.LSTMCell, fusedrnn.LSTMCell, {}),
    "gru": (nn.GRUCell, fusedrnn.GRUCell, {}),
    "rnn_tanh": (nn.RNNCell, fusedrnn.RNNCell, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNNCell, fusedrnn.RNNCell, {"nonlinearity": "relu"}),
}


def twins(name, dtype, device, bias=True):
    theirs_class, ours_class, named = CELLS[name]
    theirs = theirs_class(5, 7, bias, **named, dtype=dtype, device=device)
    if name == "rnn_relu":
        keep_off_the_kink(theirs)
    ours = ours_class(5, 7, bias, **named, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, copy.deepcopy(theirs).double()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (33, 5)], ids=str)
def test_equals_torch(name, given, bias, shape, device, dtype):
    ours, theirs, exact = twins(name, dtype, device, bias)
    inputs = [torch.randn(shape, device=device).abs().to(dtype)]
    if given:
        h = torch.rand(*shape[:-1], 7, device=device).to(dtype)
        inputs.append((h, torch.randn_like(h)) if name == "lstm" else h)
    results = [run(m, inputs) for m in (ours, theirs, exact)]
    if dtype == torch.float64:
        assert_close64(results[0], results[2], name)
    else:
        assert_exact(*results, dtype, name)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_a_step_without_gradients_has_the_bits_of_one_with_them(name, bias, batch, device, dtype):
    cell, _, _ = twins(name, dtype, device, bias)
    x = torch.randn(batch, 5, device=device).to(dtype)
    h = torch.randn(batch, 7, device=device).to(dtype)
    hx = (h, torch.randn_like(h)) if name == "lstm" else h
    recorded = cell(x, hx)
    with torch.no_grad():
        alone = cell(x, hx)
    for a, b in zip(*((r if name == "lstm" else (r,)) for r in (recorded, alone)), strict=True):
        assert a.requires_grad and not b.requires_grad and torch.equal(a, b)


@pytest.mark.parametrize("name", CELLS)
def test_steps_of_a_cell_are_the_layer(name, device):
    layer_class = {"lstm": fusedrnn.LSTM, "gru": fusedrnn.GRU}.get(name, fusedrnn.RNN)
    layer = layer_class(5, 7, **CELLS[name][2], device=device)
    cell = CELLS[name][1](5, 7, **CELLS[name][2], device=device)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, hx = torch.randn(4, 2, 5, device=device), None
    y, _ = layer(x)
    for t in range(4):
        hx = cell(x[t], hx)
        h = hx[0] if name == "lstm" else hx
        torch.testing.assert_close(h, y[t], rtol=1e-6, atol=1e-6)


def test_reset_before_cell_is_the_layer(device):
    layer = fusedrnn.GRU(5, 7, reset_after=False, device=device)
    cell = fusedrnn.GRUCell(5, 7, reset_after=False, device=device)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = torch.randn(1, 2, 5, device=device)
    assert torch.equal(cell(x[0]), layer(x)[0][0])
    assert repr(cell) == "GRUCell(5, 7, reset_after=False)"


def test_repr_copy_pickle_state_dict():
    for name in CELLS:
        ours, theirs, _ = twins(name, torch.float32, "cpu")
        theirs.load_state_dict(ours.state_dict(), strict=True)
        x = torch.randn(2, 5)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(torch.stack(run(other, [x])[0]), torch.stack(run(ours, [x])[0]))
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c(torch.randn(2, 4)), RuntimeError, "got 4 expected 5"),
        (lambda c: c(torch.randn(2, 2, 5)), ValueError, "1D or 2D, got 3D"),
        (lambda c: c(torch.randn(2, 5), torch.randn(3, 7)), RuntimeError, r"hx\[0\] of shape"),
        (lambda c: c(torch.randn(2, 5), torch.randn(2, 6)), RuntimeError, r"hx\[0\] of shape"),
        (lambda c: c(torch.randn(2, 5).double()), RuntimeError, "input has dtype torch.float64"),
        (
            lambda c: c(torch.randn(2, 5), torch.randn(2, 7).half()),
            RuntimeError,
            r"hx\[0\] has dtype",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(fusedrnn.GRUCell(5, 7))
