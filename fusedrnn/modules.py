"""LSTM, GRU and RNN: the signatures, parameters and state_dict of torch.nn."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import init
from .cells import CELLS
from .layer import RecurrentLayer


class LSTM(RecurrentLayer):
    """Drop-in for :class:`torch.nn.LSTM`: same arguments, parameter names, shapes and results.

    i, f, o = sigmoid(W x + b + U h' + b'),  g = tanh(W x + b + U h' + b'),
    c = f * c' + i * g,  h = o * tanh(c)  (Hochreiter & Schmidhuber 1997).

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers.
        bias: with ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, *]``; states are not affected.
        dropout: on the output of every layer but the last, in training.
        bidirectional: two directions, their outputs concatenated.
        proj_size: width of the projected h (Sak et al. 2014), 0 for none.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16. The 16-bit types accumulate in float32 and
            keep the cell state in float32 between steps.
        forget_bias: initial value of the SUM of the two forget biases (1.0: Jozefowicz et al.
            2015); None leaves torch's uniform initialisation.

    ``forward(input, hx=None, *, lengths=None, reset=None, reset_hx=None)``: ``input`` is
    ``[T, B, I]`` (``[B, T, I]`` with ``batch_first``), ``[T, I]`` or a PackedSequence; ``hx`` is
    ``(h0, c0)``, ``[L*D, B, P]`` and ``[L*D, B, H]``. Returns ``output, (hn, cn)``.

    ``lengths`` holds the length of each row of a padded batch, in any order: rows keep their state
    after their end, and their output is zero there. ``reset`` is a bool tensor ``[T, B]`` (or as
    the input is laid out): where it is True a row begins anew, as an episode does in reinforcement
    learning: no state and no gradient passes between step t - 1 and step t, which begins with
    ``reset_hx`` (shaped as ``hx``; zeros by default), at t = 0 instead of ``hx``.

    Raises:
        ValueError, RuntimeError, TypeError: arguments that torch.nn.LSTM refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> lstm = fusedrnn.LSTM(3, 5, num_layers=2, forget_bias=1.0)
        >>> y, (h, c) = lstm(torch.randn(7, 2, 3), lengths=torch.tensor([4, 7]))
        >>> y.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([2, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        super().__init__(
            "lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does, then the forget bias if one was asked for."""
        super().reset_parameters()
        if self.forget_bias is not None:
            init.forget_bias_(self, self.forget_bias)

    def extra_repr(self) -> str:
        """As torch.nn, and ``forget_bias``."""
        extra = "" if self.forget_bias is None else f", forget_bias={self.forget_bias}"
        return super().extra_repr() + extra

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Run the sequence. See the class."""
        return self._forward(input, hx, lengths, reset, reset_hx)


class _OneState(RecurrentLayer):
    """A layer whose only state is h: ``hx`` and the final state are tensors, not tuples."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_hx: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the sequence. See the class."""
        one = [None if s is None else (s,) for s in (hx, reset_hx)]
        y, (hn,) = self._forward(input, one[0], lengths, reset, one[1])
        return y, hn


class GRU(_OneState):
    """Drop-in for :class:`torch.nn.GRU`, with the reset gate on either side of the product.

    r, z = sigmoid(W x + b + U h' + b'),  h = (1 - z) * n + z * h', and
    n = tanh(W_n x + b_n + r * (U_n h' + b'_n))  with ``reset_after=True`` (torch, cuDNN), or
    n = tanh(W_n x + b_n + U_n (r * h') + b'_n)  with ``reset_after=False`` (Cho et al. 2014, v1).

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers.
        bias: with ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, *]``; states are not affected.
        dropout: on the output of every layer but the last, in training.
        bidirectional: two directions, their outputs concatenated.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.
        reset_after: see above. The parameters have the same names and shapes either way.

    ``forward(input, hx=None, *, lengths=None, reset=None, reset_hx=None)`` as :class:`LSTM`, with
    ``hx``, ``reset_hx`` and ``hn`` one tensor ``[L*D, B, H]``.

    Raises:
        ValueError, RuntimeError, TypeError: arguments that torch.nn.GRU refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> y, h = fusedrnn.GRU(3, 5, bidirectional=True)(torch.randn(7, 2, 3))
        >>> y.shape, h.shape
        (torch.Size([7, 2, 10]), torch.Size([2, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(
            "gru" if reset_after else "gru_reset_before", input_size, hidden_size, num_layers,
            bias, batch_first, dropout, bidirectional, 0, device, dtype,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As torch.nn, and ``reset_after`` where it is False."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class RNN(_OneState):
    """Drop-in for :class:`torch.nn.RNN`: h = g(W x + b + U h' + b')  (Elman 1990).

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers.
        nonlinearity: g: ``"tanh"``, ``"relu"``, or ``"sigmoid"`` (which torch.nn does not have).
        bias: with ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, *]``; states are not affected.
        dropout: on the output of every layer but the last, in training.
        bidirectional: two directions, their outputs concatenated.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.

    ``forward(input, hx=None, *, lengths=None, reset=None, reset_hx=None)`` as :class:`GRU`.

    Raises:
        ValueError, RuntimeError, TypeError: arguments that torch.nn.RNN refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> y, h = fusedrnn.RNN(3, 5, nonlinearity="sigmoid")(torch.randn(7, 2, 3))
        >>> y.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.nonlinearity = checked_nonlinearity(nonlinearity)
        super().__init__(
            f"rnn_{nonlinearity}", input_size, hidden_size, num_layers,
            bias, batch_first, dropout, bidirectional, 0, device, dtype,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As torch.nn, and the nonlinearity where it is not tanh."""
        extra = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + extra


def checked_nonlinearity(name: str) -> str:
    """Return ``name`` if the registry has such an RNN.

    Raises:
        ValueError: it has not.
    """
    if f"rnn_{name}" not in CELLS:
        known = ", ".join(repr(n[4:]) for n in CELLS if n.startswith("rnn_"))
        raise ValueError(f"Unknown nonlinearity {name!r}: it must be one of {known}")
    return name
