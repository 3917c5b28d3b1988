"""What LSTM, GRU and RNN share: parameters, checks, and the way to ``rnn.run``."""

import math
import numbers
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import rnn
from ._call import Weights
from ._watch import Watch
from .cells import CELLS, Cell, cell_name
from .rnn import States

_NOT_WITH_PACKED = {
    "lengths": "lengths was given with a PackedSequence, which has its own: pass one of the two",
    "reset": "reset was given with a PackedSequence, whose rows it cannot name: pass the padded "
    "batch (torch.nn.utils.rnn.pad_packed_sequence) with lengths= and reset=",
    "watch": "a PackedSequence is recorded or changed, whose rows are in an order of their own: "
    "pass the padded batch (torch.nn.utils.rnn.pad_packed_sequence) with lengths=",
}


class RecurrentLayer(nn.Module):
    """Base class: a subclass names a cell of the registry; gates and states follow from it."""

    _watch: Watch | None = None  # inside fusedrnn.record and fusedrnn.intervene
    _recompute = "none"

    def __init__(
        self,
        cell: str,
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
        weight_dropout: float = 0.0,
        dh_clip: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(input_size, hidden_size, num_layers, proj_size)
        _check_options(bias, batch_first, dropout, num_layers)
        _check_probability("weight_dropout", weight_dropout)
        check_bound("dh_clip", dh_clip)
        _check_probability("recurrent_dropout", recurrent_dropout)
        _check_variational(variational_dropout, CELLS[cell], proj_size)
        zoneout_h, zoneout_c = _checked_zoneout(zoneout, CELLS[cell], proj_size)
        self.cell = cell_name(
            cell,
            dh_clip=float(dh_clip or 0),
            zoneout_h=zoneout_h,
            zoneout_c=zoneout_c,
            dropout=float(recurrent_dropout),
            variational=float(variational_dropout),
        )
        self.dh_clip, self.zoneout = dh_clip, zoneout
        self.recurrent_dropout, self.variational_dropout = recurrent_dropout, variational_dropout
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, proj_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional = float(dropout), bool(bidirectional)
        self.weight_dropout = float(weight_dropout)
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                for name, shape in self._shapes(layer).items():
                    data = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(name + suffix, nn.Parameter(data))
        self.reset_parameters()

    def _suffixes(self, layer: int) -> tuple[str, ...]:
        return (f"_l{layer}", f"_l{layer}_reverse")[: 2 if self.bidirectional else 1]

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        rows, out = len(CELLS[self.cell].gates) * self.hidden_size, self._out_size()
        width = out * (2 if self.bidirectional else 1) if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, out)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes |= {"weight_hr": (self.proj_size, self.hidden_size)}
        if CELLS[self.cell].full:
            shapes |= {"weight_ch": (rows, self.hidden_size)}
        if CELLS[self.cell].norms:
            shapes |= {"weight_ln_ih": (rows,)}
        return shapes | self._shapes_of_units()

    def _shapes_of_units(self) -> dict[str, tuple[int, ...]]:
        """Of the weights that are each unit's own."""
        cell, H = CELLS[self.cell], self.hidden_size
        shapes = {}
        if cell.weights:
            shapes["weight_hh" if cell.independent else "weight_ch"] = (len(cell.weights) * H,)
        if cell.norms:
            shapes["weight_ln_hh"] = (len(cell.gates) * H,)
        if cell.norms > len(cell.gates):
            shapes |= {"weight_ln_c": (H,), "bias_ln_c": (H,)}
        return shapes

    def _out_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _state_sizes(self) -> tuple[int, ...]:
        """The width of each state: h has that of the projection."""
        return self._out_size(), *[self.hidden_size] * (len(CELLS[self.cell].states) - 1)

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does: uniform within 1/sqrt(hidden_size), norms 1."""
        stdv = 1.0 / math.sqrt(self.hidden_size)
        for name, weight in self.named_parameters():
            if "_ln_" in name:
                nn.init.constant_(weight, float(name.startswith("weight")))
            else:
                nn.init.uniform_(weight, -stdv, stdv)

    @property
    def recompute(self) -> str:
        """What backward computes again instead of finding it saved.

        ``"none"``: nothing. ``"gates"``: each layer's gates and states, by one more forward of that
        layer. ``"chunks"``: the same, about sqrt(T) steps at a time, so that no more than these are
        held at once; for layers of one direction. Results keep their bits with ``"gates"``. No
        effect inside ``fusedrnn.record`` and ``fusedrnn.intervene``, nor with the reference.

        Raises:
            ValueError: set to anything else, or to ``"chunks"`` for a bidirectional layer.
        """
        return self._recompute

    @recompute.setter
    def recompute(self, value: str) -> None:
        if value not in ("none", "gates", "chunks"):
            raise ValueError(f"recompute is {value!r}; it must be 'none', 'gates' or 'chunks'")
        if value == "chunks" and self.bidirectional:
            raise ValueError(
                "recompute='chunks' goes through the sequence piece by piece, which two directions "
                "cannot do together; use 'gates' for a bidirectional layer"
            )
        self._recompute = value

    def flatten_parameters(self) -> None:
        """Do nothing: no kernel here needs the weights in one block of memory."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, as ``torch.nn.RNNBase.all_weights``."""
        return [
            [getattr(self, name + suffix) for name in self._shapes(layer)]
            for layer in range(self.num_layers)
            for suffix in self._suffixes(layer)
        ]

    def _weights(self) -> list[tuple[Weights, ...]]:
        return [
            tuple(self._weights_of(layer, suffix) for suffix in self._suffixes(layer))
            for layer in range(self.num_layers)
        ]

    def _weights_of(self, layer: int, suffix: str) -> Weights:
        given = {name: getattr(self, name + suffix) for name in self._shapes(layer)}
        if own := [given.pop(name) for name in self._shapes_of_units()]:
            rows = [t.view(-1, self.hidden_size) for t in own]
            given["weight_unit"] = torch.cat(rows) if len(rows) > 1 else rows[0]
            given.setdefault("weight_hh", own[0].new_empty(self.hidden_size, 0))
        weights = Weights(**given)
        if not (self.training and self.weight_dropout):
            return weights
        dropped = nn.functional.dropout(weights.weight_hh, self.weight_dropout)
        return weights._replace(weight_hh=dropped)

    def extra_repr(self) -> str:
        """The arguments that are not defaults, as torch.nn shows them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0.0, "bidirectional": False, "weight_dropout": 0.0, "dh_clip": None}
        defaults |= {"zoneout": 0.0, "recurrent_dropout": 0.0, "variational_dropout": 0.0}
        shown = {n: getattr(self, n) for n, d in defaults.items() if getattr(self, n) != d}
        return ", ".join(parts + [f"{n}={v}" for n, v in shown.items()])

    def _forward(
        self,
        input: Tensor | PackedSequence,
        states: States | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        reset_states: States | None,
    ) -> tuple[Tensor | PackedSequence, States]:
        """All input forms: padded or packed, batched or not, batch first or not."""
        if reset is None and reset_states is not None:
            raise ValueError("reset_hx was given without reset: pass the mask that says where")
        if isinstance(input, PackedSequence):
            for name, given in (("lengths", lengths), ("reset", reset), ("watch", self._watch)):
                if given is not None:
                    raise ValueError(_NOT_WITH_PACKED[name])
            return self._forward_packed(input, states)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        self._check_input(x, 3)
        steps, batch = x.shape[:2]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        states = self._states("hx", states, x, batch, batched)
        if lengths is not None:
            lengths = rnn.checked_lengths(lengths, x, batch, steps)
        if reset is not None:
            reset = rnn.checked_reset(reset, input, self.batch_first)
            if reset_states is not None:
                reset_states = self._states("reset_hx", reset_states, x, batch, batched)
        y, states = self._run(x, states, lengths, reset, reset_states)
        if not batched:
            return y.squeeze(1), tuple(s.squeeze(1) for s in states)
        return y.transpose(0, 1) if self.batch_first else y, states

    def _forward_packed(
        self, input: PackedSequence, states: States | None
    ) -> tuple[PackedSequence, States]:
        self._check_input(input.data, 2)
        rows = rnn.unpack(input)
        states = self._states("hx", states, rows.x, len(rows.lengths), True)
        if input.sorted_indices is not None:
            states = tuple(s.index_select(1, input.sorted_indices) for s in states)
        y, states = self._run(rows.x, states, rows.lengths)
        if input.unsorted_indices is not None:
            states = tuple(s.index_select(1, input.unsorted_indices) for s in states)
        return rows.pack(y, input), states

    def _run(
        self,
        x: Tensor,
        states: States,
        lengths: Tensor | None,
        reset: Tensor | None = None,
        reset_states: States | None = None,
    ) -> tuple[Tensor, States]:
        p, cell = self.dropout if self.training else 0.0, CELLS[self.cell]
        return rnn.run(
            cell, x, states, self._weights(), lengths, p, reset, reset_states,
            self._watch, self._recompute, self.training,
        )  # fmt: skip

    def _check_input(self, x: Tensor, dims: int) -> None:
        weight = self.weight_ih_l0
        if x.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {x.dim()}")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {x.shape[-1]}"
            )
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
            )
        if x.device != weight.device:
            raise RuntimeError(
                f"input is on {x.device} and the weights are on {weight.device}: "
                f"move one of them, e.g. input.to({str(weight.device)!r})"
            )

    def _states(
        self, hx: str, states: States | None, x: Tensor, batch: int, batched: bool
    ) -> States:
        """States given as ``hx``, checked, as ``[L*D, B, width]``; zeros where none are given."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = self._state_sizes()
        if states is None:
            zeros = {size: x.new_zeros(count, batch, size) for size in set(sizes)}
            return tuple(zeros[size] for size in sizes)
        if len(states) != len(sizes):
            raise RuntimeError(f"{hx} must hold {len(sizes)} tensors, got {len(states)}")
        checked = []
        for name, state, size in zip(CELLS[self.cell].states, states, sizes, strict=True):
            if state.dim() != (3 if batched else 2):
                raise RuntimeError(
                    f"For {'batched 3-D' if batched else 'unbatched 2-D'} input, {hx} should also "
                    f"be {3 if batched else 2}-D but {name} is a {state.dim()}-D tensor"
                )
            state = state if batched else state.unsqueeze(1)
            if state.shape != (count, batch, size):
                raise RuntimeError(
                    f"Expected hidden size {(count, batch, size)} for {name} in {hx}, "
                    f"got {list(state.shape)}"
                )
            if state.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise RuntimeError(
                    f"{name} in {hx} has dtype {state.dtype} and input has {x.dtype}: they must be "
                    f"the same, e.g. {name}.to({x.dtype})"
                )
            if state.device != x.device:
                raise RuntimeError(
                    f"{name} in {hx} is on {state.device} and input is on {x.device}: "
                    f"move one of them, e.g. {name}.to({str(x.device)!r})"
                )
            checked.append(state)
        return tuple(checked)


