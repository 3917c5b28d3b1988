"""LSTMCell, GRUCell and RNNCell: one step, with the signatures and parameters of torch.nn."""

import math

import torch
from torch import Tensor, nn

from . import init, rnn
from ._call import Weights
from .cells import CELLS
from .modules import checked_nonlinearity

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RecurrentCell(nn.Module):
    """What the three cells share. One step is a sequence of length one: the same kernels."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(value, int) or value < (name == "hidden_size"):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.cell, self.bias = cell, bool(bias)
        self.input_size, self.hidden_size = input_size, hidden_size
        rows = len(CELLS[cell].gates) * hidden_size
        shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        for name in ("bias_ih", "bias_hh"):
            if bias:
                shapes[name] = (rows,)
            else:
                self.register_parameter(name, None)
        for name, shape in shapes.items():
            data = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(data))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does: uniform within 1/sqrt(hidden_size)."""
        stdv = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -stdv, stdv)

    def extra_repr(self) -> str:
        """The arguments that are not defaults, as torch.nn shows them."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")

    def _step(self, input: Tensor, states: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        batched = input.dim() == 2
        if not batched and input.dim() != 1:
            name = type(self).__name__
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        x = input if batched else input.unsqueeze(0)
        rows, features = x.shape
        if features != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {features} expected {self.input_size}"
            )
        cell, shape = CELLS[self.cell], (rows, self.hidden_size)
        if states is None:
            states = (x.new_zeros(shape),) * len(cell.states)
        elif states[0].shape != shape or states[-1].shape != shape:
            states = self._rows(states, shape)
        weights = self._weights()
        need = weights.weight_ih.dtype
        if not (x.dtype == states[0].dtype == states[-1].dtype == need):
            self._check_dtypes(x, states, need)
        new = rnn.step(cell, x, states, weights)
        return new if batched else tuple(s.flatten() for s in new)

    def _weights(self) -> Weights:
        try:  # nn.Module's attributes take 4 us of a step's 30
            return Weights(*map(self._parameters.__getitem__, _NAMES))
        except KeyError:  # some are parametrized
            return Weights(*(getattr(self, name) for name in _NAMES))

    def _rows(self, states: tuple[Tensor, ...], shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """States that are given without a batch, with one."""
        name, rows = type(self).__name__, []
        for i, s in enumerate(states):
            if s.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected hx[{i}] to be 1D or 2D, got {s.dim()}D instead")
            rows.append(s if s.dim() == 2 else s.unsqueeze(0))
            if rows[i].shape != shape:
                raise RuntimeError(
                    f"{name}: Expected hx[{i}] of shape {shape} (batch, hidden_size), "
                    f"got {tuple(rows[i].shape)}"
                )
        return tuple(rows)

    def _check_dtypes(self, x: Tensor, states: tuple[Tensor, ...], need: torch.dtype) -> None:
        if torch.is_autocast_enabled(x.device.type):
            return
        what, wrong = next(
            (what, t.dtype)
            for what, t in [("input", x), *((f"hx[{i}]", s) for i, s in enumerate(states))]
            if t.dtype != need
        )
        raise RuntimeError(
            f"{type(self).__name__}: {what} has dtype {wrong} and the weights have {need}: "
            f"they must be the same, e.g. {what.split('[')[0]}.to({need})"
        )


class LSTMCell(RecurrentCell):
    """Drop-in for :class:`torch.nn.LSTMCell`; see :class:`fusedrnn.LSTM` for the equations.

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        bias: with ``bias_ih`` and ``bias_hh``.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.
        forget_bias: initial value of the sum of the two forget biases; None leaves torch's.

    ``forward(input, hx=None)``: ``input`` ``[B, I]`` or ``[I]``, ``hx`` a pair ``(h, c)``, which is
    what it returns too.

    Raises:
        ValueError, RuntimeError: arguments that torch.nn.LSTMCell refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> h, c = fusedrnn.LSTMCell(3, 5)(torch.randn(2, 3))
        >>> h.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float | None = None,
    ) -> None:
        if forget_bias is not None and not bias:
            raise ValueError(
                f"forget_bias is {forget_bias} but bias is False: there is none to set"
            )
        self.forget_bias = forget_bias
        super().__init__("lstm", input_size, hidden_size, bias, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does, then the forget bias if one was asked for."""
        super().reset_parameters()
        if self.forget_bias is not None:
            init.forget_bias_(self, self.forget_bias)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step. See the class."""
        return self._step(input, hx)


class _OneState(RecurrentCell):
    """A cell whose only state is h: ``hx`` and the result are tensors, not tuples."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step. See the class."""
        return self._step(input, None if hx is None else (hx,))[0]


class GRUCell(_OneState):
    """Drop-in for :class:`torch.nn.GRUCell`; see :class:`fusedrnn.GRU` for the equations.

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        bias: with ``bias_ih`` and ``bias_hh``.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.
        reset_after: the reset gate after (torch) or before the product.

    ``forward(input, hx=None)``: ``input`` ``[B, I]`` or ``[I]``, ``hx`` ``[B, H]``; returns h.

    Raises:
        ValueError, RuntimeError: arguments that torch.nn.GRUCell refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> fusedrnn.GRUCell(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = bool(reset_after)
        cell = "gru" if reset_after else "gru_reset_before"
        super().__init__(cell, input_size, hidden_size, bias, device, dtype)

    def extra_repr(self) -> str:
        """As torch.nn, and ``reset_after`` where it is False."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class RNNCell(_OneState):
    """Drop-in for :class:`torch.nn.RNNCell`; see :class:`fusedrnn.RNN` for the equation.

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        bias: with ``bias_ih`` and ``bias_hh``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.

    ``forward(input, hx=None)``: ``input`` ``[B, I]`` or ``[I]``, ``hx`` ``[B, H]``; returns h.

    Raises:
        ValueError, RuntimeError: arguments that torch.nn.RNNCell refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> fusedrnn.RNNCell(3, 5, nonlinearity="relu")(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.nonlinearity = checked_nonlinearity("nonlinearity", nonlinearity)
        super().__init__(f"rnn_{nonlinearity}", input_size, hidden_size, bias, device, dtype)

    def extra_repr(self) -> str:
        """As torch.nn, and the nonlinearity where it is not tanh."""
        extra = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + extra
