"""Bad input: each an error that names the argument, what it was and what is needed."""

import pytest
import torch

import fusedrnn
from fusedrnn import _native

CONSTRUCTOR = [
    (lambda: fusedrnn.LSTM(3, 0), ValueError, "hidden_size must be greater than zero, got 0"),
    (lambda: fusedrnn.LSTM(3, 2, 0), ValueError, "num_layers must be greater than zero"),
    (lambda: fusedrnn.LSTM(3, 2.5), TypeError, "hidden_size should be of type int, got: float"),
    (lambda: fusedrnn.LSTM(3, 2, dropout=1.5), ValueError, r"range \[0, 1\].*got 1.5"),
    (lambda: fusedrnn.LSTM(3, 2, dropout=True), ValueError, r"range \[0, 1\]"),
    (lambda: fusedrnn.LSTM(3, 2, bias=1), TypeError, "bias should be of type bool"),
    (lambda: fusedrnn.LSTM(3, 2, batch_first=1), TypeError, "batch_first should be of type bool"),
    (lambda: fusedrnn.LSTM(3, 2, proj_size=2), ValueError, "smaller than hidden_size, got 2 and 2"),
    (lambda: fusedrnn.LSTM(3, 2, proj_size=-1), ValueError, "positive integer or zero"),
    (
        lambda: fusedrnn.RNN(3, 2, nonlinearity="gelu"),
        ValueError,
        "'gelu': it must be one of 'tanh'",
    ),
    (lambda: fusedrnn.RNNCell(3, 2, nonlinearity="x"), ValueError, "must be one of 'tanh'"),
    (lambda: fusedrnn.GRU(3, 2, proj_size=1), TypeError, "proj_size"),
    (lambda: fusedrnn.GRUCell(3, 0), ValueError, "hidden_size must be a positive integer"),
]


@pytest.mark.parametrize(("call", "error", "message"), CONSTRUCTOR)
def test_constructor(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_dropout_on_one_layer_warns_as_torch_does():
    with pytest.warns(UserWarning, match="expects num_layers greater than 1"):
        fusedrnn.GRU(3, 2, dropout=0.1)


h, x = torch.zeros(1, 2, 5), torch.zeros(4, 2, 3)
FORWARD = [
    (lambda m: m(torch.zeros(4, 2, 2)), RuntimeError, r"input.size\(-1\).*Expected 3, got 2"),
    (lambda m: m(torch.zeros(3)), ValueError, "Expected input to be 2D or 3D, got 1D"),
    (
        lambda m: m(x.double()),
        ValueError,
        r"input dtype \(torch.float64\).*model.to\(torch.float64",
    ),
    (lambda m: m(x.to("meta")), RuntimeError, "input is on meta and the weights are on cpu"),
    (lambda m: m(x, (h,)), RuntimeError, "hx must hold 2 tensors, got 1"),
    (lambda m: m(x, (h, h[0])), RuntimeError, "hx should also be 3-D but c is a 2-D"),
    (lambda m: m(x[:, 0], (h, h)), RuntimeError, "hx should also be 2-D but h is a 3-D"),
    (lambda m: m(x, (h[:, :1], h)), RuntimeError, r"Expected hidden size \(1, 2, 5\) for h"),
    (lambda m: m(x, (h, h[..., :4])), RuntimeError, r"Expected hidden size \(1, 2, 5\) for c"),
    (lambda m: m(x, (h, h.double())), RuntimeError, r"c in hx has dtype torch.float64.*c.to\("),
    (lambda m: m(x, (h.to("meta"), h)), RuntimeError, "h in hx is on meta and input is on cpu"),
]


@pytest.mark.parametrize(("call", "error", "message"), FORWARD)
def test_forward(call, error, message, device):
    if device.type != "cpu":
        pytest.skip("the checks do not depend on the device")
    with pytest.raises(error, match=message):
        call(fusedrnn.LSTM(3, 5))


def test_unsorted_lengths_are_refused_where_sorting_was_promised():
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):
        torch.nn.utils.rnn.pack_padded_sequence(x, [2, 4])


def test_backend_names():
    with pytest.raises(ValueError, match="backend name is 'gpu'; it must be one of auto, cuda"):
        with fusedrnn.backend("gpu"):
            pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "cannot serve this call: the tensors are on cpu"),
        ("triton", "cannot serve this call: .*(TRITON_INTERPRET=1|not installed)"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(name, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with fusedrnn.backend(name), pytest.raises(RuntimeError, match=message):
        fusedrnn.LSTM(3, 5)(x)


def test_cpu_backend_without_the_library_says_why(monkeypatch):
    monkeypatch.setattr(_native, "MISSING", "there is no libfusedrnn.so")
    with fusedrnn.backend("cpu"), pytest.raises(RuntimeError, match="there is no libfusedrnn.so"):
        fusedrnn.LSTM(3, 5)(x)
    assert fusedrnn.LSTM(3, 5)(x)[0].shape == (4, 2, 5)  # auto: the reference


@pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
def test_a_dtype_without_kernels():
    cell = torch.complex64
    with fusedrnn.backend("cpu"), pytest.raises(RuntimeError, match="dtype is torch.complex64"):
        fusedrnn.LSTM(3, 5).to(cell)(x.to(cell))


def test_backends_nest_and_end():
    lstm = fusedrnn.LSTM(3, 5)
    with fusedrnn.backend("reference"):
        with fusedrnn.backend("cuda"), pytest.raises(RuntimeError):
            lstm(x)
        assert "Sequence" not in str(lstm(x)[0].grad_fn)
    assert fusedrnn._backend.current() == "auto"
