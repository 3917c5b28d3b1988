"""Initialisers, and the options that use them."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.init import forget_bias_, identity_


@pytest.mark.parametrize("cls", [fusedrnn.RNN, nn.RNN])
def test_identity(cls):
    rnn = identity_(cls(4, 4, 2, nonlinearity="relu", bidirectional=True))
    assert torch.equal(rnn.weight_hh_l1_reverse, torch.eye(4))
    assert torch.equal(rnn.weight_ih_l0, torch.eye(4))
    assert rnn.weight_ih_l1.shape == (4, 8) and not torch.equal(
        rnn.weight_ih_l1[:, :4], torch.eye(4)
    )
    assert not rnn.bias_ih_l0.any() and not rnn.bias_hh_l1.any()


def test_irnn_copies_positive_input_sums():
    """With identity weights h is the running sum of a positive input (Le et al. 2015)."""
    rnn = identity_(fusedrnn.RNN(4, 4, nonlinearity="relu"))
    x = torch.rand(6, 2, 4)
    torch.testing.assert_close(rnn(x)[0], x.cumsum(0))


@pytest.mark.parametrize("cls", [fusedrnn.LSTM, nn.LSTM, fusedrnn.LSTMCell])
def test_forget_bias_is_the_sum_of_both(cls):
    lstm = forget_bias_(cls(3, 2), 1.5)
    parameters = dict(lstm.named_parameters())
    ih = next(p for n, p in parameters.items() if n.startswith("bias_ih"))
    hh = next(p for n, p in parameters.items() if n.startswith("bias_hh"))
    assert torch.equal((ih + hh)[2:4], torch.full((2,), 1.5))
    assert ih[:2].abs().min() > 0


def test_forget_bias_option_touches_only_the_forget_gate():
    torch.manual_seed(1)
    plain = fusedrnn.LSTM(3, 2, 2, bidirectional=True)
    torch.manual_seed(1)
    lstm = fusedrnn.LSTM(3, 2, 2, bidirectional=True, forget_bias=1.0)
    for (name, a), b in zip(lstm.named_parameters(), plain.parameters(), strict=True):
        if not name.startswith("bias"):
            assert torch.equal(a, b)
            continue
        assert torch.equal(a[2:4], torch.full((2,), 1.0 if name.startswith("bias_ih") else 0.0))
        assert torch.equal(a[:2], b[:2]) and torch.equal(a[4:], b[4:])
    assert torch.equal(
        fusedrnn.LSTMCell(3, 2, forget_bias=2.0).bias_ih[2:4], torch.tensor([2.0, 2.0])
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: identity_(fusedrnn.LSTM(3, 2)), "whose weight_hh is square"),
        (lambda: identity_(nn.Linear(3, 2)), "without parameters named weight_hh"),
        (lambda: forget_bias_(fusedrnn.GRU(3, 2)), "only an LSTM has a forget gate"),
        (lambda: forget_bias_(fusedrnn.LSTM(3, 2, bias=False)), "without parameters named bias_ih"),
        (lambda: fusedrnn.LSTM(3, 2, bias=False, forget_bias=1.0), "there is none to set"),
        (lambda: fusedrnn.LSTMCell(3, 2, bias=False, forget_bias=1.0), "there is none to set"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
