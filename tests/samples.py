"""Problems that the tests share: layer options, and torch.nn twins with equal weights."""

import copy
from itertools import product

import torch
from torch import nn

import fusedrnn

LAYERS = {
    "lstm": (nn.LSTM, fusedrnn.LSTM, {}),
    "gru": (nn.GRU, fusedrnn.GRU, {}),
    "rnn_tanh": (nn.RNN, fusedrnn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, fusedrnn.RNN, {"nonlinearity": "relu"}),
}
"""The layers that torch.nn has too: its class, ours, and the options that name the cell."""

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
]
PROJECTED = [{"proj_size": 3}, {"proj_size": 2, "num_layers": 2, "bidirectional": True}]

CASES = [(name, o) for name, o in product(LAYERS, OPTIONS)] + [("lstm", o) for o in PROJECTED]
"""Every layer with every set of options that it takes."""


def case_id(case: tuple[str, dict]) -> str:
    """A readable id for a case."""
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


def twins(
    name: str, sizes: tuple[int, int], dtype: torch.dtype, device: object = "cpu", **options: object
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours, torch.nn's, and torch.nn's in float64 with the same (rounded) weights."""
    theirs_class, ours_class, named = LAYERS[name]
    theirs = theirs_class(*sizes, **named, **options, dtype=dtype, device=device)
    if name == "rnn_relu":
        keep_off_the_kink(theirs)
    ours = ours_class(*sizes, **named, **options, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, copy.deepcopy(theirs).double()


@torch.no_grad()
def keep_off_the_kink(rnn: nn.Module) -> None:
    """Make every unit clearly active, every third one clearly not (with positive inputs).

    relu's gradient jumps where a preactivation rounds across zero: there an error says nothing
    about how exact an implementation is.
    """
    for name, p in rnn.named_parameters():
        p.abs_()
        if name.startswith("bias_ih"):
            p[::3] = -8.0


def random_input(name: str, *size: int, **kind: object) -> torch.Tensor:
    """Random values for a layer: positive for relu, see :func:`keep_off_the_kink`."""
    x = torch.randn(*size, **kind)
    return x.abs() if name == "rnn_relu" else x


def run(module: nn.Module, inputs: list, *, backward: bool = True) -> tuple[list, list]:
    """Outputs, and gradients of parameters and inputs under fixed random output gradients."""
    leaves = torch.utils._pytree.tree_leaves
    wide = next(module.parameters()).dtype
    inputs = torch.utils._pytree.tree_map(
        lambda t: t.detach().to(wide).requires_grad_() if t.is_floating_point() else t, inputs
    )
    outputs = [t for t in leaves(module(*inputs))]
    if not backward:
        return outputs, []
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    wrt = [*module.parameters(), *(t for t in leaves(inputs) if t.is_floating_point())]
    return outputs, list(torch.autograd.grad(outputs, wrt, grads))
