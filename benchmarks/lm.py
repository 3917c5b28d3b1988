"""A word-level language model, trained by truncated back-propagation, its time taken part by part.

    embedding [V, H] -> recurrence -> output layer                              Mikolov et al. 2010

Models differ in two modules only, the recurrence and the output layer, each chosen by name. The
output layer has the signature of torch.nn.AdaptiveLogSoftmaxWithLoss.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn import _backend, ops
from fusedrnn.softmax import softmax_limits

from .lm_time import Stopwatch, Turn

TORCH, FUSED = "torch.nn.LSTM", "fusedrnn.LSTM"
ADAM = partial(torch.optim.Adam, fused=True)


class FullSoftmax(nn.Module):
    """A linear layer and cross_entropy, as everyone writes it.

    ``forward(input [N, H], target [N])`` returns the log-probability of each target, ``[N]``, and
    the mean loss.
    """

    def __init__(self, in_features: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, n_classes)

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets, and their mean with the sign changed."""
        loss = F.cross_entropy(self.linear(input), target, reduction="none")  # [N]
        return -loss, loss.mean()


RECURRENCES: dict[str, Callable[..., nn.Module]] = {
    TORCH: torch.nn.LSTM,
    FUSED: fusedrnn.LSTM,
}
"""Those of the demo."""

ALL_RECURRENCES = RECURRENCES | {
    f"{package.__name__}.{name}": getattr(package, name)
    for name in ("GRU", "RNN")
    for package in (torch.nn, fusedrnn)
}

OUTPUTS = ("full softmax", "two-level", "Huffman")
"""Those of the demo; ``output_layer`` makes others too."""


def output_layer(name: str, H: int, counts: Tensor, *, sparse: bool = False) -> nn.Module:
    """An output layer by its name: one of ``OUTPUTS``, or ``100 classes``.

    Args:
        name: see above.
        H: the width of h.
        counts: how often each word occurs. ``[V]``.
        sparse: whether a hierarchy's weights have row-sparse gradients.
    """
    if name == "full softmax":
        return FullSoftmax(H, len(counts))
    if name == "Huffman":
        tree = fusedrnn.Hierarchy.huffman(counts)
    else:
        classes = None if name == "two-level" else int(name.removesuffix(" classes"))
        tree = fusedrnn.Hierarchy.classes(counts, classes)
    return fusedrnn.HierarchicalSoftmax(H, tree, sparse_grad=sparse)


def backends(device: torch.device) -> dict[str, str]:
    """Which backend serves each module of fusedrnn in these models, and why.

    Raises:
        RuntimeError: the one asked for (``FUSEDRNN_BACKEND``) cannot.
    """
    dtype = torch.get_default_dtype()
    limits = {
        FUSED: ops.limits("lstm", dtype, False),
        "fusedrnn.HierarchicalSoftmax": softmax_limits(device.type, dtype),
    }
    chosen = {name: _backend.choose(device.type, why) for name, why in limits.items()}
    return {name: f"{backend} ({why})" for name, (backend, why) in chosen.items()}


class LanguageModel(nn.Module):
    """Embedding, recurrence, output layer.

    Args:
        counts: how often each word occurs in the training text. ``[V]``.
        recurrence: one of ``ALL_RECURRENCES``.
        output: see ``output_layer``.
        hidden: H, the width of the embedding and of the recurrence.
        layers: the layers of the recurrence.
        sparse: whether embedding and hierarchy have row-sparse gradients.
    """

    def __init__(
        self,
        counts: Tensor,
        recurrence: str,
        output: str,
        *,
        hidden: int,
        layers: int = 1,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(counts), hidden, sparse=sparse)
        # torch's N(0, 1) drowns the first hundreds of steps; 0.1 is that of its own word model.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.recurrence = ALL_RECURRENCES[recurrence](hidden, hidden, num_layers=layers)
        self.output = output_layer(output, hidden, counts, sparse=sparse)


