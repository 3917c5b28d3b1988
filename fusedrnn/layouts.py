"""Weights in the layouts of Keras, TensorFlow and ONNX, and the two conventions of update gates.

Everything goes through :mod:`torch.nn`'s layout, which is ours: per layer and direction
``weight_ih [G*H, I]``, ``weight_hh [G*H, H]``, ``bias_ih`` and ``bias_hh [G*H]``, named as in a
``state_dict``. The other layouts differ in the order of the gates, in transposes, and in the number
of biases.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .cells import CELLS

_ORDERS = {  # the gates of each framework, by ours
    "Keras": {"ifgo": "ifgo", "rzn": "zrn", "h": "h"},
    "TensorFlow": {"ifgo": "igfo"},
    "ONNX": {"ifgo": "iofg", "rzn": "zrn", "h": "h"},
}


def from_keras(
    cell: str,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    *,
    layer: int = 0,
    reverse: bool = False,
) -> dict[str, Tensor]:
    """Turn the weights of a Keras LSTM, GRU or SimpleRNN into ours.

    Keras: https://keras.io/api/layers/recurrent_layers (gates i, f, c, o and z, r, h; both ends of
    the GRU's update gate as torch's).

    Args:
        cell: the registry's name, as ``module.cell``: ``"lstm"``, ``"gru"`` (``reset_after=True``,
            Keras's default), ``"gru_reset_before"`` (``reset_after=False``), ``"rnn_tanh"``...
        kernel: ``[I, G*H]``; tensors or arrays, ``keras_layer.get_weights()`` in its order.
        recurrent_kernel: ``[H, G*H]``.
        bias: ``[G*H]``, of ``"gru"`` ``[2, G*H]``; None with ``use_bias=False``.
        layer: names the parameters.
        reverse: names them as those of the backward direction (``get_weights()[3:]`` of a
            Bidirectional layer).

    Returns:
        Parameters for ``load_state_dict`` of a layer here or in torch.nn. Where Keras has one bias
        of two it is ``bias_ih``, and ``bias_hh`` is zero.

    Raises:
        ValueError: Keras has no such cell, or a shape does not fit; the message names it.

    Example:
        >>> import torch, fusedrnn
        >>> kernel, recurrent, bias = torch.randn(3, 20), torch.randn(5, 20), torch.zeros(20)
        >>> lstm = fusedrnn.LSTM(3, 5)
        >>> lstm.load_state_dict(fusedrnn.from_keras("lstm", kernel, recurrent, bias))
        <All keys matched successfully>
    """
    gates, order = _orders("Keras", cell)
    G = len(gates)
    kernel, recurrent_kernel = torch.as_tensor(kernel), torch.as_tensor(recurrent_kernel)
    H = _units(recurrent_kernel, "recurrent_kernel", "[H, G*H]", 0, 1, G)
    _check(kernel, "kernel", ("I", G * H))
    both, biases = _apart(cell), None
    if bias is not None:
        bias = torch.as_tensor(bias)
        _check(bias, "bias", (2, G * H) if both else (G * H,))
        biases = tuple(bias) if both else (bias, torch.zeros_like(bias))
    weights = (kernel.t(), recurrent_kernel.t(), *(biases or ()))
    return _named((_reordered(w, order, gates) for w in weights), layer, reverse)


def to_keras(
    cell: str, state: Mapping[str, Tensor], *, layer: int = 0, reverse: bool = False
) -> tuple[Tensor, ...]:
    """Turn our weights into those of a Keras LSTM, GRU or SimpleRNN: :func:`from_keras` undone.

    Args:
        cell: as in :func:`from_keras`.
        state: a ``state_dict`` of a layer here or in torch.nn.
        layer: which of its layers.
        reverse: the backward direction.

    Returns:
        kernel, recurrent_kernel and, where there are biases, bias: for ``keras_layer.set_weights``.
        One bias of Keras is the sum of our two.

    Raises:
        ValueError: Keras has no such cell, or no projection as this state has.
        KeyError: the state has no such layer.

    Example:
        >>> import fusedrnn
        >>> gru = fusedrnn.GRU(3, 5)
        >>> [tuple(w.shape) for w in fusedrnn.to_keras(gru.cell, gru.state_dict())]
        [(3, 15), (5, 15), (2, 15)]
    """
    gates, order = _orders("Keras", cell)
    found = _found("Keras", state, layer, reverse, len(gates))
    W, U, *biases = (_reordered(w, gates, order) for w in found)
    if biases:
        biases = [torch.stack(biases) if _apart(cell) else biases[0] + biases[1]]
    return W.t().contiguous(), U.t().contiguous(), *biases


def from_tensorflow(
    kernel: Any, bias: Any, *, forget_bias: float = 1.0, layer: int = 0, reverse: bool = False
) -> dict[str, Tensor]:
    """Turn the weights of TensorFlow 1's LSTMCell or BasicLSTMCell into ours.

    Gates i, j, f, o of ``[x, h] kernel + bias``, and c = sigmoid(f + forget_bias) * c' + ...:
    https://www.tensorflow.org/api_docs/python/tf/compat/v1/nn/rnn_cell/LSTMCell

    Args:
        kernel: ``[I + H, 4H]``.
        bias: ``[4H]``.
        forget_bias: what the cell adds at run time; here it becomes part of the bias.
        layer: names the parameters.
        reverse: names them as those of the backward direction.

    Returns:
        Parameters for ``load_state_dict`` of an LSTM here or in torch.nn; ``bias_hh`` is zero.

    Raises:
        ValueError: a shape does not fit; the message names it.

    Example:
        >>> import torch, fusedrnn
        >>> state = fusedrnn.from_tensorflow(torch.randn(8, 20), torch.zeros(20))
        >>> state["bias_ih_l0"][5:10]
        tensor([1., 1., 1., 1., 1.])
    """
    gates, order = _orders("TensorFlow", "lstm")
    kernel, bias = torch.as_tensor(kernel), torch.as_tensor(bias)
    if kernel.dim() != 2 or kernel.shape[1] % 4 or kernel.shape[0] <= kernel.shape[1] // 4:
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}, must be [I + H, 4*H]")
    H = kernel.shape[1] // 4
    _check(bias, "bias", (4 * H,))
    bias = _reordered(bias, order, gates)
    bias[H : 2 * H] += forget_bias
    W, U = (_reordered(w.t(), order, gates) for w in (kernel[:-H], kernel[-H:]))
    return _named((W, U, bias, torch.zeros_like(bias)), layer, reverse)


def to_tensorflow(
    state: Mapping[str, Tensor], *, forget_bias: float = 1.0, layer: int = 0, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn an LSTM's weights into those of TensorFlow 1: :func:`from_tensorflow` undone.

    Args:
        state: a ``state_dict`` of an LSTM here or in torch.nn.
        forget_bias: what the cell will add at run time, taken off here.
        layer: which of its layers.
        reverse: the backward direction.

    Returns:
        kernel ``[I + H, 4H]`` and bias ``[4H]``; zero but for ``forget_bias`` if ours has none.

    Raises:
        ValueError: it is no LSTM, or has a projection.
        KeyError: the state has no such layer.

    Example:
        >>> import fusedrnn
        >>> kernel, bias = fusedrnn.to_tensorflow(fusedrnn.LSTM(3, 5).state_dict())
        >>> kernel.shape, bias.shape
        (torch.Size([8, 20]), torch.Size([20]))
    """
    gates, order = _orders("TensorFlow", "lstm")
    W, U, *biases = _found("TensorFlow", state, layer, reverse, 4)
    H = U.shape[1]
    bias = biases[0] + biases[1] if biases else W.new_zeros(4 * H)
    bias[H : 2 * H] -= forget_bias
    kernel = _reordered(torch.cat([W, U], 1), gates, order).t().contiguous()
    return kernel, _reordered(bias, gates, order)


