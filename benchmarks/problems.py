"""The numbers of a case: inputs and weights that every peer gets, and the truth it is held to.

Truth is the float64 reference. The yardstick is torch's own operator in the case's dtype, or, where
torch has none, the same equations as torch operators.
"""

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, logsigmoid

import fusedrnn
from fusedrnn import softmax_reference
from fusedrnn._trees import Tree
from fusedrnn.cells import CELLS

from .case import Case
from .task import Results, Task, Unsupported

OURS = {
    "lstm": fusedrnn.LSTM,
    "lstm_coupled": partial(fusedrnn.LSTM, coupled=True),
    "slstm": fusedrnn.SLSTM,
    "gru": fusedrnn.GRU,
    "gru_reset_before": partial(fusedrnn.GRU, reset_after=False),
    **{n: partial(fusedrnn.RNN, nonlinearity=n[4:]) for n in CELLS if n.startswith("rnn_")},
}
"""The module of each cell; options in a cell's name are arguments of it."""

ARGUMENTS = {"update": "cell_activation", "output": "output_activation", "clip": "cell_clip"}

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
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        T, B, I, H = case.shape
        random = torch.Generator().manual_seed(T * 1009 + B * 101 + H)
        like = {"device": case.device, "dtype": case.torch_dtype}
        normal = partial(torch.randn, generator=random)
        self.x = normal(T, B, I).to(**like)
        self.dy = normal(T, B, H * (1 + case.bidirectional)).to(**like)
        self.weights = {}
        for name, p in our_module(case, torch.float32).state_dict().items():
            values = (2 * torch.rand(p.shape, generator=random) - 1) / H**0.5
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


TOP = 10
"""The words that ``topk`` asks for."""


