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