def from_onnx(
    cell: str, W: Any, R: Any, B: Any = None, P: Any = None, *, layer: int = 0
) -> dict[str, Tensor]:
    """Turn the weights of ONNX's LSTM, GRU or RNN into ours.

    ONNX: https://onnx.ai/onnx/operators (gates i, o, f, c and z, r, h; the update gate as torch's).

    Args:
        cell: ``"lstm"``, ``"gru"`` (``linear_before_reset=1``), ``"gru_reset_before"``
            (``linear_before_reset=0``, ONNX's default), ``"rnn_tanh"``...
        W: ``[D, G*H, I]``, D = 2 with ``direction="bidirectional"``; tensors or arrays.
        R: ``[D, G*H, H]``.
        B: ``[D, 2*G*H]``, that of W before that of R; None if absent.
        P: ``[D, 3*H]``, an LSTM's peepholes of i, o, f, for ``LSTM(peephole="diagonal")``.
        layer: names the parameters.

    Returns:
        Parameters for ``load_state_dict`` of a layer here or in torch.nn.

    Raises:
        ValueError: ONNX has no such cell, or a shape does not fit; the message names it.

    Example:
        >>> import torch, fusedrnn
        >>> W, R, B = torch.randn(2, 15, 3), torch.randn(2, 15, 5), torch.randn(2, 30)
        >>> gru = fusedrnn.GRU(3, 5, bidirectional=True)
        >>> gru.load_state_dict(fusedrnn.from_onnx("gru", W, R, B))
        <All keys matched successfully>
    """
    gates, order = _orders("ONNX", cell)
    W, R, B = torch.as_tensor(W), torch.as_tensor(R), None if B is None else torch.as_tensor(B)
    G = len(gates)
    H = _units(R, "R", "[D, G*H, H]", 2, 1, G)
    if (D := len(R)) not in (1, 2):
        raise ValueError(f"R has shape {tuple(R.shape)}: D, its first size, must be 1 or 2")
    _check(W, "W", (D, G * H, "I"))
    if B is not None:
        _check(B, "B", (D, 2 * G * H))
    if P is not None:
        if gates != "ifgo":
            raise ValueError(
                f"P was given for cell {cell!r}; peepholes are the LSTM's: leave it out"
            )
        P = torch.as_tensor(P)
        _check(P, "P", (D, 3 * H))
    state = {}
    for d in range(D):
        weights = (W[d], R[d], *(() if B is None else B[d].chunk(2)))
        state |= _named((_reordered(w, order, gates) for w in weights), layer, d == 1)
        if P is not None:
            state[_peepholes(layer, d == 1)] = _reordered(P[d], "iof", "ifo")
    return state


