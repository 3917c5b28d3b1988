"""The numbers of a case: inputs and weights that every peer gets, and the truth it is held to.

Truth is the float64 reference. The yardstick is torch's own operator in the case's dtype, or, where
torch has none, the same equations as torch operators. Of layers here, of output layers in words.py.
"""

from functools import cached_property, partial

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn.cells import CELLS

from .case import Case
from .task import Results, Task, results
from .words import Scores, Softmax

OURS = {
    "lstm": fusedrnn.LSTM,
    "lstm_coupled": partial(fusedrnn.LSTM, coupled=True),
    "slstm": fusedrnn.SLSTM,
    "gru": fusedrnn.GRU,
    "gru_reset_before": partial(fusedrnn.GRU, reset_after=False),
    **{n: partial(fusedrnn.RNN, nonlinearity=n[4:]) for n in CELLS if n.startswith("rnn_")},
}
"""The module of each cell; options in a cell's name are arguments of it."""

ARGUMENTS = {
    "update": "cell_activation",
    "output": "output_activation",
    "clip": "cell_clip",
    "dropout": "recurrent_dropout",
    "variational": "variational_dropout",
}

TORCHS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": partial(nn.RNN, nonlinearity="tanh"),
    "rnn_relu": partial(nn.RNN, nonlinearity="relu"),
}
"""torch.nn's module of each cell that it has."""


def our_module(case: Case, dtype: torch.dtype) -> nn.Module:
    """fusedrnn's module for a case."""
    _, _, I, H = case.shape
    plain, *options = case.cell.split(":")
    given = {k: v if v[0].isalpha() else float(v) for k, v in (o.split("=") for o in options)}
    zoneout = given.pop("zoneout_h", 0.0), given.pop("zoneout_c", 0.0)
    if any(zoneout):
        given["zoneout"] = zoneout
    return OURS[plain](
        I, H, case.layers, bias=case.bias, bidirectional=case.bidirectional, dtype=dtype,
        device=case.device, **{ARGUMENTS.get(k, k): v for k, v in given.items()},
    )  # fmt: skip


def outputs(result: tuple) -> Results:
    """What a module of torch.nn's signature returns, by name."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return dict(zip(("y", "hn", "cn"), leaves, strict=False))


class Sequence:
    """The problem of a ``sequence`` or ``decode`` case.

    Attributes:
        x: ``[T, B, I]``.
        weights: the state_dict in torch.nn's names and layout.
        dy: what is fed to backward, ``[T, B, D*H]``.
        lengths: int64 ``[B]``, or None.
        bounds: by kind and name what the error rule allows, filled by ``verify``.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.bounds: dict[tuple[str, str], float] = {}
        T, B, I, H = case.shape
        random = torch.Generator().manual_seed(T * 1009 + B * 101 + H)
        like = {"device": case.device, "dtype": case.torch_dtype}
        normal = partial(torch.randn, generator=random)
        self.x = normal(T, B, I).to(**like)
        self.dy = normal(T, B, H * (1 + case.bidirectional)).to(**like)
        self.weights = {}
        for name, p in our_module(case, torch.float32).state_dict().items():
            values = (2 * torch.rand(p.shape, generator=random) - 1) / H**0.5
            # With gains of h about 1, or full weights on a residual path, each step multiplies what
            # rounding did: torch's own loop is then off by 2e-6, and the luck of one draw decides.
            if "weight_ln" in name:
                values = (values + 1) * (0.3 if "weight_ln_hh" in name else 1)
            if "residual" in case.cell and "weight_hh" in name:
                values *= 0.25
            if case.cell == "rnn_relu":
                # Its derivative jumps at 0, where the last bit would decide: all units active, and
                # the rows' sums below 1, so that nothing grows over the steps.
                values = values.abs() / (p.shape[-1] ** 0.5 if p.ndim == 2 else 1)
            self.weights[name] = values.to(**like)
        if case.cell == "rnn_relu":
            self.x.abs_()
        self.lengths = None
        if case.layout != "padded":
            lengths = torch.randint(T // 2 + 1, T + 1, (B,), generator=random)
            lengths[0] = T
            self.lengths = lengths.to(case.device)

    @cached_property
    def leaf(self) -> Tensor:
        """``x`` as an input that wants a gradient, unless the case is inference."""
        return self.x.clone().requires_grad_(self.case.mode != "infer")

    def load(self, module: nn.Module) -> Results:
        """Give a module of torch.nn's parameter names the weights; return the task's leaves."""
        module.load_state_dict(self.weights)
        return {"x": self.leaf} | dict(module.named_parameters())

    def grad(self, outputs: Results) -> Tensor:
        """What backward starts from."""
        return self.dy

    def judge(self, kind: str) -> tuple[Results, Results]:
        """Truth and yardstick, computed once."""
        return self._judged

    def comparable(self, got: Results, kind: str) -> Results:
        """Outputs as they are."""
        return got

    @cached_property
    def _judged(self) -> tuple[Results, Results]:
        case, wide = self.case, self._reference(torch.float64)
        if case.cell in TORCHS and case.layout == "padded":
            make = TORCHS[case.cell]
            module = make(*case.shape[2:], case.layers, bias=case.bias, device=case.device,
                          dtype=case.torch_dtype, bidirectional=case.bidirectional)  # fmt: skip
            leaves = self.load(module)
            yardstick = results(Task(lambda: outputs(module(leaves["x"])), leaves), self)
        else:
            yardstick = self._reference(case.torch_dtype)
        return wide, yardstick

    def _reference(self, dtype: torch.dtype) -> Results:
        module = our_module(self.case, dtype)
        module.load_state_dict({k: v.to(dtype) for k, v in self.weights.items()})
        x = self.x.to(dtype, copy=True).requires_grad_(self.case.mode != "infer")
        leaves = {"x": x} | dict(module.named_parameters())
        with fusedrnn.backend("reference"):
            run = Task(lambda: outputs(module(x, lengths=self.lengths)), leaves)
            return results(run, self, dtype)


Problem = Sequence | Softmax


def problem(case: Case, before: Problem | None = None) -> Problem:
    """The numbers of a case; has from the one before, which is done with, what is the same."""
    kinds = {"softmax": Softmax, "log_prob": Scores, "topk": Scores}
    return kinds[case.op](case, before) if case.op in kinds else Sequence(case)
