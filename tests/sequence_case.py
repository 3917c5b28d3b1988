"""Problems for one layer: every cell, option and dtype, sizes on both sides of tile borders.

The error rule (exactness.py) needs torch's own operator, and torch has none for an arbitrary cell:
here it is the same equations as torch operators in the data's own dtype, step by step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from exactness import assert_close64, assert_exact
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from fusedrnn import reference
from fusedrnn._autograd import _recurrent as recurrent
from fusedrnn._call import Reset, Weights
from fusedrnn.cells import CELLS, Cell, PerUnit

# Options change a kernel's maths, not its code around it. What crosses many of them takes KINDS, a
# cell of each kernel; units (test_cells.py), equations and each backend's values take EVERY one.
VARIANTS = (
    "lstm:update=tanh:output=identity",
    "lstm:candidate=relu:output=sigmoid",
    "lstm_coupled:candidate=sigmoid:output=identity",
    "gru:candidate=relu",
    "gru_reset_before:candidate=identity",
    "rnn_sigmoid:residual=True",
)
# Cells whose units have weights of their own; and cells that draw, each option alone and all.
OWN = (
    "lstm:peephole=diagonal",
    "lstm_coupled:update=tanh:peephole=diagonal",
    "rnn_tanh:independent=True",
    "rnn_identity:residual=True:independent=True",
)
# What the kernels make anew around a cell; where a kernel has launches of its own for it.
AROUND = (
    "lstm:peephole=full",
    "lstm_coupled:candidate=relu:peephole=full:zoneout_h=0.2:zoneout_c=0.1",
    "lstm:peephole=full:variational=0.5",
    "lstm:layer_norm=True:variational=0.2",
    "lstm:layer_norm=True",
    "lstm:output=identity:clip=0.9:peephole=diagonal:layer_norm=True:zoneout_h=0.2",
    "lstm_coupled:layer_norm=True:dropout=0.1",
    "gru:layer_norm=True",
    "gru:candidate=relu:layer_norm=True:dh_clip=0.2:zoneout_h=0.5:dropout=0.2",
)
RANDOM = (
    "lstm:zoneout_h=0.3:zoneout_c=0.4:dropout=0.2",
    "lstm:zoneout_c=0.5",
    "lstm_coupled:update=tanh:zoneout_h=0.5:zoneout_c=0.25",
    "lstm:peephole=diagonal:zoneout_h=0.3:dropout=0.5",
    "slstm:zoneout_h=0.25:dropout=0.3",
    "gru:zoneout_h=0.3:dropout=0.2",
    "gru_reset_before:zoneout_h=0.5:dropout=0.5",
    "rnn_tanh:zoneout_h=0.5",
    "lstm:variational=0.4",
    "lstm_coupled:peephole=diagonal:zoneout_h=0.1:dropout=0.1:variational=0.3",
    "gru:zoneout_h=0.3:variational=0.5",
    "slstm:variational=0.2",
    "rnn_tanh:residual=True:variational=0.3",
    "rnn_relu:residual=True:independent=True:zoneout_h=0.1:dropout=0.2",
)
EVERY = (*CELLS, *VARIANTS, *OWN)
# Where c meets its bound the slope jumps: for float64, where no rounding decides on which side.
CLIPPED = (
    "lstm:clip=0.2",
    "lstm_coupled:update=tanh:clip=0.1",
    *(f"{name}:dh_clip=0.1" for name in ("lstm", "gru", "gru_reset_before", "rnn_tanh")),
)
KINDS = ("lstm", "lstm_coupled", "slstm", "gru", "gru_reset_before", "rnn_tanh")
LAUNCHED = ("lstm:peephole=full", "lstm:layer_norm=True", "gru:layer_norm=True")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Result = dict[str, Tensor]
Run = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """One layer. ``P``: the projection's size; ``lengths``: each row's; ``reset``: "zeros", "given"
    (states to begin anew with) or None."""

    T: int
    B: int
    H: int
    P: int | None = None
    bias: bool = True
    directions: int = 1
    lengths: tuple[int, ...] | None = None
    reset: str | None = None

    def __str__(self) -> str:
        extras = [f"P{self.P}"] * (self.P is not None) + ["nobias"] * (not self.bias)
        extras += ["both"] * (self.directions == 2) + ["lengths"] * (self.lengths is not None)
        extras += [f"reset_{self.reset}"] * (self.reset is not None)
        return "-".join([f"T{self.T}", f"B{self.B}", f"H{self.H}", *extras])


# Sizes on both sides of the tile borders (32 rows, 16 units, 32 deep); rows aligned or not.
PLAIN = (
    Case(T=1, B=1, H=1),
    Case(T=4, B=7, H=7),
    Case(T=3, B=33, H=33, bias=False),
    Case(T=3, B=2, H=67, directions=2),
    Case(T=2, B=65, H=16),
    Case(T=3, B=5, H=64),
    Case(T=7, B=5, H=13, lengths=(3, 7, 1, 0, 5), reset="zeros"),
    Case(T=7, B=5, H=13, lengths=(3, 6, 1, 0, 5), directions=2),
    Case(T=6, B=4, H=9, directions=2, reset="given"),
)
PROJECTED = (
    Case(T=4, B=3, H=33, P=17),
    Case(T=3, B=34, H=16, P=8, bias=False, directions=2),
    Case(T=6, B=4, H=9, P=5, lengths=(2, 6, 0, 4)),
    Case(T=6, B=4, H=9, P=5, lengths=(2, 5, 0, 4), directions=2, reset="given"),
    Case(T=2, B=2, H=8, P=8),
)


def cases(names: tuple[str, ...] = EVERY) -> list:
    """Every kind of cell with every problem it has (the projection is torch.nn.LSTM's); the others
    with three."""
    return [
        pytest.param(CELLS[name], case, id=f"{name}-{case}")
        for name in names
        for case in (
            *(PLAIN if name in KINDS else PLAIN[:3]),
            *(PROJECTED if name == "lstm" else ()),
        )
    ]


def around_cases() -> list:
    """AROUND a cell: launches of several tiles, rows of more units than threads, projections."""
    several = (PLAIN[1], PLAIN[7], Case(T=3, B=33, H=33, bias=False, reset="given"))
    projected = (PROJECTED[0], PROJECTED[3])
    of = {
        "lstm:peephole=full": (*several, *projected),
        "lstm:layer_norm=True": (*several, *projected),
        "gru:layer_norm=True": several,
        "lstm_coupled:layer_norm=True:dropout=0.1": (Case(T=2, B=1, H=261),),
    }
    return [
        pytest.param(CELLS[name], case, id=f"{name}-{case}")
        for name, those in of.items()
        for case in those
    ]


def inputs(cell: Cell, case: Case, dtype: torch.dtype, device: str = "cpu") -> Result:
    """Random tensors by name, see ``arguments``; weights scaled as torch.nn's."""
    random = torch.Generator().manual_seed(case.T * 1009 + case.B * 101 + case.H)
    N, G, S, H, P = case.directions, len(cell.gates), len(cell.states), case.H, case.P or case.H

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=random, dtype=torch.float64) * scale
        return values.to(device, dtype)

    x, gain = normal(N, case.T, case.B, G * H), 1.0
    if "relu" in cell.name:
        # Its derivative jumps at 0, where the last bit would decide: keep the gate that has it off.
        gate = {"lstm": 2}.get(cell.kernel, G - 1)
        its = x[..., gate * H : (gate + 1) * H]
        its += 4 * its.sign()
        gain = 0.25
    tensors = {"x": x}
    for d in range(N):
        depth = 0 if cell.independent else P
        tensors[f"weight_hh{d}"] = normal(G * H, depth, scale=gain * P**-0.5)
        if own := len(cell.weights) + cell.norms:
            tensors[f"weight_unit{d}"] = normal(own, H, scale=gain * 0.5)
        if cell.full:
            tensors[f"weight_ch{d}"] = normal(G * H, H, scale=gain * H**-0.5)
        if case.bias:
            tensors[f"bias_hh{d}"] = normal(G * H, scale=H**-0.5)
        if case.P:
            tensors[f"weight_hr{d}"] = normal(P, H, scale=H**-0.5)
    for name in ("0", *(["_reset"] if case.reset == "given" else [])):
        tensors[f"h{name}"] = normal(N, case.B, P, scale=0.5)
        tensors[f"c{name}"] = normal(N, S - 1, case.B, H, scale=0.5)
        if "n" in cell.states:  # a normaliser is a sum of positive numbers, at least 1
            tensors[f"c{name}"][:, cell.states.index("n") - 1].abs_().add_(1)
    return tensors


