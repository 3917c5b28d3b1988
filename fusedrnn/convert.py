"""Replace the recurrent modules of torch.nn, and its adaptive softmax, anywhere in a model."""

from typing import NamedTuple

import torch
from torch import nn

from .adaptive import AdaptiveLogSoftmaxWithLoss
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN

_LAYER = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
# For each torch.nn class: ours, and the attributes that are its constructor's arguments.
_TWINS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    nn.LSTM: (LSTM, (*_LAYER, "proj_size")),
    nn.GRU: (GRU, _LAYER),
    nn.RNN: (RNN, (*_LAYER, "nonlinearity")),
    nn.LSTMCell: (LSTMCell, ("bias",)),
    nn.GRUCell: (GRUCell, ("bias",)),
    nn.RNNCell: (RNNCell, ("bias", "nonlinearity")),
    nn.AdaptiveLogSoftmaxWithLoss: (AdaptiveLogSoftmaxWithLoss, ()),
}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Conversion(NamedTuple):
    """What :func:`convert` did.

    Attributes:
        module: the model; another object than the argument only if that was itself replaced.
        replaced: name of each replaced module and what became of it.
        left: name of each such module that stayed as it was, and why.
    """

    module: nn.Module
    replaced: dict[str, str]
    left: dict[str, str]


def convert(module: nn.Module) -> Conversion:
    """Replace modules of torch.nn in a model by those of fusedrnn, in place.

    Replaced are LSTM, GRU, RNN, their cells, and AdaptiveLogSoftmaxWithLoss.

    The new modules hold the very same Parameters, so optimizers, tied weights and state_dicts go on
    as before. A module that appears in several places is replaced by one new module. Hooks and
    training mode are kept. Subclasses, scripted and parametrized modules are left alone.

    Args:
        module: any module; its children are searched.

    Returns:
        A :class:`Conversion`: the model, what was replaced, what was left and why.

    Raises:
        TypeError: ``module`` is no ``torch.nn.Module``.

    Example:
        >>> import torch, fusedrnn
        >>> model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
        >>> fusedrnn.convert(model).replaced
        {'0': 'torch.nn.LSTM -> fusedrnn.LSTM'}
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    done: dict[nn.Module, nn.Module] = {}
    result = Conversion(module, {}, {})
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(child, tuple(_TWINS)) or isinstance(child, AdaptiveLogSoftmaxWithLoss):
            continue
        if reason := _obstacle(child):
            result.left[name] = reason
            continue
        if child not in done:
            done[child] = _twin(child)
        new = done[child]
        result.replaced[name] = f"torch.nn.{type(child).__name__} -> fusedrnn.{type(new).__name__}"
        if name == "":
            return result._replace(module=new)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, new)
    return result


def _obstacle(module: nn.Module) -> str | None:
    """Why this module must stay, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized: remove the parametrizations, convert, and register them again"
    if type(module) not in _TWINS:
        return f"{type(module).__qualname__} is a subclass, whose changes would be lost"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    tensors = {p for p in module.__dict__ if isinstance(module.__dict__[p], torch.Tensor)}
    if tensors:  # torch.nn.utils.prune, weight_norm: the weight is a plain tensor set by a hook
        return f"{', '.join(sorted(tensors))} is computed by a hook (pruning or weight norm)"
    dtype = next(module.parameters()).dtype
    if dtype not in _DTYPES:
        return f"its dtype is {dtype}; the kernels take float64, float32, bfloat16 and float16"
    return None


def _twin(old: nn.Module) -> nn.Module:
    """Our module with the old one's options, parameters, hooks and mode."""
    cls, names = _TWINS[type(old)]
    if cls is AdaptiveLogSoftmaxWithLoss:
        new = cls.sharing(old)
    else:
        options = {name: getattr(old, name) for name in names}
        new = cls(old.input_size, old.hidden_size, **options, device="meta")
        for name in list(new._parameters):
            new._parameters[name] = old._parameters[name]
    for name, value in old.__dict__.items():
        if name.endswith("_hooks") or name.endswith(("_with_kwargs", "_always_called")):
            new.__dict__[name] = value
    new.training = old.training
    return new
