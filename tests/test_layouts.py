"""Weights of other frameworks: each against a loop over their documented equations, in numpy."""

from functools import partial

import numpy as np
import pytest
import torch

import fusedrnn
from fusedrnn.layouts import _ORDERS

T, B, I, H = 5, 3, 4, 6
random = np.random.default_rng(5)


def normal(*size):
    return random.normal(size=size)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras_lstm(x, kernel, recurrent, bias=0.0):
    """keras.layers.LSTM: i, f, c, o."""
    h, c, y = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        i, f, g, o = np.split(x[t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.stack(y)


def keras_gru(x, kernel, recurrent, bias=None, *, reset_after=True):
    """keras.layers.GRU: z, r, h; two rows of bias with reset_after, one without."""
    given = inner = np.zeros(3 * H)
    if bias is not None:
        given, inner = bias if reset_after else (bias, inner)
    h, y = np.zeros((B, H)), []
    for t in range(T):
        xz, xr, xh = np.split(x[t] @ kernel + given, 3, axis=1)
        hz, hr, hh = np.split(h @ recurrent + inner, 3, axis=1)
        z, r = sigmoid(xz + hz), sigmoid(xr + hr)
        n = np.tanh(xh + (r * hh if reset_after else (r * h) @ recurrent[:, 2 * H :]))
        h = z * h + (1 - z) * n
        y.append(h)
    return np.stack(y)


def keras_rnn(x, kernel, recurrent, bias=0.0):
    """keras.layers.SimpleRNN."""
    h, y = np.zeros((B, H)), []
    for t in range(T):
        h = np.tanh(x[t] @ kernel + h @ recurrent + bias)
        y.append(h)
    return np.stack(y)


def tensorflow_lstm(x, kernel, bias, forget_bias):
    """tf.compat.v1.nn.rnn_cell.LSTMCell: i, j, f, o of one matrix, forget_bias at run time."""
    h, c, y = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        i, j, f, o = np.split(np.concatenate([x[t], h], 1) @ kernel + bias, 4, axis=1)
        c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.stack(y)


def onnx(op, x, W, R, biases=None, linear_before_reset=0, peepholes=None):
    """The operators' equations, direction by direction: Y as [T, B, D*H]."""
    D, rows = W.shape[:2]
    biases = np.zeros((D, 2 * rows)) if biases is None else biases
    outputs = []
    for d in range(D):
        Wb, Rb = np.split(biases[d], 2)
        h, c, y = np.zeros((B, H)), np.zeros((B, H)), [None] * T
        for t in reversed(range(T)) if d else range(T):
            a = x[t] @ W[d].T + Wb
            if op == "lstm":
                i, o, f, g = np.split(a + h @ R[d].T + Rb, 4, axis=1)
                Pi, Po, Pf = (0, 0, 0) if peepholes is None else np.split(peepholes[d], 3)
                c = sigmoid(f + Pf * c) * c + sigmoid(i + Pi * c) * np.tanh(g)
                h = sigmoid(o + Po * c) * np.tanh(c)
            elif op == "rnn_tanh":
                h = np.tanh(a + h @ R[d].T + Rb)
            else:
                (az, ar, ah), (Rz, Rr, Rh) = np.split(a, 3, axis=1), np.split(R[d], 3)
                bz, br, bh = np.split(Rb, 3)
                z, r = sigmoid(az + h @ Rz.T + bz), sigmoid(ar + h @ Rr.T + br)
                inner = r * (h @ Rh.T + bh) if linear_before_reset else (r * h) @ Rh.T + bh
                h = (1 - z) * np.tanh(ah + inner) + z * h
            y[t] = h
        outputs.append(np.stack(y))
    return np.concatenate(outputs, -1)


def layer_of(cell, **options):
    if cell.startswith("gru"):
        return fusedrnn.GRU(I, H, reset_after=cell == "gru", dtype=torch.float64, **options)
    cls = fusedrnn.LSTM if cell == "lstm" else fusedrnn.RNN
    return cls(I, H, dtype=torch.float64, **options)


def assert_same(layer, x, truth):
    y, _ = layer(torch.from_numpy(x))
    np.testing.assert_allclose(y.detach().numpy(), truth, rtol=1e-13, atol=1e-14)


def assert_same_state(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-14, atol=1e-15)


KERAS = {
    "lstm": keras_lstm,
    "gru": keras_gru,
    "gru_reset_before": partial(keras_gru, reset_after=False),
    "rnn_tanh": keras_rnn,
}


def keras_weights(cell, bias):
    G = {"lstm": 4, "rnn_tanh": 1}.get(cell, 3)
    biases = [normal(*((2, G * H) if cell == "gru" else (G * H,)))] if bias else []
    return [normal(I, G * H), normal(H, G * H), *biases]


@pytest.mark.parametrize("cell", KERAS)
@pytest.mark.parametrize("bias", [True, False])
def test_keras(cell, bias):
    weights, x = keras_weights(cell, bias), normal(T, B, I)
    layer = layer_of(cell, bias=bias)
    layer.load_state_dict(fusedrnn.from_keras(cell, *weights), strict=True)
    assert_same(layer, x, KERAS[cell](x, *weights))
    back = fusedrnn.to_keras(cell, layer.state_dict())
    assert len(back) == len(weights)
    for ours, theirs in zip(back, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
        assert ours.is_contiguous()


@pytest.mark.parametrize("cell", KERAS)
def test_two_biases_become_what_keras_computes_with(cell):
    """Ours are random, both; where Keras has one bias it is their sum."""
    layer, x = layer_of(cell), normal(T, B, I)
    weights = [w.numpy() for w in fusedrnn.to_keras(cell, layer.state_dict())]
    assert_same(layer, x, KERAS[cell](x, *weights))


def test_keras_bidirectional():
    """Keras runs the backward layer over the reversed input and reverses what comes out."""
    weights, x = keras_weights("lstm", True) + keras_weights("lstm", True), normal(T, B, I)
    state = fusedrnn.from_keras("lstm", *weights[:3])
    state |= fusedrnn.from_keras("lstm", *weights[3:], reverse=True)
    layer = layer_of("lstm", bidirectional=True)
    layer.load_state_dict(state, strict=True)
    both = keras_lstm(x, *weights[:3]), keras_lstm(x[::-1], *weights[3:])[::-1]
    assert_same(layer, x, np.concatenate(both, -1))
    backward = fusedrnn.to_keras("lstm", layer.state_dict(), reverse=True)
    np.testing.assert_array_equal(backward[1].numpy(), weights[4])


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, -0.5])
def test_tensorflow(forget_bias):
    kernel, bias, x = normal(I + H, 4 * H), normal(4 * H), normal(T, B, I)
    layer = layer_of("lstm")
    state = fusedrnn.from_tensorflow(kernel, bias, forget_bias=forget_bias)
    layer.load_state_dict(state, strict=True)
    assert_same(layer, x, tensorflow_lstm(x, kernel, bias, forget_bias))
    back = fusedrnn.to_tensorflow(layer.state_dict(), forget_bias=forget_bias)
    np.testing.assert_array_equal(back[0].numpy(), kernel)
    np.testing.assert_allclose(back[1].numpy(), bias, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("bias", [True, False])
def test_tensorflow_of_any_lstm(bias):
    layer, x = layer_of("lstm", bias=bias), normal(T, B, I)
    before = {n: p.clone() for n, p in layer.state_dict().items()}
    weights = [w.numpy() for w in fusedrnn.to_tensorflow(layer.state_dict(), forget_bias=1.0)]
    assert_same(layer, x, tensorflow_lstm(x, *weights, 1.0))
    assert_same_state(layer.state_dict(), before)


@pytest.mark.parametrize("cell", KERAS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_onnx(cell, D, bias):
    rows = {"lstm": 4, "rnn_tanh": 1}.get(cell, 3) * H
    weights = [normal(D, rows, I), normal(D, rows, H)] + [normal(D, 2 * rows)] * bias
    x, layer = normal(T, B, I), layer_of(cell, bias=bias, bidirectional=D == 2)
    layer.load_state_dict(fusedrnn.from_onnx(cell, *weights), strict=True)
    truth = onnx(cell, x, *weights, linear_before_reset=int(cell == "gru"))
    assert_same(layer, x, truth)
    for ours, theirs in zip(fusedrnn.to_onnx(cell, layer.state_dict()), weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_onnx_peepholes(D, bias):
    """P is that of i, o, f; without biases B is zero on the way back."""
    weights = [normal(D, 4 * H, I), normal(D, 4 * H, H), normal(D, 8 * H) * bias]
    P, x = normal(D, 3 * H), normal(T, B, I)
    layer = layer_of("lstm", bias=bias, bidirectional=D == 2, peephole="diagonal")
    state = fusedrnn.from_onnx("lstm", *weights[: 2 + bias], P=P)
    layer.load_state_dict(state, strict=True)
    assert_same(layer, x, onnx("lstm", x, *weights, peepholes=P))
    back = fusedrnn.to_onnx("lstm", layer.state_dict())
    for ours, theirs in zip(back, [*weights, P], strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("reset_after", [True, False])
def test_flip_update_gate(reset_after):
    """A GRU whose update gate is h = z * n + (1 - z) * h', written out, from the same weights."""
    options = {"num_layers": 2, "bidirectional": True, "reset_after": reset_after}
    gru = fusedrnn.GRU(I, H, **options, dtype=torch.float64)
    state = {n: p.clone() for n, p in gru.state_dict().items()}
    other = {n: p.numpy() for n, p in state.items()}
    x = y = normal(T, B, I)
    for layer in range(2):
        halves = []
        for suffix in (f"_l{layer}", f"_l{layer}_reverse"):
            W, U, b, b2 = (
                other[n + suffix] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h, out = np.zeros((B, H)), [None] * T
            for t in reversed(range(T)) if suffix.endswith("reverse") else range(T):
                ar, az, an = np.split(y[t] @ W.T + b, 3, axis=1)
                r = sigmoid(ar + h @ U[:H].T + b2[:H])
                z = sigmoid(az + h @ U[H : 2 * H].T + b2[H : 2 * H])
                inner = h @ U[2 * H :].T if reset_after else (r * h) @ U[2 * H :].T
                inner = r * (inner + b2[2 * H :]) if reset_after else inner + b2[2 * H :]
                h = out[t] = z * np.tanh(an + inner) + (1 - z) * h
            halves.append(np.stack(out))
        y = np.concatenate(halves, -1)
    gru.load_state_dict(fusedrnn.flip_update_gate(state), strict=True)
    assert_same(gru, x, y)
    assert_same_state(fusedrnn.flip_update_gate(gru.state_dict()), state)


def test_layers_are_named():
    state = fusedrnn.from_keras("rnn_tanh", normal(H, H), normal(H, H), layer=2, reverse=True)
    assert list(state) == ["weight_ih_l2_reverse", "weight_hh_l2_reverse"]
    both = fusedrnn.from_onnx("rnn_tanh", normal(2, H, H), normal(2, H, H), layer=1)
    assert [n for n in both if "ih" in n] == ["weight_ih_l1", "weight_ih_l1_reverse"]


def test_every_order_is_a_permutation():
    for orders in _ORDERS.values():
        assert all(sorted(ours) == sorted(theirs) for ours, theirs in orders.items())


def zeros(*size):
    return torch.zeros(*size)


projected = fusedrnn.LSTM(3, 5, proj_size=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fusedrnn.from_keras("slstm2", zeros(3, 8), zeros(2, 8)), ValueError,
         "cell is 'slstm2'; Keras has 'lstm', 'gru'"),
        (lambda: fusedrnn.from_onnx("gru2", zeros(1, 8, 3), zeros(1, 8, 2)), ValueError,
         "cell is 'gru2'; ONNX has"),
        (lambda: fusedrnn.from_keras("lstm", zeros(3, 8), zeros(8, 2)), ValueError,
         r"recurrent_kernel has shape \(8, 2\), must be \[H, G\*H\] with G = 4"),
        (lambda: fusedrnn.from_keras("lstm", zeros(8, 3), zeros(2, 8)), ValueError,
         r"^kernel has shape \(8, 3\), must be \[I, 8\]"),
        (lambda: fusedrnn.from_keras("lstm", zeros(3, 8), zeros(2, 8), zeros(2, 8)), ValueError,
         r"bias has shape \(2, 8\), must be \[8\]"),
        (lambda: fusedrnn.from_keras("gru", zeros(3, 6), zeros(2, 6), zeros(6)), ValueError,
         r"bias has shape \(6,\), must be \[2, 6\]"),
        (lambda: fusedrnn.from_tensorflow(zeros(2, 8), zeros(8)), ValueError,
         r"kernel has shape \(2, 8\), must be \[I \+ H, 4\*H\]"),
        (lambda: fusedrnn.from_tensorflow(zeros(5, 8), zeros(4)), ValueError,
         r"bias has shape \(4,\), must be \[8\]"),
        (lambda: fusedrnn.from_onnx("lstm", zeros(1, 8, 3), zeros(8, 2)), ValueError,
         r"R has shape \(8, 2\), must be \[D, G\*H, H\]"),
        (lambda: fusedrnn.from_onnx("lstm", zeros(3, 8, 3), zeros(3, 8, 2)), ValueError,
         "D, its first size, must be 1 or 2"),
        (lambda: fusedrnn.from_onnx("lstm", zeros(2, 8, 3), zeros(1, 8, 2)), ValueError,
         r"W has shape \(2, 8, 3\), must be \[1, 8, I\]"),
        (lambda: fusedrnn.from_onnx("lstm", zeros(1, 8, 3), zeros(1, 8, 2), zeros(1, 8)),
         ValueError, r"B has shape \(1, 8\), must be \[1, 16\]"),
        (lambda: fusedrnn.to_keras("lstm", projected.state_dict()), ValueError,
         "state has weight_hr_l0: Keras's layout has no projection"),
        (lambda: fusedrnn.to_keras("lstm", fusedrnn.LSTM(3, 5, peephole="diagonal").state_dict()),
         ValueError, "state has weight_ch_l0: Keras's layout has no such weights"),
        (lambda: fusedrnn.to_onnx("lstm", fusedrnn.LSTM(3, 5, layer_norm=True).state_dict()),
         ValueError, "state has weight_ln_ih_l0: ONNX's layout has no such weights"),
        (lambda: fusedrnn.from_onnx("gru", zeros(1, 6, 3), zeros(1, 6, 2), P=zeros(1, 6)),
         ValueError, "P was given for cell 'gru'; peepholes are the LSTM's"),
        (lambda: fusedrnn.from_onnx("lstm", zeros(1, 8, 3), zeros(1, 8, 2), P=zeros(1, 8)),
         ValueError, "P has shape"),
        (lambda: fusedrnn.to_onnx("gru", fusedrnn.LSTM(3, 5).state_dict()), ValueError,
         r"weight_hh_l0 has shape \(20, 5\), must be \[G\*H, H\] with G = 3 gates"),
        (lambda: fusedrnn.to_tensorflow(fusedrnn.LSTM(3, 5).state_dict(), layer=1), KeyError,
         "state has no weight_ih_l1; it holds weight_ih_l0"),
        (lambda: fusedrnn.flip_update_gate(fusedrnn.LSTM(3, 6).state_dict()), ValueError,
         r"weight_hh_l0 has shape \(24, 6\), must be \[3\*H, H\]"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
