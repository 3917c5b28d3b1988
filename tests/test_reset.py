"""reset= and reset_hx= through the modules; the op itself is tested in test_sequence.py."""

import pytest
import torch
from exactness import assert_close64
from samples import LAYERS
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn

T, B = 6, 3
MASK = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]).bool()


def layer_of(name, device, **options):
    _, ours, named = LAYERS[name]
    layer = ours(5, 7, **named, **options, dtype=torch.float64, device=device)
    return layer, torch.randn(T, B, 5, dtype=torch.float64, device=device, requires_grad=True)


def states(layer, fill=None):
    """Random, or constant, states in the form that the layer takes."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h, c = (torch.randn(count, B, 7).to(layer.weight_ih_l0) for _ in range(2))
    if fill is not None:
        h, c = h.fill_(fill), c.fill_(fill)
    return (h, c) if isinstance(layer, fusedrnn.LSTM) else h


def step_by_step(layer, x, mask, hx, anew):
    """What a user writes without reset=: one call a step, states replaced by hand."""
    leaves, y = torch.utils._pytree.tree_map, []
    for t in range(T):
        hx = leaves(lambda a, b, t=t: torch.where(mask[t, :, None], a, b), anew, hx)
        out, hx = layer(x[t : t + 1], hx)
        y.append(out)
    return torch.cat(y), hx


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "reset_hx"])
def test_equals_a_loop_that_replaces_states(name, given, device):
    layer, x = layer_of(name, device)
    hx, anew = states(layer), states(layer, None if given else 0.0)
    mask, leaves = MASK.to(device), torch.utils._pytree.tree_leaves((hx, anew) if given else hx)
    wrt = [x, *layer.parameters(), *(t.requires_grad_() for t in leaves)]
    results = []
    for y, end in (
        layer(x, hx, reset=mask, reset_hx=anew if given else None),
        step_by_step(layer, x, mask, hx, anew),
    ):
        total = y.square().sum() + sum(s.sin().sum() for s in torch.utils._pytree.tree_leaves(end))
        results.append([y, end, torch.autograd.grad(total, wrt)])
    assert_close64(*results, name)


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_bidirectional_layers_see_each_part_alone(name, device):
    layer, x = layer_of(name, device, num_layers=2, bidirectional=True)
    mask = torch.zeros(T, B, dtype=torch.bool, device=device)
    mask[4] = True
    y, _ = layer(x, reset=mask)
    assert_close64(y, torch.cat([layer(x[:4])[0], layer(x[4:])[0]]), name)


def test_the_mask_is_laid_out_as_the_input(device):
    layer, x = layer_of("lstm", device)
    y, _ = layer(x, reset=MASK.to(device))
    alone, _ = layer(x[:, 0], reset=MASK[:, 0].to(device))
    assert_close64(alone, y[:, 0], "unbatched")
    layer.batch_first = True
    first, _ = layer(x.transpose(0, 1), reset=MASK.t().to(device))
    assert torch.equal(first.transpose(0, 1), y)


def test_resets_in_one_compiled_graph(device):
    layer, x = layer_of("gru", device, bidirectional=True)
    anew = states(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = [
        module(x, reset=MASK.to(device), reset_hx=anew)[0].square().sum()
        for module in (layer, compiled)
    ]
    grads = [torch.autograd.grad(total, list(layer.parameters())) for total in results]
    assert_close64([results[0], *grads[0]], [results[1], *grads[1]], "compiled")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"reset": MASK.float()}, TypeError, "reset has dtype torch.float32; it must be a bool"),
        ({"reset": [True] * B}, TypeError, "reset has list; it must be a bool tensor"),
        ({"reset": MASK.t()}, ValueError, r"reset has shape \(3, 6\); it must have .* \(6, 3\)"),
        ({"reset_hx": torch.zeros(1, B, 7)}, ValueError, "reset_hx was given without reset"),
        (
            {"reset": MASK, "reset_hx": torch.zeros(1, B, 6)},
            RuntimeError,
            r"Expected hidden size \(1, 3, 7\) for h in reset_hx",
        ),
    ],
)
def test_bad_resets(given, error, message):
    with pytest.raises(error, match=message):
        fusedrnn.GRU(5, 7)(torch.randn(T, B, 5), **given)


def test_a_reset_with_packed_input_is_refused():
    packed = pack_padded_sequence(torch.randn(T, B, 5), [6, 4, 2])
    with pytest.raises(ValueError, match="reset was given with a PackedSequence.*lengths= and"):
        fusedrnn.GRU(5, 7)(packed, reset=MASK)