def _check_sizes(input_size: int, hidden_size: int, num_layers: int, proj_size: int) -> None:
    given = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, value in (given | {"proj_size": proj_size}).items():
        if not isinstance(value, int):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    for name in ("hidden_size", "num_layers"):
        if given[name] <= 0:
            raise ValueError(f"{name} must be greater than zero, got {given[name]}")
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
        )


def _check_options(bias: bool, batch_first: bool, dropout: float, num_layers: int) -> None:
    for name, value in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    _check_probability("dropout", dropout)
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and num_layers=1",
            stacklevel=4,
        )


def _check_probability(name: str, p: float, of: str = "being zeroed") -> None:
    number = isinstance(p, numbers.Number) and not isinstance(p, bool)
    if not number or not 0 <= p <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an "
            f"element {of}, got {p!r}"
        )


def _check_variational(p: float, cell: Cell, proj_size: int) -> None:
    """Refuse what is no probability, and what it cannot be together with."""
    _check_probability("variational_dropout", p)
    for there, what, do in (
        (proj_size, f"proj_size is {proj_size}: the kernels do not see h before its projection",
         "no proj_size"),
        (cell.second, "reset_after is False: the candidate sees r * h', not h'",
         "reset_after=True"),
        (cell.independent, "independent is True: no h' meets a matrix", "independent=False"),
    ):  # fmt: skip
        if p and there:
            raise ValueError(
                f"variational_dropout is {p} and {what}; pass {do} or no variational_dropout"
            )