def to_onnx(cell: str, state: Mapping[str, Tensor], *, layer: int = 0) -> tuple[Tensor, ...]:
    """Turn our weights into those of ONNX's LSTM, GRU or RNN: :func:`from_onnx` undone.

    Args:
        cell: as in :func:`from_onnx`.
        state: a ``state_dict`` of a layer here or in torch.nn, of one or both directions.
        layer: which of its layers.

    Returns:
        W, R and, where there are biases or peepholes, B; with diagonal peepholes also P.

    Raises:
        ValueError: ONNX has no such cell, or no projection as this state has.
        KeyError: the state has no such layer.

    Example:
        >>> import fusedrnn
        >>> lstm = fusedrnn.LSTM(3, 5, bidirectional=True)
        >>> [tuple(w.shape) for w in fusedrnn.to_onnx("lstm", lstm.state_dict())]
        [(2, 20, 3), (2, 20, 5), (2, 40)]
    """
    gates, order = _orders("ONNX", cell)
    directions = []
    for reverse in (False, True)[: 1 + (f"weight_ih_l{layer}_reverse" in state)]:
        P = state.get(_peepholes(layer, reverse))
        found = _found("ONNX", state, layer, reverse, len(gates), peepholes=P is not None)
        W, R, *biases = (_reordered(w, gates, order) for w in found)
        if P is not None:
            _check(P, _peepholes(layer, reverse), (3 * W.shape[0] // 4,))
            biases = biases or [W.new_zeros(len(W))] * 2
        peepholes = () if P is None else (_reordered(P, "ifo", "iof"),)
        directions.append((W, R, *([torch.cat(biases)] if biases else ()), *peepholes))
    return tuple(torch.stack(w) for w in zip(*directions, strict=True))


def flip_update_gate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a GRU's weights from one convention of the update gate into the other.

    torch, Keras and ONNX have h = (1 - z) * n + z * h'; half of the literature (Chung et al. 2014)
    has h = z * n + (1 - z) * h'. Since 1 - sigmoid(a) = sigmoid(-a), the weights and biases of z
    change their sign, and twice is nothing.

    Args:
        state: a GRU's ``state_dict`` (gates r, z, n), all layers and directions.

    Returns:
        The new one.

    Raises:
        ValueError: a tensor is not one of three gates.

    Example:
        >>> import torch, fusedrnn
        >>> gru = fusedrnn.GRU(3, 5)
        >>> gru.load_state_dict(fusedrnn.flip_update_gate(gru.state_dict()))
        <All keys matched successfully>
    """
    flipped = {}
    for name, tensor in state.items():
        H = len(tensor) // 3
        hidden = name.startswith("weight_hh")
        if len(tensor) != 3 * H or (hidden and tensor.shape[1] != H):
            need = "[3*H, H]" if hidden else "[3*H, ...], gates r, z, n"
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, must be {need} of a GRU")
        r, z, n = tensor.detach().chunk(3)
        flipped[name] = torch.cat([r, -z, n])
    return flipped


def _orders(framework: str, cell: str) -> tuple[str, str]:
    """The gates of a cell, here and there."""
    orders = _ORDERS[framework]
    gates = "".join(CELLS[cell].gates) if cell in CELLS else ""
    if gates not in orders:
        known = ", ".join(repr(n) for n, c in CELLS.items() if "".join(c.gates) in orders)
        raise ValueError(f"cell is {cell!r}; {framework} has {known}")
    return gates, orders[gates]


def _apart(cell: str) -> bool:
    """Whether the two biases cannot be one: r * (U_n h' + b'_n) in the GRU with reset after."""
    return CELLS[cell].grads > len(CELLS[cell].gates)


def _reordered(weight: Tensor, order: str, wanted: str) -> Tensor:
    """The gates' rows ``[G*H, ...]`` from one order into another."""
    rows = dict(zip(order, weight.detach().chunk(len(order)), strict=True))
    return torch.cat([rows[gate] for gate in wanted])


def _names(layer: int, reverse: bool) -> list[str]:
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    return [name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _peepholes(layer: int, reverse: bool) -> str:
    return _names(layer, reverse)[0].replace("_ih", "_ch")


def _named(weights: Iterable[Tensor], layer: int, reverse: bool) -> dict[str, Tensor]:
    return dict(zip(_names(layer, reverse), weights, strict=False))  # with or without biases


def _found(
    framework: str,
    state: Mapping[str, Tensor],
    layer: int,
    reverse: bool,
    gates: int,
    peepholes: bool = False,
) -> tuple[Tensor, ...]:
    """The weights and, if there are any, biases of one layer and direction, detached."""
    keys = _names(layer, reverse)
    if keys[0] not in state:
        raise KeyError(f"state has no {keys[0]}; it holds {', '.join(state)}")
    if (projection := keys[0].replace("_ih", "_hr")) in state:
        raise ValueError(f"state has {projection}: {framework}'s layout has no projection")
    known = [*keys, *([_peepholes(layer, reverse)] if peepholes else ())]
    suffix = keys[0].removeprefix("weight_ih")
    for key in state:
        if key.endswith(suffix) and key not in known:
            raise ValueError(f"state has {key}: {framework}'s layout has no such weights")
    found = tuple(state[key].detach() for key in keys if key in state)
    H = _units(found[1], keys[1], "[G*H, H]", 1, 0, gates)
    for key, tensor in zip(keys, found, strict=False):
        _check(tensor, key, (gates * H, *(("I",) if tensor.dim() == 2 else ())))
    return found


def _units(weight: Tensor, name: str, need: str, units: int, rows: int, gates: int) -> int:
    """H, from the recurrent weights: they have it twice."""
    fits = weight.dim() > max(units, rows) and weight.dim() == need.count(",") + 1
    if not fits or weight.shape[rows] != gates * weight.shape[units]:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)}, must be {need} with G = {gates} gates"
        )
    return weight.shape[units]


def _check(weight: Tensor, name: str, size: tuple[int | str, ...]) -> None:
    same = weight.dim() == len(size) and all(
        isinstance(n, str) or n == given for n, given in zip(size, weight.shape, strict=True)
    )
    if not same:
        need = ", ".join(map(str, size))
        raise ValueError(f"{name} has shape {tuple(weight.shape)}, must be [{need}]")