def arguments(case: Case, tensors: Result) -> tuple:
    """What ``ops.sequence`` takes after the cell."""
    weights = tuple(
        Weights(
            None, tensors[f"weight_hh{d}"], None,
            tensors.get(f"bias_hh{d}"), tensors.get(f"weight_hr{d}"),
            tensors.get(f"weight_unit{d}"), tensors.get(f"weight_ch{d}"),
        )
        for d in range(case.directions)
    )  # fmt: skip
    device, lengths, reset = tensors["x"].device, None, None
    if case.lengths is not None:
        lengths = torch.tensor(case.lengths, device=device)
    if case.reset is not None:
        random = torch.Generator().manual_seed(case.T)
        mask = torch.rand(case.T, case.B, generator=random) < 0.4
        reset = Reset(mask.to(device), tensors.get("h_reset"), tensors.get("c_reset"))
    return tensors["x"], weights, tensors["h0"], tensors["c0"], lengths, reset


def native(case: Case, tensors: Result, seed: Tensor | None = None) -> list:
    """The forward op's own arguments after the cell, but for ``save``."""
    x, weights, h0, c0, lengths, reset = arguments(case, tensors)
    others = zip(*((w.bias_hh, w.weight_hr, w.weight_unit) for w in weights), strict=True)
    lists = [recurrent(weights), *([t for t in kind if t is not None] for kind in others)]
    return [list(x), *lists, seed, h0, c0, lengths, *(reset or (None, None, None))]


