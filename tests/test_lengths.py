"""PackedSequence and lengths= through the modules."""

import pytest
import torch
from exactness import assert_close64
from samples import CASES, LAYERS, case_id, twins
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fusedrnn

LENGTHS = [3, 6, 1, 4]


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("order", ["sorted", "unsorted"])
def test_packed_equals_torch(case, order, device):
    name, options = case
    ours, theirs, _ = twins(name, (5, 7), torch.float64, device, **options)
    lengths = sorted(LENGTHS, reverse=True) if order == "sorted" else LENGTHS
    x = torch.randn(6, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    results = []
    for module in (ours, theirs):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=order == "sorted")
        y, state = module(packed)
        assert torch.equal(y.batch_sizes, packed.batch_sizes)
        leaves = torch.utils._pytree.tree_leaves(state)
        total = y.data.square().sum() + sum(s.sin().sum() for s in leaves)
        grads = torch.autograd.grad(total, [x, *module.parameters()])
        results.append([y.data, pad_packed_sequence(y)[0], state, grads])
    assert_close64(results[0], results[1], case_id(case))


@pytest.mark.parametrize("name", LAYERS)
def test_packed_takes_initial_states_in_the_batchs_order(name, device):
    ours, theirs, _ = twins(name, (5, 7), torch.float64, device)
    packed = pack_sequence([torch.randn(n, 5, device=device).double() for n in LENGTHS], False)
    h = torch.randn(1, 4, 7, dtype=torch.float64, device=device)
    hx = (h, torch.randn_like(h)) if name == "lstm" else h
    (y, state), (ty, tstate) = ours(packed, hx), theirs(packed, hx)
    assert_close64([y.data, state], [ty.data, tstate], name)
    for ours_index, theirs_index in zip(y[2:], ty[2:], strict=True):
        assert torch.equal(ours_index, theirs_index)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_lengths_equal_packed(case, device):
    """A padded batch with lengths= gives what packing, running and padding gives."""
    name, options = case
    ours, _, _ = twins(name, (5, 7), torch.float64, device, **options)
    batch_first = bool(options.get("batch_first"))
    x = torch.randn(4, 6, 5) if batch_first else torch.randn(6, 4, 5)
    x = x.double().to(device).requires_grad_()
    results = []
    for packed in (True, False):
        if packed:
            y, state = ours(pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False))
            y = pad_packed_sequence(y, batch_first)[0]
        else:
            y, state = ours(x, lengths=torch.tensor(LENGTHS))
        leaves = torch.utils._pytree.tree_leaves(state)
        total = y.square().sum() + sum(s.sin().sum() for s in leaves)
        results.append([y, state, torch.autograd.grad(total, [x, *ours.parameters()])])
    assert_close64(results[0], results[1], case_id(case))


def test_what_lies_in_the_padding_is_never_read(device):
    lstm = fusedrnn.LSTM(3, 4, num_layers=2, bidirectional=True).to(device)
    x = torch.randn(5, 2, 3, device=device)
    y, _ = lstm(x, lengths=torch.tensor([2, 5]))
    x[2:, 0] = 1e30
    again, _ = lstm(x, lengths=torch.tensor([2, 5]))
    assert torch.equal(y, again)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([1.0, float("nan")]), TypeError, "lengths has dtype torch.float32"),
        (torch.tensor([1, 2, 3]), ValueError, r"one length for each of the 2 rows"),
        (torch.tensor([0, 2]), ValueError, r"range from 0 to 2; each must be in 1..5"),
        (torch.tensor([2, 6]), ValueError, r"range from 2 to 6; each must be in 1..5"),
        ([1, 2.5], TypeError, "must hold integers"),
    ],
)
def test_bad_lengths(lengths, error, message):
    with pytest.raises(error, match=message):
        fusedrnn.GRU(3, 4)(torch.randn(5, 2, 3), lengths=lengths)


def test_lengths_with_packed_input_is_refused():
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    with pytest.raises(ValueError, match="pass one of the two"):
        fusedrnn.GRU(3, 4)(packed, lengths=torch.tensor([5, 2]))


def test_lengths_take_a_list_and_int32(device):
    gru, x = fusedrnn.GRU(3, 4).to(device), torch.randn(5, 2, 3, device=device)
    y, _ = gru(x, lengths=[5, 2])
    assert torch.equal(y, gru(x, lengths=torch.tensor([5, 2], dtype=torch.int32))[0])