def _checked_zoneout(
    zoneout: float | tuple[float, float], cell: Cell, proj_size: int
) -> tuple[float, float]:
    """The probabilities that h, and that the inner states, stay."""
    inner = len(cell.states) == 2
    pair = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout if inner else 0.0)
    if len(pair) != 2:
        raise ValueError(f"zoneout is {zoneout!r}; it must be one number, or (p_h, p_c)")
    for name, p in zip(("zoneout of h", "zoneout of c"), pair, strict=True):
        _check_probability(name, p, "staying as it was")
    if pair[1] and not inner:
        raise ValueError(
            f"zoneout is {zoneout!r} for a cell whose states are {', '.join(cell.states)}: p_c is "
            "for LSTM's c; pass one number, for h"
        )
    if pair[0] and proj_size:
        raise ValueError(
            f"zoneout is {zoneout!r} and proj_size is {proj_size}: the kernels do not see h before "
            "its projection; pass zoneout=(0, p_c) or no proj_size"
        )
    if pair[1] and cell.weights:
        raise ValueError(
            f"zoneout is {zoneout!r} and peephole is 'diagonal': the output gate sees a c that "
            "zoneout may not keep; pass zoneout=(p_h, 0) or no peephole"
        )
    if pair[1] and cell.norms:
        raise ValueError(
            f"zoneout is {zoneout!r} and layer_norm is True: what is normalised is a c that "
            "zoneout may not keep; pass zoneout=(p_h, 0) or no layer_norm"
        )
    return float(pair[0]), float(pair[1])


def check_bound(name: str, value: float | None) -> None:
    """Raise a ValueError unless ``value`` is None or finite and > 0."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number > 0, or None")
