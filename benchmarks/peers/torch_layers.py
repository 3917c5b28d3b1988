"""PyTorch itself: its modules, a loop over its operators, that loop compiled, oneDNN's own op."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import random

from ..problems import TORCHS, Sequence, our_module, outputs
from ..task import Results, Task, Unsupported
from ._base import peer
from .ours import decoder, packed

ALL = "input product, recurrence, all gradients"


@peer("torch.nn", "sequence", what=f"{ALL} (CPU: oneDNN for the LSTM, else a loop; CUDA: cuDNN)")
def module(problem: Sequence) -> Task:
    """The module of torch.nn; rows of unequal length are packed."""
    case = problem.case
    if case.cell not in TORCHS:
        raise Unsupported(f"torch.nn has no {case.cell}")
    rnn = TORCHS[case.cell](*case.shape[2:], case.layers, bias=case.bias, device=case.device,
                            bidirectional=case.bidirectional, dtype=case.torch_dtype)  # fmt: skip
    leaves = problem.load(rnn)
    x = leaves["x"]
    if problem.lengths is None:
        return Task(lambda: outputs(rnn(x)), leaves)
    lengths = problem.lengths.cpu()
    return Task(lambda: packed(rnn, x, lengths), leaves)


def loop(problem: Sequence, compiled: bool) -> Task:
    """The package's own reference: the cell's ten lines of PyTorch, step by step.

    Masks are drawn once, before anything is timed: there torch has a generator that is faster than
    the reference's.
    """
    case = problem.case
    masks: dict[tuple, Tensor] = {}

    def kept(seed: Tensor, *of: object, drawn: Callable = random.kept) -> Tensor:
        if of not in masks:
            masks[of] = drawn(seed, *of)
        return masks[of]

    rnn = our_module(case, case.torch_dtype)
    leaves = problem.load(rnn)
    call = torch.compile(rnn, fullgraph=True) if compiled else rnn

    def forward() -> Results:
        with fusedrnn.backend("reference"), mock.patch.object(random, "kept", kept):
            return outputs(call(leaves["x"], lengths=problem.lengths))

    return Task(forward, leaves)


@peer("eager loop", "sequence", what=f"{ALL}, as PyTorch operators in a Python loop over the steps")
def eager(problem: Sequence) -> Task:
    """What people write when torch.nn lacks their cell."""
    return loop(problem, compiled=False)


@peer(
    "torch.compile",
    "sequence",
    what=f"{ALL}: the same loop compiled; compilation is not timed",
    note="T steps are unrolled: minutes of compilation at T in the hundreds",
)
def compiled(problem: Sequence) -> Task:
    """The same through Inductor."""
    torch._dynamo.reset()
    return loop(problem, compiled=True)


@peer(
    "oneDNN",
    "sequence",
    what=f"{ALL}, through aten::mkldnn_rnn_layer",
    devices=("cpu",),
    note="what nn.LSTM calls where it can, without the module around it",
)
def onednn(problem: Sequence) -> Task:
    """torch's own op on one layer in one direction."""
    case = problem.case
    if case.cell != "lstm" or case.layers > 1 or case.bidirectional or not case.bias:
        raise Unsupported("torch exposes oneDNN's plain LSTM alone")
    if problem.lengths is not None:
        raise Unsupported("torch's op takes no lengths")
    _, B, _, H = case.shape
    weights = {name: w.clone().requires_grad_() for name, w in problem.weights.items()}
    leaves = {"x": problem.leaf} | weights
    zeros = problem.x.new_zeros(1, B, H)
    train = case.mode != "infer"

    def forward() -> Results:
        y, hn, cn, _ = torch.ops.aten.mkldnn_rnn_layer(
            leaves["x"], *weights.values(), zeros[0], zeros[0], False, [], 2, H, 1, True, False,
            False, train,
        )  # fmt: skip
        return {"y": y, "hn": hn.view(1, B, H), "cn": cn.view(1, B, H)}

    return Task(forward, leaves)


@peer("torch.nn cell", "decode", what="T calls of torch.nn's cell module, no gradients")
def decode(problem: Sequence) -> Task:
    """One call of nn.LSTMCell, GRUCell or RNNCell a step."""
    return decoder(problem, nn)