def run(function: Run, cell: Cell, case: Case, tensors: Result, dtype: torch.dtype) -> Result:
    """Outputs, and gradients of every input, of ``function`` in ``dtype``."""
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}
    outputs = function(cell, *arguments(case, leaves))
    # A different weight for every element of every output: nothing cancels.
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=random).to(o) for o in outputs]
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.numel()]
    present = {name: t for name, t in leaves.items() if t.numel()}
    grads = torch.autograd.grad(
        [o for o, _ in pairs], list(present.values()), [w for _, w in pairs]
    )
    result = dict(zip(("y", "hn", "cn"), (o.detach() for o in outputs), strict=True))
    return result | {f"d{name}": g for name, g in zip(present, grads, strict=True)}


def plain(
    cell: Cell,
    x: Tensor,
    weights: tuple[Weights, ...],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reset: Reset | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same layer as torch operators in the data's own dtype, step by step."""
    results = []
    for d, w in enumerate(weights):
        begin, anew = (h0[d], *c0[d]), (torch.zeros_like(h0[d]), *torch.zeros_like(c0[d]))
        if reset is not None and reset.h is not None:
            anew = (reset.h[d], *reset.c[d])
        results.append(_plain_direction(cell, x[d], w, begin, anew, lengths, reset, d == 1))
    y, hn, cn = zip(*results, strict=True)
    return torch.cat(y, -1), torch.stack(hn), torch.stack(cn).view_as(c0)


def _plain_direction(
    cell: Cell,
    gx: Tensor,
    w: Weights,
    states: tuple[Tensor, ...],
    anew: tuple[Tensor, ...],
    lengths: Tensor | None,
    reset: Reset | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gates, T = len(cell.gates), gx.shape[0]
    H = w.weight_hh.shape[0] // gates

    norms, norm = w.weight_unit[len(cell.weights) :] if cell.norms else None, None
    if cell.norms > gates:
        norm = lambda c: layer_norm(c, (H,), norms[gates], norms[gates + 1])  # noqa: E731

    def recur(v: Tensor, first: int = 0, last: int = gates) -> tuple[Tensor, ...]:
        rows = slice(first * H, last * H)
        b = None if w.bias_hh is None else w.bias_hh[rows]
        if cell.norms:
            u = layer_norm(linear(v, w.weight_hh), (gates * H,), norms[:gates].flatten(), b)
            return u.chunk(gates, -1)
        if cell.full:
            return linear(v, torch.cat((w.weight_hh, w.weight_ch), 1), b).chunk(gates, -1)
        if cell.independent:
            return (0 if b is None else b,)
        return linear(v, w.weight_hh[rows], b).chunk(last - first, -1)

    def choose(rows: Tensor, a: tuple, b: tuple) -> tuple[Tensor, ...]:
        return tuple(torch.where(rows.unsqueeze(-1), i, j) for i, j in zip(a, b, strict=True))

    y = [states[0]] * T
    end = torch.full((gx.shape[1],), T, device=gx.device) if lengths is None else lengths
    for t in reversed(range(T)) if reverse else range(T):
        boundary = t + 1 if reverse else t
        if reset is not None and boundary < T:
            states = choose(reset.mask[boundary] & (boundary < end), anew, states)
        own = PerUnit(() if w.weight_unit is None else w.weight_unit.unbind(0), None, norm)
        new, _ = cell.reference(gx[t].chunk(gates, -1), states, recur, own)
        if w.weight_hr is not None:
            new = (linear(new[0], w.weight_hr), *new[1:])
        states = choose(t < end, new, states)
        (y[t],) = choose(t < end, new[:1], (torch.zeros_like(new[0]),))
    inner = torch.stack(states[1:]) if len(states) > 1 else states[0].new_empty(0)
    return torch.stack(y), states[0], inner


def truth(cell: Cell, case: Case, tensors: Result) -> Result:
    """The float64 reference on the very numbers that the kernel gets."""
    return run(reference.sequence, cell, case, tensors, torch.float64)


def check(got: Result, true: Result, theirs: Result, dtype: torch.dtype, what: str) -> None:
    """Apply the rule to every output and gradient."""
    assert got.keys() == true.keys() == theirs.keys()
    for name in got:
        if dtype == torch.float64:
            assert_close64(got[name], true[name], f"{what} {name}")
        else:
            assert_exact(got[name], theirs[name], true[name], dtype, f"{what} {name}")
