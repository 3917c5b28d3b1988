"""What a peer's adapter returns: one problem, ready to run."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

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
