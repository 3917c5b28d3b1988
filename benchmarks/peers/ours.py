"""This package, as users call it."""

import inspect
import os
import re
from unittest.mock import patch

from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn.cells import CELLS

from ..problems import Sequence, our_module, outputs
from ..task import Results, Task, Unsupported
from ..words import TOP, Softmax
from . import torch_softmax
from ._base import peer


@peer("fusedrnn", "sequence", what="input product, recurrence, all gradients", ours=True)
def layer(problem: Sequence) -> Task:
    """The module, with ``lengths=`` or a PackedSequence as the case says."""
    case = problem.case
    module = our_module(case, case.torch_dtype)
    leaves = problem.load(module)
    x, lengths = leaves["x"], problem.lengths
    if case.layout == "packed":
        return Task(lambda: packed(module, x, lengths.cpu()), leaves)
    return Task(lambda: outputs(module(x, lengths=lengths)), leaves)


def packed(module: object, x: Tensor, lengths: Tensor) -> Results:
    """Pack, run, pad: what a user of PackedSequence pays for each batch."""
    y, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return outputs((pad_packed_sequence(y, total_length=len(x))[0], state))


@peer(
    "fusedrnn padded",
    "sequence",
    what="as fusedrnn, with all rows T long",
    layouts=("lengths", "packed"),
    note="another model: all rows are T long; what lengths cost is measured against it",
)
def padded(problem: Sequence) -> Task:
    """The same numbers without lengths."""
    twin = Sequence(problem.case.on(layout="padded"))
    task = layer(twin)
    task.truth = lambda: twin.judge("")[0]
    return task


PLAIN = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}


@peer(
    "fusedrnn plain",
    "sequence",
    what="as fusedrnn, with the plain LSTM, GRU or tanh RNN",
    note="another model: what a variant costs is measured against it",
)
def plain(problem: Sequence) -> Task:
    """The plain cell that a variant is one of."""
    kind = re.search("lstm|gru|rnn", problem.case.cell)[0]
    if problem.case.cell == PLAIN[kind]:
        raise Unsupported("it is the plain cell")
    twin = Sequence(problem.case.on(cell=PLAIN[kind]))
    task = layer(twin)
    task.truth = lambda: twin.judge("")[0]
    return task


@peer("fusedrnn recorded", "sequence", what="as fusedrnn, with all gates and states recorded")
def recorded(problem: Sequence) -> Task:
    """Inside ``fusedrnn.record``."""
    module = our_module(problem.case, problem.case.torch_dtype)
    leaves = problem.load(module)

    def forward() -> Results:
        with fusedrnn.record(module):
            return outputs(module(leaves["x"], lengths=problem.lengths))

    return Task(forward, leaves)


@peer(
    "fusedrnn one by one",
    "sequence",
    what="as fusedrnn, stacked layers one after the other instead of taking turns",
    devices=("cuda",),
)
def one_by_one(problem: Sequence) -> Task:
    """What the waves of stacked layers are worth."""
    if problem.case.layers == 1 or problem.case.bidirectional:
        raise Unsupported("only stacked layers of one direction take turns")
    task = layer(problem)

    def forward() -> Results:
        with patch.dict(os.environ, FUSEDRNN_PIECES="1"):
            return task.forward()

    return Task(forward, task.leaves)


CELL_MODULES = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn_tanh": "RNNCell"}


def decoder(problem: Sequence, package: object) -> Task:
    """T calls of a cell module of ``package``, one a step."""
    if problem.case.cell not in CELL_MODULES:
        raise Unsupported(f"there is no module of one step for {problem.case.cell}")
    make = getattr(package, CELL_MODULES[problem.case.cell])
    case = problem.case
    cell = make(*case.shape[2:], bias=case.bias, device=case.device, dtype=case.torch_dtype)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in problem.weights.items()})
    states = len(CELLS[case.cell].states)

    def forward() -> Results:
        state = None
        for x in problem.x:
            state = cell(x, state)
        state = state if states > 1 else (state,)
        return dict(zip(("hn", "cn"), (s[None] for s in state), strict=False))

    return Task(forward, {})


