"""Gradient clipping that understands row-sparse gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["clip_grad_norm_"]


def _strided(grad: Tensor) -> list[Tensor]:
    """Tensors of the same norm as a coalesced gradient, that share its memory."""
    values = grad.values()
    if values.numel() == grad.numel():
        return [values]
    # One zero for all that are not there: with orders below 0 the norm is 0 where there is one.
    zero = values.new_zeros(1)
    return [values, zero] if values.numel() else [zero]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of all gradients together: torch's, for dense and sparse ones alike.

    ``grad *= min(max_norm / (norm + 1e-6), 1)``, where norm is that of all gradients as one vector.
    ``torch.nn.utils.clip_grad_norm_`` raises NotImplementedError on a sparse gradient (torch 2.13:
    no ``linalg_vector_norm`` for it). This hands it the values instead, so the cost goes by the
    entries that are there, nothing becomes dense, and dense gradients get torch's very result.

    A sparse gradient that is not coalesced, as ``torch.nn.Embedding(sparse=True)`` makes them,
    is replaced by its coalesced equal, as optimizers do: its duplicates count as their sum.

    Args:
        parameters: tensors whose gradients to clip in place, or one tensor.
        max_norm: the largest norm to leave.
        norm_type: the order of the norm; ``inf`` for the largest magnitude.
        error_if_nonfinite: whether to raise if the norm is NaN or infinite.
        foreach: as in torch.

    Returns:
        The norm before clipping, a scalar.

    Raises:
        RuntimeError: the norm is not finite, and error_if_nonfinite.

    Example:
        >>> import torch, fusedrnn
        >>> embed = torch.nn.Embedding(1000, 3, sparse=True)
        >>> linear = torch.nn.Linear(3, 1)
        >>> linear(embed(torch.tensor([4, 2, 4]))).sum().backward()
        >>> _ = fusedrnn.clip_grad_norm_([*embed.parameters(), *linear.parameters()], max_norm=0.5)
        >>> embed.weight.grad.is_sparse, embed.weight.grad.values().shape
        (True, torch.Size([2, 3]))
        >>> fusedrnn.clip_grad_norm_([*embed.parameters(), *linear.parameters()], max_norm=0.5)
        tensor(0.5000)
    """
    found = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    holders = []
    for p in found:
        if p.grad is None or p.grad.layout != torch.sparse_coo:
            holders.append(p)
            continue
        p.grad = p.grad.coalesce()
        for values in _strided(p.grad):
            holder = values.detach()
            holder.grad = values
            holders.append(holder)
    # An exhausted generator still is one: torch warns that it was empty.
    return torch.nn.utils.clip_grad_norm_(
        holders or parameters, max_norm, norm_type, error_if_nonfinite, foreach
    )
