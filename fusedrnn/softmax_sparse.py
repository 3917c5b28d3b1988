"""Row-sparse gradients of the output layer, kept out of compiled graphs.

A file of its own, imported by the first use: ``torch.compiler.disable`` loads the whole compiler,
Triton with it, which would add 1.6 s to ``import fusedrnn``.
"""

import torch
from torch import Tensor, nn

from .softmax_ops import keep_coalesced


@torch.compiler.disable(
    reason="HierarchicalSoftmax(sparse_grad=True) runs outside compiled graphs, which have no "
    "sparse gradients: compile without fullgraph=True, or use sparse_grad=False"
)
def row_sparse(
    layer: nn.Module, input: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, torch.dtype]:
    """The layer's ``_target_log_prob``, whose backward leaves row-sparse gradients."""
    for parameter in layer.parameters():
        keep_coalesced(parameter)
    return layer._target_log_prob(input, target, layer._training, sparse=True)
