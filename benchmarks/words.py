"""The numbers of a case of output layers, and the truth that every peer is held to.

Truth is in float64: the full distribution where words are scored, and of the loss a walk along the
targets' paths, as the package's own reference would need 10 GB for it at V = 100,000, N = 1,024.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, logsigmoid

import fusedrnn
from fusedrnn import softmax_reference
from fusedrnn._trees import Tree

from .case import Case
from .task import Results, Task, Unsupported, results

TOP = 10
"""The words that ``topk`` asks for."""

PEAK = 12.0
"""What peaked inputs are multiplied by: the likeliest of 100,000 words then has a third of the
probability, as trained language models often are that sure, and without it 0.002."""

BROWN = Path(__file__).parents[2] / "shared" / "data" / "wikitext2-brown-clusters.tsv"


def brown_counts(words: int) -> Tensor:
    """The counts of the most frequent words of WikiText-2, falling.

    Raises:
        Unsupported: the file is not there, or has fewer words.
    """
    if not BROWN.exists():
        raise Unsupported(f"real counts are read from {BROWN}, and there is no such file")
    with BROWN.open(encoding="utf-8") as lines:
        counts = sorted((int(line.rstrip().rpartition("\t")[2]) for line in lines), reverse=True)
    if len(counts) < words:
        raise Unsupported(f"V is {words}, and {BROWN} has {len(counts)} words")
    return torch.tensor(counts[:words], dtype=torch.float32)


@lru_cache(maxsize=3)  # flat, two-level and Huffman of one V: 600 MB at V = 100,000, H = 512
def _draw(rows: int, H: int) -> tuple[Tensor, Tensor]:
    """Float32 weights ``[rows, H]`` and biases ``[rows]``; who changes them must copy."""
    random = torch.Generator().manual_seed(rows)
    draw = (torch.rand(rows, H, generator=random), torch.rand(rows, generator=random))
    return tuple(d.mul_(2).sub_(1).div_(H**0.5) for d in draw)


class Softmax:
    """The problem of a ``softmax`` case: tokens drawn by the words' counts.

    Args:
        case: what is measured.
        before: the problem before it, which is done with: trees and truths that are the same are
            taken over, other truths let go.

    Attributes:
        x: ``[N, H]``.
        target: int64 ``[N]``.
        counts: of the words, falling: as 1 / rank, real ones, or all alike. ``[V]``.
        bounds: by kind and name what the error rule allows, filled by ``verify``.
    """

    def __init__(self, case: Case, before: object = None) -> None:
        self.case = case
        self.bounds: dict[tuple[str, str], float] = {}
        V, H, N = case.shape
        random = torch.Generator().manual_seed(V + H * 101 + N * 1009)
        self.counts = 1e6 / torch.arange(1, V + 1)
        if case.counts == "uniform":
            self.counts.fill_(1e6 / V)
        elif case.counts == "brown":
            self.counts = brown_counts(V)
        x = torch.randn(N, H, generator=random)
        x = PEAK * x if case.inputs == "peaked" else x
        self.x = x.to(case.device, case.torch_dtype)
        target = torch.multinomial(self.counts, N, replacement=True, generator=random)
        self.target = target.to(case.device)
        self._trees: dict[str, fusedrnn.Hierarchy] = {}
        self._judged: dict[object, object] = {}
        if isinstance(before, Softmax):
            self._take_over(before)

    def _take_over(self, before: "Softmax") -> None:
        """Have the trees of the same words, and the truths of the same numbers."""
        mine, other = self.case, before.case
        if (mine.shape[0], mine.counts) == (other.shape[0], other.counts):
            self._trees = before._trees
        # Truths of training hold the loss of inference too; those of inference have no gradients.
        enough = mine.mode in ("infer", other.mode)
        if enough and type(self) is type(before) and other.on(op=mine.op, mode=mine.mode) == mine:
            self._judged = before._judged
        else:
            before._judged.clear()  # gigabytes, and this problem will have its own

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
        like = {"device": self.case.device, "dtype": self.case.torch_dtype}
        return tuple(d.to(**like, copy=True) for d in _draw(rows, self.case.shape[1]))

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
