"""Initialisers of recurrent layers."""

import torch
from torch import Tensor, nn

from .cells import CELLS


def _named(rnn: nn.Module, prefix: str) -> list[Tensor]:
    found = [p for name, p in rnn.named_parameters(recurse=False) if name.startswith(prefix)]
    if not found:
        raise ValueError(
            f"rnn is a {type(rnn).__name__} without parameters named {prefix}*: it must be a "
            "recurrent layer or cell of fusedrnn or torch.nn (with biases, if a bias is to be set)"
        )
    return found


@torch.no_grad()
def identity_(rnn: nn.Module) -> nn.Module:
    """Make the recurrent weights identities and the biases zero: the IRNN (Le et al. 2015).

    ``weight_hh`` becomes the identity; ``weight_ih`` of every layer that is as wide as its input
    too (rectangular ones keep their initialisation). Meant for ``RNN(nonlinearity="relu")``.

    Args:
        rnn: an RNN or RNNCell, of fusedrnn or torch.nn.

    Returns:
        ``rnn``.

    Raises:
        ValueError: ``rnn`` has gates, or is no recurrent module.

    Example:
        >>> import fusedrnn
        >>> rnn = fusedrnn.init.identity_(fusedrnn.RNN(4, 4, nonlinearity="relu"))
        >>> rnn.weight_hh_l0.diagonal().sum().item()
        4.0
    """
    for weight in _named(rnn, "weight_hh"):
        if weight.shape[0] != weight.shape[1]:
            raise ValueError(
                f"rnn is a {type(rnn).__name__} with weight_hh {tuple(weight.shape)}: the identity "
                "is for plain RNNs, whose weight_hh is square"
            )
        nn.init.eye_(weight)
    for weight in _named(rnn, "weight_ih"):
        if weight.shape[0] == weight.shape[1]:
            nn.init.eye_(weight)
    for name, p in rnn.named_parameters(recurse=False):
        if name.startswith("bias"):
            p.zero_()
    return rnn


@torch.no_grad()
def forget_bias_(rnn: nn.Module, value: float = 1.0) -> nn.Module:
    """Set the forget gate's bias of an LSTM (Gers et al. 2000; Jozefowicz et al. 2015).

    torch's LSTM has two biases a gate, which are added: ``bias_ih`` gets ``value`` and ``bias_hh``
    zero, so that their SUM is ``value``.

    Args:
        rnn: an LSTM, SLSTM or LSTMCell, of fusedrnn or torch.nn, with biases.
        value: the sum.

    Returns:
        ``rnn``.

    Raises:
        ValueError: ``rnn`` has no biases, or no forget gate.

    Example:
        >>> import fusedrnn
        >>> lstm = fusedrnn.init.forget_bias_(fusedrnn.LSTM(3, 2), 1.0)
        >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0)[2:4]
        tensor([1., 1.], grad_fn=<SliceBackward0>)
    """
    H = rnn.hidden_size
    gates = CELLS[rnn.cell].gates if hasattr(rnn, "cell") else ("i", "f", "g", "o")
    for prefix, v in (("bias_ih", value), ("bias_hh", 0.0)):
        for bias in _named(rnn, prefix):
            if "f" not in gates or bias.shape[0] != len(gates) * H:
                raise ValueError(
                    f"rnn is a {type(rnn).__name__} whose biases have {bias.shape[0] // H} gates: "
                    "only an LSTM has a forget gate"
                )
            f = gates.index("f") * H
            bias[f : f + H] = v
    return rnn
