"""Problems for one kernel: every cell, option and dtype, sizes on both sides of tile borders.

The error rule (exactness.py) needs torch's own operator, and torch has none for one direction of
an arbitrary cell: here it is the same equations as torch operators in the data's own dtype, step by
step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from exactness import assert_close64, assert_exact
from torch import Tensor
from torch.nn.functional import linear

from fusedrnn import reference
from fusedrnn.cells import CELLS, Cell

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Result = dict[str, Tensor]
Run = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """One direction of one layer. ``P``: the projection's size, ``lengths`` each row's."""

    T: int
    B: int
    H: int
    P: int | None = None
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    reverse: bool = False

    def __str__(self) -> str:
        extras = [f"P{self.P}"] * (self.P is not None) + ["nobias"] * (not self.bias)
        extras += ["lengths"] * (self.lengths is not None) + ["reverse"] * self.reverse
        return "-".join([f"T{self.T}", f"B{self.B}", f"H{self.H}", *extras])


# Sizes on both sides of the tile borders (32 rows, 16 units, 32 deep); rows aligned or not.
PLAIN = (
    Case(T=1, B=1, H=1),
    Case(T=4, B=7, H=7),
    Case(T=3, B=33, H=33, bias=False),
    Case(T=3, B=2, H=67, reverse=True),
    Case(T=2, B=65, H=16),
    Case(T=3, B=5, H=64),
    Case(T=7, B=5, H=13, lengths=(3, 7, 1, 0, 5)),
    Case(T=7, B=5, H=13, lengths=(3, 6, 1, 0, 5), reverse=True),
)
PROJECTED = (
    Case(T=4, B=3, H=33, P=17),
    Case(T=3, B=34, H=16, P=8, bias=False, reverse=True),
    Case(T=6, B=4, H=9, P=5, lengths=(2, 6, 0, 4)),
    Case(T=6, B=4, H=9, P=5, lengths=(2, 5, 0, 4), reverse=True),
    Case(T=2, B=2, H=8, P=8),
)


def cases(names: tuple[str, ...] = tuple(CELLS)) -> list:
    """Every cell with every problem it has: the projection is torch.nn.LSTM's."""
    return [
        pytest.param(CELLS[name], case, id=f"{name}-{case}")
        for name in names
        for case in (*PLAIN, *(PROJECTED if name == "lstm" else ()))
    ]


def inputs(cell: Cell, case: Case, dtype: torch.dtype, device: str = "cpu") -> Result:
    """Random tensors for ``ops.sequence``, in its order; weights scaled as torch.nn's."""
    random = torch.Generator().manual_seed(case.T * 1009 + case.B * 101 + case.H)
    G, S, H, P = len(cell.gates), len(cell.states), case.H, case.P or case.H

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=random, dtype=torch.float64) * scale
        return values.to(device, dtype)

    gx, gain = normal(case.T, case.B, G * H), 1.0
    if cell.name == "rnn_relu":
        # Its derivative jumps at 0, where the last bit would decide: keep off it.
        gx, gain = gx + 4 * gx.sign(), 0.25
    return {
        "gx": gx,
        "weight_hh": normal(G * H, P, scale=gain * P**-0.5),
        "bias_hh": normal(G * H, scale=H**-0.5) if case.bias else None,
        "weight_hr": normal(P, H, scale=H**-0.5) if case.P else None,
        "h0": normal(case.B, P, scale=0.5),
        "c0": normal(S - 1, case.B, H, scale=0.5),
    }


def run(function: Run, cell: Cell, case: Case, tensors: Result, dtype: torch.dtype) -> Result:
    """Outputs, and gradients of every input, of ``function`` in ``dtype``."""
    leaves = {
        name: None if t is None else t.detach().to(dtype).requires_grad_()
        for name, t in tensors.items()
    }
    device = tensors["gx"].device
    lengths = None if case.lengths is None else torch.tensor(case.lengths, device=device)
    outputs = function(cell, *leaves.values(), lengths, case.reverse)
    # A different weight for every element of every output: nothing cancels.
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=random).to(device, dtype) for o in outputs]
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.numel()]
    present = {name: t for name, t in leaves.items() if t is not None and t.numel()}
    grads = torch.autograd.grad(
        [o for o, _ in pairs], list(present.values()), [w for _, w in pairs]
    )
    result = dict(zip(("y", "hn", "cn"), (o.detach() for o in outputs), strict=True))
    return result | {f"d{name}": g for name, g in zip(present, grads, strict=True)}


def plain(
    cell: Cell,
    gx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same sequence as torch operators in the data's own dtype, step by step."""
    gates, T = len(cell.gates), gx.shape[0]
    H = weight_hh.shape[0] // gates

    def recur(v: Tensor, first: int = 0, last: int = gates) -> tuple[Tensor, ...]:
        rows = slice(first * H, last * H)
        b = None if bias_hh is None else bias_hh[rows]
        return linear(v, weight_hh[rows], b).chunk(last - first, -1)

    states, y = (h0, *c0.unbind(0)), [h0] * T
    for t in reversed(range(T)) if reverse else range(T):
        new = cell.reference(gx[t].chunk(gates, -1), states, recur)
        if weight_hr is not None:
            new = (linear(new[0], weight_hr), *new[1:])
        alive = torch.ones_like(h0[:, :1], dtype=torch.bool)
        if lengths is not None:
            alive = (t < lengths).unsqueeze(-1)
        states = tuple(torch.where(alive, n, s) for n, s in zip(new, states, strict=True))
        y[t] = torch.where(alive, new[0], 0)
    return torch.stack(y), states[0], torch.stack(states[1:]) if len(states) > 1 else c0


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