def columns(tokens: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Lay a stream of tokens out in ``batch`` columns of neighbouring text.

    Every token but the first is a target once, its predecessor the input; of the end, fewer than
    ``batch`` tokens are left over and unused.

    Returns:
        Inputs and targets, both ``[S, batch]``.

    Raises:
        ValueError: there are too few tokens for one row.

    Example:
        >>> columns(torch.arange(7), 2)[1].tolist()
        [[1, 4], [2, 5], [3, 6]]
    """
    steps = (len(tokens) - 1) // batch
    if steps < 1:
        raise ValueError(f"tokens has {len(tokens)}; batch={batch} needs at least {batch + 1}")
    inputs, targets = tokens[: steps * batch], tokens[1 : steps * batch + 1]
    return tuple(part.view(batch, steps).t().contiguous() for part in (inputs, targets))


def detach(state: Tensor | tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, ...] | None:
    """The same state without its history: where back-propagation is cut."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.detach()
    return tuple(part.detach() for part in state)


class Trainer:
    """Trains one model, step by step, the time of its parts taken apart.

    The graph is cut where recurrence and output layer meet, and each part's backward is called
    under that part's time: the gradients are the same as of one backward call.

    Args:
        model: on the device where it is to be trained.
        tokens: the training text. ``[tokens]``.
        batch: columns of text read side by side.
        bptt: steps after which back-propagation is cut; the state is carried on.
        lr: the step width at the start; it falls evenly, to 0 after ``steps``. At a high rate
            to the end rounding grows into chaos: models whose first weights were one unit in the
            last place apart came out 0.4% apart in perplexity after 413 steps.
        steps: the steps of the whole training.
        clip: the norm at which the gradients are clipped.
        optimizer: takes the parameters and ``lr=``. Adam takes no sparse gradients, SGD does.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tensor,
        *,
        batch: int,
        bptt: int,
        lr: float,
        steps: int,
        clip: float,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    ) -> None:
        self.model, self.bptt, self.batch, self.clip = model, bptt, batch, clip
        self.device = model.embedding.weight.device
        self.data = columns(tokens.to(self.device), batch)
        self.optimizer = optimizer(model.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: max(0.0, 1 - step / steps)
        )
        self.state = None
        self._windows = self._endless()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self.data  # [S, B]
        while True:
            self.state = None
            yield from zip(inputs.split(self.bptt), targets.split(self.bptt), strict=True)

    def _gradients(self, inputs: Tensor, targets: Tensor, watch: Stopwatch) -> Tensor:
        model = self.model
        embedded = model.embedding(inputs)  # [T, B, H]
        x = embedded.detach().requires_grad_()
        watch.mark("rest")
        h, self.state = model.recurrence(x, self.state)  # [T, B, H]
        self.state = detach(self.state)
        top = h.detach().requires_grad_()
        watch.mark("recurrence")
        _, loss = model.output(top.flatten(0, 1), targets.flatten())
        loss.backward()
        watch.mark("output")
        h.backward(top.grad)
        watch.mark("recurrence")
        embedded.backward(x.grad)
        return loss.detach()

    def warm_up(self) -> None:
        """Run once without learning, so that no first call is timed."""
        inputs, targets = (part[: self.bptt] for part in self.data)
        for _ in range(2):
            self._gradients(inputs, targets, Stopwatch(self.device))
        self.optimizer.zero_grad()
        self.state = None

    def train(self, steps: int) -> Turn:
        """Train for this many steps, over the end of the text if need be."""
        self.model.train()
        loss, tokens = torch.zeros((), device=self.device), 0
        watch = Stopwatch(self.device)
        watch.mark()
        for _ in range(steps):
            inputs, targets = next(self._windows)
            self.optimizer.zero_grad()
            loss += self._gradients(inputs, targets, watch) * targets.numel()
            fusedrnn.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            watch.mark("rest")
            tokens += targets.numel()
        return Turn(steps, tokens, loss.item() / tokens, watch.read())

    @torch.no_grad()
    def perplexity(self, tokens: Tensor) -> float:
        """That of ``tokens``: e to the mean loss, the state carried from window to window."""
        self.model.eval()
        inputs, targets = columns(tokens.to(self.device), min(self.batch, len(tokens) - 1))
        state, loss = None, 0.0
        for x, y in zip(inputs.split(self.bptt), targets.split(self.bptt), strict=True):
            h, state = self.model.recurrence(self.model.embedding(x), state)
            loss += self.model.output(h.flatten(0, 1), y.flatten())[1].item() * y.numel()
        return math.exp(loss / targets.numel())