@peer("fusedrnn cell", "decode", what="T calls of fusedrnn's cell module, no gradients", ours=True)
def decode(problem: Sequence) -> Task:
    """One call of the cell a step."""
    return decoder(problem, fusedrnn)


def output_layer(problem: Softmax, kind: str, **options: bool) -> Task:
    """A HierarchicalSoftmax over one of the problem's trees."""
    case = problem.case
    tree = problem.tree(kind)
    make = fusedrnn.HierarchicalSoftmax
    if missing := options.keys() - inspect.signature(make).parameters.keys():
        raise Unsupported(f"this fusedrnn has no {', '.join(missing)}")
    module = make(case.shape[1], tree, device=case.device, dtype=case.torch_dtype, **options)
    weight, bias = problem.weights(tree.rows)
    module.weight.data, module.bias.data = weight, bias
    leaves = {"x": problem.leaf, "weight": module.weight, "bias": module.bias}
    x, target = problem.leaf, problem.target
    passes = {"fwd": 1, "infer": 1, "bwd": 2, "fwdbwd": 3}[case.mode]
    flops = int(2 * passes * tree.expected_rows * case.shape[1] * case.shape[2])

    def forward() -> Results:
        if case.op == "softmax":
            return {"loss": module(x, target).loss}
        if case.op == "log_prob":
            return {"log_prob": module.log_prob(x)}
        best = module.topk(x, TOP)
        return {"log_prob": best.log_prob, "words": best.words}

    if case.op == "log_prob":
        flops = 2 * tree.rows * case.shape[1] * case.shape[2]
    elif case.op == "topk":
        flops = None  # as many rows as the search needs
    return Task(forward, leaves, kind=kind, flops=flops)


WHAT = "softmax: loss and the gradients of x, weight, bias; log_prob: of all V words; "
WHAT += "topk: exact search"


@peer(
    "fusedrnn flat",
    "softmax",
    what="loss and the gradients of x, weight, bias; all V words, in tiles",
    ours=True,
)
def flat(problem: Softmax) -> Task:
    """All words, as linear+cross_entropy has them."""
    return output_layer(problem, "flat")


@peer(
    "fusedrnn two-level",
    "softmax",
    "log_prob",
    "topk",
    what=f"{WHAT}; 0.6 sqrt(V) classes, square-root binning",
    ours=True,
)
def two_level(problem: Softmax) -> Task:
    """p(class) p(word | class)."""
    return output_layer(problem, "two-level")


@peer(
    "fusedrnn Huffman",
    "softmax",
    "log_prob",
    "topk",
    what=f"{WHAT}; a binary tree",
    ours=True,
)
def huffman(problem: Softmax) -> Task:
    """The Huffman tree of the words' counts."""
    return output_layer(problem, "huffman")


@peer(
    "fusedrnn two-level sparse",
    "softmax",
    what="as two-level, the gradient of weight with the touched rows alone",
    ours=True,
)
def two_level_sparse(problem: Softmax) -> Task:
    """With ``sparse_grad=True``."""
    return output_layer(problem, "two-level", sparse_grad=True)


@peer(
    "fusedrnn Huffman sparse",
    "softmax",
    what="as Huffman, the gradient of weight with the touched rows alone",
    ours=True,
)
def huffman_sparse(problem: Softmax) -> Task:
    """With ``sparse_grad=True``."""
    return output_layer(problem, "huffman", sparse_grad=True)


@peer(
    "fusedrnn adaptive",
    "softmax",
    "log_prob",
    "topk",
    what=f"as AdaptiveLogSoftmax, with its parameters; {torch_softmax.CLUSTERS}",
    ours=True,
)
def adaptive(problem: Softmax) -> Task:
    """fusedrnn.AdaptiveLogSoftmaxWithLoss."""
    return torch_softmax.adaptive(problem, fusedrnn.AdaptiveLogSoftmaxWithLoss)
