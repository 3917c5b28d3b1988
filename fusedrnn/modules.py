"""LSTM, GRU and RNN with the signatures, parameters and state_dict of torch.nn; and SLSTM."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import init
from .cells import cell_name
from .cells._nonlinear import NONLINEARITIES
from .layer import RecurrentLayer, check_bound
from .rnn import States


class LSTM(RecurrentLayer):
    """Drop-in for :class:`torch.nn.LSTM`: same arguments, parameter names, shapes and results.

    i, f, o = sigmoid(W x + b + U h' + b'),  g = tanh(W x + b + U h' + b'),
    c = f * c' + i * g,  h = o * tanh(c)  (Hochreiter & Schmidhuber 1997);
    with ``coupled=True`` there is no i, and c = f * c' + (1 - f) * g  (Greff et al. 2017: CIFG).
    The nonlinearities of g, of the new c (none above) and of c in h can be others.

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
        coupled: see above. All parameters then have three gates' rows, ``[3H, *]``, in the order
            f, g, o (torch's i, f, g, o without i), and three quarters of the cost.
        candidate: the nonlinearity of g: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        cell_activation: that of the new c; ``"tanh"`` makes it c = tanh(f * c' + i * g).
        output_activation: that of c in h.
        cell_clip: bounds the new c to -cell_clip .. cell_clip before h is made of it, as
            TensorFlow's LSTMCell does; no gradient passes where it was bounded. None: no bound.
        weight_dropout: in training, dropout of ``weight_hh``, one mask a forward and not one a step
            (the weight-dropped RNN of Merity et al. 2018); ``bias_hh`` stays.
        dh_clip: in backward, what arrives at the h of each step, from the output and from the step
            after it, is bounded to -dh_clip .. dh_clip (the clipped hidden error of Mikolov 2012).
            None: no bound.
        peephole: ``"diagonal"``: gates see the unit's own c: i and f that before the step, o that
            after it (Gers & Schmidhuber 2000), each through a weight of the unit's own. These are
            ``weight_ch``, ``[3H]`` in the order i, f, o (f, o if coupled). ``"full"``: i, f, g and
            o see all of the c before the step, through a matrix ``weight_ch`` ``[4H, H]``.
        layer_norm: a = LN(W x) + b + LN(U h') + b' in the place of W x + b + U h' + b', over the
            units of all gates together, and h = o * tanh(LN(c)) (Ba et al. 2016). Gains
            ``weight_ln_ih`` and ``weight_ln_hh``, ``[4H]``; ``weight_ln_c`` and ``bias_ln_c``,
            ``[H]``. LN subtracts the mean and divides by sqrt(variance + 1e-5).
        zoneout: in training, the probability that a unit's state stays as it was in a step, drawn
            for each step, row and unit; p for both h and c, or (p_h, p_c). In evaluation old and
            new are mixed in that proportion (Krueger et al. 2017). Not of h with ``proj_size``, nor
            of c with ``peephole``.
        recurrent_dropout: in training, dropout of g as it enters c, each step anew:
            what is new may not reach the state, and what is old stays (Semeniuta et al. 2016).
        variational_dropout: in training, dropout of h' where it meets ``weight_hh``: one mask a row
            for all its steps (Gal & Ghahramani 2016); not with ``proj_size``.

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
        coupled: bool = False,
        candidate: str = "tanh",
        cell_activation: str = "identity",
        output_activation: str = "tanh",
        cell_clip: float | None = None,
        weight_dropout: float = 0.0,
        peephole: str | None = None,
        layer_norm: bool = False,
        dh_clip: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
    ) -> None:
        if forget_bias is not None and not bias:
            raise ValueError(
                f"forget_bias is {forget_bias} but bias is False: there is none to set"
            )
        if peephole not in (None, "diagonal", "full"):
            raise ValueError(
                f"Unknown peephole {peephole!r}: it must be 'diagonal', 'full' or None"
            )
        if peephole == "full" and layer_norm:
            raise ValueError(
                "peephole is 'full' and layer_norm is True: the sums of h and of c would be "
                "normalised as one; pass peephole='diagonal' or no layer_norm"
            )
        check_bound("cell_clip", cell_clip)
        self.peephole, self.layer_norm = peephole, bool(layer_norm)
        self.forget_bias, self.coupled, self.cell_clip = forget_bias, bool(coupled), cell_clip
        self.candidate = checked_nonlinearity("candidate", candidate)
        self.cell_activation = checked_nonlinearity("cell_activation", cell_activation)
        self.output_activation = checked_nonlinearity("output_activation", output_activation)
        cell = cell_name(
            "lstm_coupled" if coupled else "lstm",
            candidate=candidate,
            update=cell_activation,
            output=output_activation,
            clip=float(cell_clip or 0),
            peephole=peephole or "",
            layer_norm=self.layer_norm,
        )
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, weight_dropout=weight_dropout, dh_clip=dh_clip,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            variational_dropout=variational_dropout,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does, then the forget bias if one was asked for."""
        super().reset_parameters()
        if self.forget_bias is not None:
            init.forget_bias_(self, self.forget_bias)

    def extra_repr(self) -> str:
        """As torch.nn, and the options that torch.nn does not have."""
        defaults = {"forget_bias": None, "coupled": False, "candidate": "tanh", "cell_clip": None}
        defaults |= {"cell_activation": "identity", "output_activation": "tanh", "peephole": None}
        defaults |= {"layer_norm": False}
        return super().extra_repr() + _options(self, defaults)

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


class SLSTM(RecurrentLayer):
    """sLSTM (Beck et al. 2024, xLSTM): an LSTM whose input gate is exponential.

    i = exp(W x + b + U h' + b'),  f, o = sigmoid(W x + b + U h' + b'),
    z = tanh(W x + b + U h' + b'),
    c = f * c' + i * z,  n = f * n' + i,  h = o * c / n.

    c and n are kept divided by e^m, m = max(log f + m', log i), so that no exponential is large;
    h does not depend on m. Where n is 0 nothing was seen yet: zero states are the beginning.
    All gates see all of h (the paper's one head). Gradients are those of what is computed, m and
    all; for a loss of h alone, what goes through m adds up to zero.

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
        weight_dropout: in training, dropout of ``weight_hh``, one mask a forward and not one a step
            (the weight-dropped RNN of Merity et al. 2018); ``bias_hh`` stays.
        dh_clip: in backward, what arrives at the h of each step, from the output and from the step
            after it, is bounded to -dh_clip .. dh_clip (the clipped hidden error of Mikolov 2012).
            None: no bound.
        zoneout: in training, the probability that a unit's h stays as it was in a step, drawn for
            each step, row and unit; in evaluation old and new are mixed in that proportion
            (Krueger et al. 2017).
        recurrent_dropout: in training, dropout of z as it enters c, each step anew:
            what is new may not reach the state, and what is old stays (Semeniuta et al. 2016).
        variational_dropout: in training, dropout of h' where it meets ``weight_hh``: one mask a row
            for all its steps (Gal & Ghahramani 2016).

    Parameters are named as torch.nn's, with rows in the order i, f, z, o.
    ``forward(input, hx=None, *, lengths=None, reset=None, reset_hx=None)`` as :class:`LSTM`, with
    ``hx``, ``reset_hx`` and the final states ``(h, c, n, m)``, each ``[L*D, B, H]``; n >= 0.

    Raises:
        ValueError, RuntimeError, TypeError: arguments that torch.nn.LSTM refuses too.

    Example:
        >>> import torch, fusedrnn
        >>> y, (h, c, n, m) = fusedrnn.SLSTM(3, 5)(torch.randn(7, 2, 3))
        >>> y.shape, bool((n >= 1).all())
        (torch.Size([7, 2, 5]), True)
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
        weight_dropout: float = 0.0,
        dh_clip: float | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            "slstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype, weight_dropout=weight_dropout, dh_clip=dh_clip,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            variational_dropout=variational_dropout,
        )  # fmt: skip

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_hx: States | None = None,
    ) -> tuple[Tensor | PackedSequence, States]:
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
    n = tanh(W_n x + b_n + U_n (r * h') + b'_n)  with ``reset_after=False`` (Cho et al. 2014, v1);
    ``candidate`` is the nonlinearity of n.

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
        candidate: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        layer_norm: LN(W x) + b in the place of W x + b, and LN(U h') + b' in that of U h' + b',
            each over the units of all gates together (Ba et al. 2016), with the gains
            ``weight_ln_ih`` and ``weight_ln_hh``, ``[3H]``; with ``reset_after=True``.
        weight_dropout: in training, dropout of ``weight_hh``, one mask a forward and not one a step
            (the weight-dropped RNN of Merity et al. 2018); ``bias_hh`` stays.
        dh_clip: in backward, what arrives at the h of each step, from the output and from the step
            after it, is bounded to -dh_clip .. dh_clip (the clipped hidden error of Mikolov 2012).
            None: no bound.
        zoneout: in training, the probability that a unit's h stays as it was in a step, drawn for
            each step, row and unit; in evaluation old and new are mixed in that proportion
            (Krueger et al. 2017).
        recurrent_dropout: in training, dropout of n as it enters h, each step anew:
            what is new may not reach the state, and what is old stays (Semeniuta et al. 2016).
        variational_dropout: in training, dropout of h' where it meets ``weight_hh``: one mask a row
            for all its steps (Gal & Ghahramani 2016); with ``reset_after=True``.

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
        candidate: str = "tanh",
        layer_norm: bool = False,
        weight_dropout: float = 0.0,
        dh_clip: float | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
    ) -> None:
        self.reset_after, self.layer_norm = bool(reset_after), bool(layer_norm)
        self.candidate = checked_nonlinearity("candidate", candidate)
        if layer_norm and not reset_after:
            raise ValueError(
                "layer_norm is True and reset_after is False: the gates' sums are two products, "
                "never together to be normalised; pass reset_after=True or no layer_norm"
            )
        cell = "gru" if reset_after else "gru_reset_before"
        options = {"layer_norm": True} if layer_norm else {}
        cell = cell_name(cell, candidate=candidate, **options)
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            0, device, dtype, weight_dropout=weight_dropout, dh_clip=dh_clip,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            variational_dropout=variational_dropout,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As torch.nn, and the options that torch.nn does not have."""
        return super().extra_repr() + _options(
            self, {"reset_after": True, "candidate": "tanh", "layer_norm": False}
        )


class RNN(_OneState):
    """Drop-in for :class:`torch.nn.RNN`: h = g(W x + b + U h' + b')  (Elman 1990).

    With ``residual=True`` h = h' + g(W x + b + U h' + b').

    Args:
        input_size: features of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers.
        nonlinearity: g: ``"tanh"``, ``"relu"``; ``"sigmoid"`` or ``"identity"`` (a linear
            recurrence), which torch.nn does not have.
        bias: with ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, *]``; states are not affected.
        dropout: on the output of every layer but the last, in training.
        bidirectional: two directions, their outputs concatenated.
        device: of the parameters.
        dtype: float64, float32, bfloat16 or float16.
        residual: see above.
        independent: IndRNN (Li et al. 2018): each unit sees its own h' only, h = g(W x + b + w * h'
            + b'), with one ``weight_hh`` ``[H]``; initialised uniformly in [0, 1). No product in
            the loop: T steps cost what reading and writing them costs.
        weight_dropout: in training, dropout of ``weight_hh``, one mask a forward and not one a step
            (the weight-dropped RNN of Merity et al. 2018); ``bias_hh`` stays.
        dh_clip: in backward, what arrives at the h of each step, from the output and from the step
            after it, is bounded to -dh_clip .. dh_clip (the clipped hidden error of Mikolov 2012).
            None: no bound.
        zoneout: in training, the probability that a unit's h stays as it was in a step, drawn for
            each step, row and unit; in evaluation old and new are mixed in that proportion
            (Krueger et al. 2017).
        recurrent_dropout: in training, dropout of g(...) as it is added to h', each step anew:
            what is new may not reach the state, and what is old stays (Semeniuta et al. 2016); with
            ``residual`` only.
        variational_dropout: in training, dropout of h' where it meets ``weight_hh``: one mask a row
            for all its steps (Gal & Ghahramani 2016); not with
            ``independent``.

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
        *,
        residual: bool = False,
        independent: bool = False,
        weight_dropout: float = 0.0,
        dh_clip: float | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
    ) -> None:
        self.nonlinearity = checked_nonlinearity("nonlinearity", nonlinearity)
        self.residual, self.independent = bool(residual), bool(independent)
        if recurrent_dropout and not residual:
            raise ValueError(
                f"recurrent_dropout is {recurrent_dropout} and residual is False: without it "
                "all of h is new, and nothing would stay; pass residual=True, or zoneout="
            )
        if weight_dropout and independent:
            raise ValueError(
                f"weight_dropout is {weight_dropout} and independent is True: it drops elements of "
                "a matrix that independent units do not have; pass one of the two"
            )
        cell = cell_name(
            f"rnn_{nonlinearity}", residual=self.residual, independent=self.independent
        )
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            0, device, dtype, weight_dropout=weight_dropout, dh_clip=dh_clip,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            variational_dropout=variational_dropout,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does; an independent unit's weight within [0, 1)."""
        super().reset_parameters()
        for name, weight in self.named_parameters():
            if self.independent and name.startswith("weight_hh"):
                nn.init.uniform_(weight)

    def extra_repr(self) -> str:
        """As torch.nn, and the options that torch.nn does not have."""
        defaults = {"nonlinearity": "tanh", "residual": False, "independent": False}
        return super().extra_repr() + _options(self, defaults)


def _options(module: nn.Module, defaults: dict[str, object]) -> str:
    """The options that are not defaults, as ``repr`` shows them."""
    given = {name: getattr(module, name) for name in defaults}
    return "".join(f", {n}={v}" for n, v in given.items() if v != defaults[n])


def checked_nonlinearity(argument: str, name: str) -> str:
    """Return ``name`` if there is such a nonlinearity.

    Raises:
        ValueError: there is not.
    """
    if name not in NONLINEARITIES:
        known = ", ".join(map(repr, NONLINEARITIES))
        raise ValueError(f"Unknown {argument} {name!r}: it must be one of {known}")
    return name
