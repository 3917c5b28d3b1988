"""What a peer's adapter returns: one problem, ready to run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .case import Case

Results = dict[str, Tensor]


class Unsupported(Exception):
    """The peer has no such thing; the message says what it lacks."""


@dataclass
class Task:
    """What an adapter returns: one problem, ready to run.

    Attributes:
        forward: one call; returns the outputs by name. The first of them is differentiated.
        leaves: what is differentiated, by name: ``x``, then the weights under torch.nn's names.
        kind: which truth it is judged by: for ``softmax`` the tree, see ``Problem.judge``.
        restore: brings the gradient of a leaf, by its name, into torch.nn's layout.
        truth: for a peer with a model of its own: that model's results in float64.
        step: for a peer without autograd: forward, backward and update in one.
        flops: of its forward and backward, where that depends on the peer.
    """

    forward: Callable[[], Results]
    leaves: Results
    kind: str = ""
    restore: Callable[[str, Tensor], Tensor] = lambda name, grad: grad
    truth: Callable[[], Results] | None = None
    step: Callable[[], None] | None = None
    flops: int | None = None


class Asking(Protocol):
    """What a problem says of how its tasks are run."""

    case: Case

    def grad(self, outputs: Results) -> Tensor | None:
        """What backward starts from."""


def results(task: Task, of: Asking, dtype: torch.dtype | None = None) -> Results:
    """Outputs and, unless the case is inference, the gradients of every leaf, by name.

    What draws random numbers draws the same for all peers.
    """
    torch.manual_seed(0)
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