class Softmax:
    """The problem of a ``softmax`` case: tokens drawn by the words' counts.

    Attributes:
        x: ``[N, H]``.
        target: int64 ``[N]``.
        counts: of the words, as 1 / rank or all alike. ``[V]``.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        V, H, N = case.shape
        random = torch.Generator().manual_seed(V + H * 101 + N * 1009)
        like = {"device": case.device, "dtype": case.torch_dtype}
        self.counts = 1e6 / torch.arange(1, V + 1)
        if case.counts == "uniform":
            self.counts.fill_(1e6 / V)
        self.x = torch.randn(N, H, generator=random).to(**like)
        target = torch.multinomial(self.counts, N, replacement=True, generator=random)
        self.target = target.to(case.device)
        self._trees: dict[str, fusedrnn.Hierarchy] = {}
        self._judged: dict[object, object] = {}

    @cached_property
    def leaf(self) -> Tensor:
        """``x`` as an input that wants a gradient, unless the case is inference."""
        return self.x.clone().requires_grad_(self.case.mode != "infer")

    def grad(self, outputs: Results) -> None:
        """What backward starts from: the loss itself."""

    def tree(self, kind: str) -> fusedrnn.Hierarchy:
        """``flat``, ``two-level`` or ``huffman``, over the words' counts; built once."""
        if kind not in self._trees:
            make = {
                "flat": lambda counts: fusedrnn.Hierarchy.flat(len(counts)),
                "two-level": fusedrnn.Hierarchy.classes,
                "huffman": fusedrnn.Hierarchy.huffman,
            }
            self._trees[kind] = make[kind](self.counts)
        return self._trees[kind]

    def weights(self, rows: int) -> tuple[Tensor, Tensor]:
        """``[rows, H]`` and ``[rows]``, uniform within 1/sqrt(H), always the same numbers."""
        H = self.case.shape[1]
        random = torch.Generator().manual_seed(rows)
        like = {"device": self.case.device, "dtype": self.case.torch_dtype}
        draw = (torch.rand(rows, H, generator=random), torch.rand(rows, generator=random))
        return tuple(((2 * d - 1) / H**0.5).to(**like) for d in draw)

    def judge(self, kind: str) -> tuple[Results, Results]:
        """Truth and yardstick of one model, computed once.

        ``kind`` is that of a tree, which may end in `` without bias``, or ``adaptive``.
        """
        if kind not in self._judged:
            run = self._of_torchs if kind == "adaptive" else self._of_tree
            self._judged[kind] = tuple(
                run(kind, dtype) for dtype in (torch.float64, self.case.torch_dtype)
            )
        return self._judged[kind]

    def comparable(self, got: Results, kind: str) -> Results:
        """Outputs as they are."""
        return got

    def adaptive(self, make: Callable[..., nn.Module], dtype: torch.dtype) -> nn.Module:
        """torch's or our adaptive softmax, clusters at V/50, V/10, V/2, always the same weights.

        Raises:
            Unsupported: there are too few words or features for its clusters.
        """
        V, H, _ = self.case.shape
        if V < 200 or H < 64:
            raise Unsupported(f"V is {V}, H is {H}; its clusters need at least 200 and 64")
        torch.manual_seed(0)
        module = make(H, V, [V // 50, V // 10, V // 2])
        return module.to(self.case.device, self.case.torch_dtype).to(dtype)

    def _of_torchs(self, kind: str, dtype: torch.dtype) -> Results:
        module = self.adaptive(nn.AdaptiveLogSoftmaxWithLoss, dtype)
        x = self.x.to(dtype, copy=True).requires_grad_(self.case.mode != "infer")
        leaves = {"x": x} | dict(module.named_parameters())
        return results(Task(lambda: {"loss": module(x, self.target).loss}, leaves), self)

    def _of_tree(self, kind: str, dtype: torch.dtype) -> Results:
        biased = not kind.endswith(" without bias")
        tree = self.tree(kind.removesuffix(" without bias"))
        weight, bias = (w.to(dtype, copy=True) for w in self.weights(tree.rows))
        leaves = {"x": self.x.to(dtype, copy=True), "weight": weight}
        if biased:
            leaves["bias"] = bias
        else:
            bias.zero_()
        if self.case.mode != "infer":
            leaves = {name: t.requires_grad_() for name, t in leaves.items()}

        def forward() -> Results:
            x, weight = leaves["x"], leaves["weight"]
            return {"loss": -path_log_prob(x, weight, bias, tree, self.target).mean()}

        return results(Task(forward, leaves), self)


class Scores(Softmax):
    """The problem of a ``log_prob`` or ``topk`` case: the same numbers, all words scored.

    Outputs are ``log_prob``, ``[N, V]`` or ``[N, TOP]``, and of ``topk`` the ``words`` too.
    """

    def answer(self, every: Tensor) -> Results:
        """What the case asks for, from the log-probabilities of all words ``[N, V]``."""
        if self.case.op == "log_prob":
            return {"log_prob": every}
        values, words = every.topk(TOP, 1)
        return {"log_prob": values, "words": words}

    def judge(self, kind: str) -> tuple[Results, Results]:
        """Truth and yardstick of one model; words count as what they are worth."""
        every = self._every(kind, torch.float64), self._every(kind, self.case.torch_dtype)
        return tuple(self.comparable(self.answer(scores), kind) for scores in every)

    def comparable(self, got: Results, kind: str) -> Results:
        """Words as their log-probabilities in float64: of equals, either may come first."""
        if "words" not in got:
            return got
        return got | {"words": self._every(kind, torch.float64).gather(1, got["words"])}

    def _every(self, kind: str, dtype: torch.dtype) -> Tensor:
        if (kind, dtype) not in self._judged:
            with torch.no_grad():
                self._judged[kind, dtype] = self._log_prob(kind, dtype)
        return self._judged[kind, dtype]

    def _log_prob(self, kind: str, dtype: torch.dtype) -> Tensor:
        x = self.x.to(dtype)
        if kind == "adaptive":
            return self.adaptive(nn.AdaptiveLogSoftmaxWithLoss, dtype).log_prob(x)
        tree = self.tree(kind)
        weight, bias = (w.to(dtype) for w in self.weights(tree.rows))
        if kind == "flat":
            return log_softmax(linear(x, weight, bias), 1)
        tensors = Tree(**{name: t.to(x.device) for name, t in tree.tensors().items()})
        return softmax_reference.log_prob(x, weight, bias, tensors, tree.depth).to(dtype)


Problem = Sequence | Softmax


def problem(case: Case) -> Problem:
    """The numbers of a case."""
    kinds = {"softmax": Softmax, "log_prob": Scores, "topk": Scores}
    return kinds.get(case.op, Sequence)(case)


def results(task: Task, of: Problem, dtype: torch.dtype | None = None) -> Results:
    """Outputs and, unless the case is inference, the gradients of every leaf, by name."""
    if of.case.mode == "infer":
        with torch.no_grad():
            return task.forward()
    out = task.forward()
    start = of.grad(out)
    start = start if start is None or dtype is None else start.to(dtype)
    leaves = list(task.leaves.values())
    # torch's adaptive softmax leaves out the clusters that no token met: zeros, then.
    grads = torch.autograd.grad(next(iter(out.values())), leaves, start, materialize_grads=True)
    named = zip(task.leaves, grads, strict=True)
    return {name: t.detach() for name, t in out.items()} | {
        f"d{name}": task.restore(name, g.to_dense() if g.is_sparse else g) for name, g in named
    }


def path_log_prob(
    x: Tensor, weight: Tensor, bias: Tensor, tree: fusedrnn.Hierarchy, target: Tensor
) -> Tensor:
    """log p(target | x) as torch operators over the nodes of each target's path alone: ``[N]``.

    The package's own reference computes all V words for each token: 10 GB in float64 at V = 100,000
    and N = 1,024.
    """
    words = target.tolist()
    paths = {word: tree.path(word) for word in set(words)}
    starts = tree.tensors()["node_rows"]
    sizes = starts.diff().tolist()
    single: list[tuple[int, int, int]] = []  # token, row, sign
    groups: dict[int, list[tuple[int, int]]] = {}  # node -> (token, branch)
    for token, word in enumerate(words):
        for node, branch in paths[word]:
            if sizes[node] == 1:
                single.append((token, int(starts[node]), 1 - 2 * branch))
            else:
                groups.setdefault(node, []).append((token, branch))
    total = x.new_zeros(len(words))
    if single:
        token, row, sign = torch.tensor(single, device=x.device).unbind(1)
        z = (x[token] * weight[row]).sum(1) + bias[row]
        total = total.index_add(0, token, logsigmoid(sign * z))
    if groups:  # split once: slicing would make a gradient of the whole weight for each node
        weights, biases = weight.split(sizes), bias.split(sizes)
    for node, members in groups.items():
        token, branch = torch.tensor(members, device=x.device).unbind(1)
        each = log_softmax(linear(x[token], weights[node], biases[node]), 1)
        total = total.index_add(0, token, each.gather(1, branch[:, None])[:, 0])
    return total
