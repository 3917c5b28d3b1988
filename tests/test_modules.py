"""LSTM, GRU and RNN against torch.nn, for every option."""

import copy
import pickle

import pytest
import torch
from exactness import assert_close64, assert_exact
from samples import CASES, LAYERS, case_id, random_input, run, twins
from torch import nn

import fusedrnn


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_equals_torch(case, given, device, dtype):
    name, options = case
    if dtype == torch.float16 and options.get("proj_size") and device.type == "cpu":
        pytest.skip("torch.nn.LSTM has no float16 projection on a CPU to compare with")
    ours, theirs, exact = twins(name, (5, 7), dtype, device, **options)
    inputs = [random_input(name, 6, 3, 5, dtype=dtype, device=device)]
    if given:
        inputs.append(random_states(theirs, inputs[0], options))
    (y, g), (ty, tg), (ey, eg) = run(ours, inputs), run(theirs, inputs), run(exact, inputs)
    if dtype == torch.float64:
        assert_close64([y, g], [ey, eg], case_id(case))
    else:
        assert_exact([y, g], [ty, tg], [ey, eg], dtype, case_id(case))


def random_states(module, x, options):
    """Random initial states in the form that the module takes."""
    batch = x.shape[0] if options.get("batch_first") else x.shape[1]
    count = module.num_layers * (2 if module.bidirectional else 1)
    h = x.new_empty(count, batch, module.proj_size or module.hidden_size).normal_()
    h = h.abs() if getattr(module, "nonlinearity", "") == "relu" else h
    if not isinstance(module, nn.LSTM):
        return h
    return h, x.new_empty(count, batch, module.hidden_size).normal_()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 7, 33, 2), (7, 1, 13, 67), (3, 33, 1, 130)])
def test_odd_sizes(name, sizes, device):
    T, B, features, hidden = sizes
    ours, theirs, exact = twins(name, (features, hidden), torch.float32, device)
    inputs = [random_input(name, T, B, features, device=device)]
    assert_exact(run(ours, inputs), run(theirs, inputs), run(exact, inputs), torch.float32, name)


@pytest.mark.parametrize("name", LAYERS)
def test_language_model_size_keeps_the_error_rule(name):
    ours, theirs, exact = twins(name, (200, 200), torch.float32)
    inputs = [random_input(name, 35, 20, 200)]
    assert_exact(run(ours, inputs), run(theirs, inputs), run(exact, inputs), torch.float32, name)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_unbatched(name, given, device):
    ours, theirs, _ = twins(name, (5, 7), torch.float64, device)
    inputs = [torch.randn(6, 5, device=device)]
    if given:
        h = torch.randn(1, 7, device=device)
        inputs.append((h, torch.randn(1, 7, device=device)) if name == "lstm" else h)
    assert_close64(run(ours, inputs), run(theirs, inputs), name)


def test_empty_batch(device):
    for name in LAYERS:
        ours, theirs, _ = twins(name, (5, 7), torch.float32, device)
        (y, g), (ty, tg) = run(ours, [torch.randn(6, 0, 5)]), run(theirs, [torch.randn(6, 0, 5)])
        assert [t.shape for t in y + g] == [t.shape for t in ty + tg]
        assert all((a == b).all() for a, b in zip(g, tg, strict=True))


def test_no_steps_raises_as_torch_does(device):
    for name in LAYERS:
        for module in twins(name, (5, 7), torch.float32, device)[:2]:
            with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
                module(torch.randn(0, 2, 5, device=device))


def test_dropout_draws_what_torch_draws(device):
    ours, theirs, _ = twins("lstm", (5, 7), torch.float64, device, num_layers=3, dropout=0.4)
    x = torch.randn(6, 3, 5, dtype=torch.float64, device=device)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(module(x)[0])
    assert_close64(outputs[0], outputs[1], "dropout")
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_same_input_same_bits(name, device):
    ours, _, _ = twins(name, (40, 50), torch.float32, device, num_layers=2, bidirectional=True)
    x = [torch.randn(9, 5, 40, device=device)]
    first, again = run(ours, x), run(ours, x)
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)


def test_bits_do_not_depend_on_the_number_of_threads():
    ours, _, _ = twins("gru", (64, 96), torch.float32)
    x, threads, results = [torch.randn(5, 32, 64)], torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ours(x[0])[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", LAYERS)
def test_backward_in_eval_mode_and_twice(name, device):
    ours, _, _ = twins(name, (5, 7), torch.float64, device)
    x = torch.randn(6, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    loss = ours.eval()(x)[0].sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, again)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "bias_ih_l0"])
def test_frozen_parameters_get_no_gradient_and_change_none(frozen, device):
    ours, _, _ = twins("gru", (5, 7), torch.float64, device)
    x = torch.randn(6, 3, 5, dtype=torch.float64, device=device)
    grads = []
    for freeze in (False, True):
        ours.zero_grad(set_to_none=True)
        getattr(ours, frozen).requires_grad_(not freeze)
        ours(x)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in ours.named_parameters()})
    assert grads[1].pop(frozen) is None
    for n, g in grads[1].items():
        assert torch.equal(g, grads[0][n])


def test_state_dict_repr_copy_pickle(device):
    for case in CASES:
        ours, theirs, _ = twins(case[0], (5, 7), torch.float32, device, **case[1])
        theirs.load_state_dict(ours.state_dict(), strict=True)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        x = torch.randn(4, 2, 5, device=device)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(other(x)[0], ours(x)[0])
            assert other.weight_ih_l0 is not ours.weight_ih_l0
        if "nonlinearity" not in repr(ours):
            assert repr(ours) == repr(theirs)
        shapes = [[tuple(p.shape) for p in group] for group in ours.all_weights]
        assert shapes == [[tuple(p.shape) for p in group] for group in theirs.all_weights]
        assert ours.flatten_parameters() is None


def test_initialisation_is_torchs():
    for case in CASES:
        theirs_class, ours_class, named = LAYERS[case[0]]
        states = []
        for cls in (theirs_class, ours_class):
            torch.manual_seed(5)
            states.append(cls(5, 7, **named, **case[1]).state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_extras_show_in_repr():
    assert repr(fusedrnn.GRU(2, 3, reset_after=False)) == "GRU(2, 3, reset_after=False)"
    assert repr(fusedrnn.LSTM(2, 3, forget_bias=1.0)) == "LSTM(2, 3, forget_bias=1.0)"
    assert repr(fusedrnn.RNN(2, 3, nonlinearity="sigmoid")) == "RNN(2, 3, nonlinearity=sigmoid)"
