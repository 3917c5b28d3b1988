"""torch.func: per-sample gradients, Jacobians forward and backward. The reference serves them."""

import pytest
import torch
from exactness import assert_close64
from samples import LAYERS
from torch.func import functional_call, grad, jacrev, jvp, vmap

import fusedrnn


def loss_of(layer):
    """The loss of one sequence ``[T, I]`` as a function of the parameters."""

    def loss(parameters, x):
        y, _ = functional_call(layer, parameters, (x,))
        return y.square().sum()

    return loss


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_per_sample_gradients(name, bidirectional):
    _, ours, options = LAYERS[name]
    layer = ours(3, 5, bidirectional=bidirectional, **options, dtype=torch.float64)
    parameters, x = dict(layer.named_parameters()), torch.randn(4, 6, 3, dtype=torch.float64)
    samples = vmap(grad(loss_of(layer)), (None, 0))(parameters, x)
    for i, row in enumerate(x):
        alone = torch.autograd.grad(loss_of(layer)(parameters, row), list(parameters.values()))
        assert_close64([samples[k][i] for k in parameters], list(alone), name)


class Output(torch.nn.Module):
    """y of a layer, batch first: what per-sample hooks are put on."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


HOOKED = {
    "lstm": lambda **o: fusedrnn.LSTM(3, 5, peephole="diagonal", **o),
    "normed": lambda **o: fusedrnn.LSTM(3, 5, layer_norm=True, **o),
    "gru": lambda **o: fusedrnn.GRU(3, 5, bidirectional=True, **o),
    "independent": lambda **o: fusedrnn.RNN(3, 5, independent=True, **o),
}


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_find_per_sample_gradients(name):
    """As Opacus does: inputs and gradients of the output are caught on the way, by hooks, and each
    sample's gradients are made of them afterwards; their sum is the gradient."""
    torch.manual_seed(0)
    model = Output(HOOKED[name](batch_first=True, dtype=torch.float64))
    caught = {}
    hooks = [
        model.register_forward_hook(lambda m, args, y: caught.update(x=args[0].detach())),
        model.register_full_backward_hook(lambda m, dx, dy: caught.update(dy=dy[0])),
    ]
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    for hook in hooks:
        hook.remove()
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def one(parameters, x, dy):
        return (functional_call(model, parameters, (x.unsqueeze(0),)) * dy).sum()

    samples = vmap(grad(one), (None, 0, 0))(parameters, caught["x"], caught["dy"])
    total = [samples[n].sum(0) for n in parameters]
    assert_close64(total, [p.grad for p in model.parameters()], name)
    assert all(s.shape[0] == 4 for s in samples.values())


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_reverse_mode_agree(name):
    _, ours, options = LAYERS[name]
    layer, x = ours(3, 5, **options, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    direction = torch.randn_like(x)
    _, forward = jvp(lambda v: layer(v)[0], (x,), (direction,))
    jacobian = jacrev(lambda v: layer(v)[0])(x)
    assert_close64(forward, (jacobian * direction).sum((-1, -2)), name)


def test_a_kernel_asked_for_by_name_says_why_it_cannot():
    layer, x = fusedrnn.GRU(3, 5), torch.randn(6, 3)
    with fusedrnn.backend("cpu"), pytest.raises(RuntimeError, match="torch.func transform is"):
        jvp(lambda v: layer(v)[0], (x,), (x,))
