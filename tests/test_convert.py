"""convert() on a model with nested, shared and bidirectional modules."""

import pytest
import torch
from exactness import assert_close64
from torch import nn

import fusedrnn


class Own(nn.LSTM):
    """A user's subclass."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.encoder = nn.ModuleDict({"fwd": nn.GRU(6, 5, 2, bidirectional=True, dropout=0.0)})
        self.shared = nn.LSTM(10, 10, batch_first=True, proj_size=0, bias=False)
        self.again = self.shared
        self.inner = nn.Sequential(nn.Linear(10, 6), nn.RNN(6, 4, nonlinearity="relu"))
        self.cells = nn.ModuleList(
            [nn.LSTMCell(4, 4), nn.GRUCell(4, 4, bias=False), nn.RNNCell(4, 4)]
        )
        self.own = Own(4, 4)
        self.normed = nn.utils.parametrizations.weight_norm(nn.GRU(4, 4), "weight_hh_l0")
        self.tied = nn.RNN(4, 4)
        self.tied.weight_hh_l0 = self.inner[1].weight_hh_l0

    def forward(self, tokens):
        x, _ = self.encoder["fwd"](self.embed(tokens))
        x, _ = self.again(self.shared(x)[0])
        x, _ = self.inner(x)
        h, _ = self.cells[0](x[-1])
        h = self.cells[2](self.cells[1](h))
        x, _ = self.normed(self.own(h.unsqueeze(0))[0])
        return self.tied(x)[0]


def test_convert_a_model():
    model = Model().double()
    tokens = torch.randint(0, 11, (7, 3))
    before, params = model(tokens), dict(model.named_parameters())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    result = fusedrnn.convert(model)
    assert result.module is model
    assert result.replaced == {
        "encoder.fwd": "torch.nn.GRU -> fusedrnn.GRU",
        "shared": "torch.nn.LSTM -> fusedrnn.LSTM",
        "again": "torch.nn.LSTM -> fusedrnn.LSTM",
        "inner.1": "torch.nn.RNN -> fusedrnn.RNN",
        "cells.0": "torch.nn.LSTMCell -> fusedrnn.LSTMCell",
        "cells.1": "torch.nn.GRUCell -> fusedrnn.GRUCell",
        "cells.2": "torch.nn.RNNCell -> fusedrnn.RNNCell",
        "tied": "torch.nn.RNN -> fusedrnn.RNN",
    }
    assert set(result.left) == {"own", "normed"}
    assert "subclass" in result.left["own"] and "parametrized" in result.left["normed"]
    assert model.shared is model.again and isinstance(model.shared, fusedrnn.LSTM)
    assert model.tied.weight_hh_l0 is model.inner[1].weight_hh_l0
    after = dict(model.named_parameters())
    assert list(after) == list(params) and all(after[k] is params[k] for k in params)
    assert_close64(model(tokens), before, "converted")
    model.load_state_dict(state, strict=True)
    model(tokens).sum().backward()
    optimizer.step()
    assert not torch.equal(model.tied.weight_hh_l0, state["tied.weight_hh_l0"])
    assert fusedrnn.convert(model).replaced == {}


def test_a_root_module_comes_back_as_another():
    lstm = nn.LSTM(3, 5).eval()
    result = fusedrnn.convert(lstm)
    assert isinstance(result.module, fusedrnn.LSTM) and not result.module.training
    assert result.module.weight_ih_l0 is lstm.weight_ih_l0
    assert result.replaced == {"": "torch.nn.LSTM -> fusedrnn.LSTM"}


def test_hooks_come_along():
    model, seen = nn.Sequential(nn.GRU(3, 5)), []
    handle = model[0].register_forward_hook(lambda m, i, o: seen.append(type(m)))
    model[0].register_forward_pre_hook(lambda m, a, k: (a, {**k, "hx": None}), with_kwargs=True)
    fusedrnn.convert(model)
    model(torch.randn(2, 1, 3))
    handle.remove()
    model(torch.randn(2, 1, 3))
    assert seen == [fusedrnn.GRU]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.jit.script(nn.LSTM(3, 5)), "scripted"),
        (lambda: nn.LSTM(3, 5).to(torch.float8_e4m3fn), "dtype is torch.float8_e4m3fn"),
        (lambda: nn.utils.prune.identity(nn.GRUCell(3, 5), "weight_hh"), "computed by a hook"),
    ],
)
def test_what_stays_says_why(make, reason):
    import torch.nn.utils.prune  # noqa: F401

    model = nn.Module()
    model.rnn = before = make()
    result = fusedrnn.convert(model)
    if reason == "scripted" and not result.left:
        assert not isinstance(before, nn.LSTM)  # a RecursiveScriptModule is no nn.LSTM
    else:
        assert reason in result.left["rnn"]
    assert model.rnn is before


def test_not_a_module():
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got dict"):
        fusedrnn.convert({})
