"""Gradients of gradients of the output layers: the kernels' first ones, differentiated by autograd.

The first order is the kernel's, bit for bit. What is differentiated further (``create_graph=True``)
is the reference, which computes the probabilities of all words for every token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._autograd import grad_of


def differentiable(
    kernel: Callable[[], tuple[Tensor | None, ...]],
    reference: Callable[..., Tensor],
    grad: Tensor,
    *leaves: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients that ``kernel`` computes; with gradients of their own where a graph is wanted.

    Args:
        kernel: computes the gradients of ``leaves``; None for those that are not needed.
        reference: the forward call, of the leaves, in torch's operators.
        grad: the gradient of what it returns.
        leaves: what is differentiated.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Gradients.apply(kernel, reference, grad, *leaves)
    return kernel()


class _Gradients(torch.autograd.Function):
    """See :func:`differentiable`."""

    @staticmethod
    def forward(
        ctx: object, kernel: Callable, reference: Callable, grad: Tensor, *leaves: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Run the kernel."""
        ctx.save_for_backward(grad, *leaves)
        ctx.reference = reference
        ctx.set_materialize_grads(False)
        return kernel()

    @staticmethod
    def backward(ctx: object, *seeds: Tensor | None) -> tuple[Tensor | None, ...]:
        """The reference, differentiated twice; to any order if a graph is asked for."""
        given, needed, graph = ctx.saved_tensors, ctx.needs_input_grad[2:], torch.is_grad_enabled()
        with torch.enable_grad():
            grad, *leaves = (
                t if t is None or not n else t.view_as(t) if graph else t.detach().requires_grad_()
                for t, n in zip(given, needed, strict=True)
            )
            out = ctx.reference(*leaves)
            wanted = [i for i, seed in enumerate(seeds) if seed is not None]
            first = grad_of([out], [leaves[i] for i in wanted], [grad], True)
            roots = [t for t, n in zip((grad, *leaves), needed, strict=True) if n]
            second = iter(grad_of(first, roots, [seeds[i] for i in wanted], graph))
        return None, None, *(next(second) if n else None for n in needed)
