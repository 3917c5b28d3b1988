"""The hierarchical softmax op: schemas, fake kernels, autograd, and the choice of a backend.

    log p(word) = sum over the nodes on the word's path of log p(branch | node)

``native`` is implemented by the C++ library (CPU and CUDA), ``triton`` by fusedrnn.triton; the
reference is plain PyTorch and needs no op.
Sizes: N tokens, H features, V words, M nodes, R weight rows, E = V + M - 1 branches.

What GPUs have besides: ``plan``, which forward leaves for backward (``SoftmaxGpuPlan`` in
csrc/softmax.h), and ``met``, the rows of sparse gradients, which the CPU's op finds by itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _backend, _native, softmax_reference
from ._second_order import differentiable
from ._trees import Tree
from .reference import state_dtype
from .triton.softmax import plan_size

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TREE = (
    "Tensor leaf_rank, Tensor node_rows, Tensor node_branches, "
    "Tensor branch_leaf, Tensor branch_node"
)
_FORWARD = (
    f"(Tensor input, Tensor weight, Tensor? bias, Tensor target, {TREE}, int path_rows, int depth, "
    "int ignore_index, float label_smoothing, float z_loss, bool save) "
    "-> (Tensor output, Tensor objective, Tensor saved, Tensor plan)"
)
_BACKWARD = (
    f"(Tensor grad, Tensor input, Tensor weight, Tensor target, {TREE}, Tensor saved, Tensor plan, "
    "int ignore_index, bool need_input, bool need_weight, bool need_bias, bool sparse, "
    "Tensor? met) "
    "-> (Tensor dinput, Tensor dweight, Tensor dbias, Tensor rows)"
)


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
    path_rows: int,
    depth: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    save: bool,
    *,
    planned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, wide = input.shape[0], state_dtype(input.dtype)
    plain = label_smoothing == 0 and z_loss == 0
    size = plan_size(N, node_rows.shape[0] - 1, depth) if planned and save else 0
    return (
        input.new_empty(N, dtype=wide),
        input.new_empty(0 if plain else N, dtype=wide),
        input.new_empty(N if save else 0, path_rows, dtype=wide),
        input.new_empty(size, dtype=torch.int32),
    )


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    leaf_rank: Tensor,
    node_rows: Tensor,
    node_branches: Tensor,
    branch_leaf: Tensor,
    branch_node: Tensor,
    saved: Tensor,
    plan: Tensor,
    ignore_index: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    sparse: bool,
    met: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (N, H), R, found = input.shape, weight.shape[0], 0
    if met is not None:
        R = met.shape[0]
    elif sparse:
        R = found = torch.library.get_ctx().new_dynamic_size()
    return (
        input.new_empty(N if need_input else 0, H),
        weight.new_empty(R if need_weight else 0, H),
        weight.new_empty(R if need_bias else 0),
        target.new_empty(found),
    )


def _fake_forward_native(input: Tensor, *args: object) -> tuple[Tensor, ...]:
    return _fake_forward(input, *args, planned=input.device.type == "cuda")


def _fake_forward_triton(input: Tensor, *args: object) -> tuple[Tensor, ...]:
    return _fake_forward(input, *args, planned=True)


for _overload, _fake in (("native", _fake_forward_native), ("triton", _fake_forward_triton)):
    for _name, _schema, _of in (
        ("hierarchical_softmax_forward", _FORWARD, _fake),
        ("hierarchical_softmax_backward", _BACKWARD, _fake_backward),
    ):
        _native.LIBRARY.define(f"{_name}.{_overload}{_schema}")
        torch.library.register_fake(f"fusedrnn::{_name}.{_overload}", _of)


def _op(direction: str, backend: str) -> torch._ops.OpOverload:
    packet = getattr(torch.ops.fusedrnn, f"hierarchical_softmax_{direction}")
    return packet.triton if backend == "triton" else packet.native


def _row_sparse(rows: Tensor, values: Tensor, size: torch.Size) -> Tensor:
    """A gradient of these rows alone; they are in order, each once."""
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, size, is_coalesced=True, check_invariants=False
    )


def _rows_met(plan: Tensor, tree: Tree, R: int) -> Tensor:
    """The rows of the nodes that tokens meet, in order: how many there are, the host must wait for.

    A plan ends in the first and the last token of every node, and its column.
    """
    begin, end, _ = plan[len(plan) - 3 * (len(tree.node_rows) - 1) :].chunk(3)
    met = (begin < end).repeat_interleave(tree.node_rows.diff(), output_size=R)
    return met.nonzero().squeeze(1)


class Training(NamedTuple):
    """What turns log-probabilities into what training maximises. See ``HierarchicalSoftmax``.

    At each node of a target's path: (1 - e) log p(branch) + e mean_j log p(j) - z_loss lse^2, with
    e for ``label_smoothing``; the last term in nodes of several rows alone.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it is log p itself."""
        return self.label_smoothing == 0 and self.z_loss == 0


PLAIN = Training()


class TargetLogProb(torch.autograd.Function):
    """The ops of a backend with gradients of input, weight and bias: those that are needed."""

    @staticmethod
    def forward(
        ctx: object,
        backend: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        path_rows: int,
        depth: int,
        training: Training,
        sparse: bool,
        *tree: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the forward op, saving for backward: log p, and the objective where it differs."""
        output, objective, saved, plan = _op("forward", backend)(
            input, weight, bias, target, *tree, path_rows, depth, *training, True
        )
        ctx.backend, ctx.training, ctx.depth, ctx.sparse = backend, training, depth, sparse
        ctx.save_for_backward(input, weight, bias, target, saved, plan, *tree)
        if training.plain:
            return output
        ctx.mark_non_differentiable(output)
        return output, objective

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward op; it writes only what is needed."""
        input, weight, bias, target, saved, plan, *tree = ctx.saved_tensors  # once: checkpointing
        tree, leaves, needs = Tree(*tree), (input, weight, bias), ctx.needs_input_grad[1:4]

        def kernel() -> tuple[Tensor | None, ...]:
            given = (grads[-1], input, weight, target, *tree, saved, plan)
            return _kernel_gradients(ctx.backend, given, tree, ctx.training, needs, ctx.sparse)

        def reference(*leaves: Tensor | None) -> Tensor:
            return softmax_reference.target_log_prob(
                *leaves, target, tree, ctx.depth, *ctx.training
            )[1]

        return None, *differentiable(kernel, reference, grads[-1], *leaves), *[None] * 10


def _kernel_gradients(
    backend: str,
    given: tuple[Tensor, ...],
    tree: Tree,
    training: Training,
    needs: tuple[bool, ...],
    sparse: bool,
) -> tuple[Tensor | None, ...]:
    """Of input, weight and bias, by the backward op of a backend."""
    _, _, weight, *_, plan = given
    met = _rows_met(plan, tree, len(weight)) if sparse and backend != "cpu" else None
    dinput, dweight, dbias, rows = _op("backward", backend)(
        *given, training.ignore_index, *needs, sparse, met
    )
    if sparse:
        rows = rows if met is None else met
        dweight = _row_sparse(rows, dweight, weight.shape) if needs[1] else None
        dbias = _row_sparse(rows, dbias, weight.shape[:1]) if needs[2] else None
    return tuple(
        g if need else None for g, need in zip((dinput, dweight, dbias), needs, strict=True)
    )


class SparseGradCast(torch.autograd.Function):
    """``Tensor.to(dtype)`` whose gradient may be sparse: torch's own does not take that."""

    @staticmethod
    def forward(ctx: object, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Round the parameter."""
        ctx.dtype = parameter.dtype
        return parameter.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        """Widen its gradient."""
        return grad.to(ctx.dtype), None


class RowSparseGrad(torch.autograd.Function):
    """A parameter as it is, and of its gradient the given rows, as a sparse tensor."""

    @staticmethod
    def forward(ctx: object, parameter: Tensor, rows: Tensor) -> Tensor:
        """Pass the parameter on."""
        ctx.save_for_backward(rows)
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        """Pick the rows."""
        (rows,) = ctx.saved_tensors
        return _row_sparse(rows, grad[rows], grad.shape), None


def softmax_limits(device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each backend, why it cannot serve the loss on such tensors, or None.

    Args:
        device: the type of device the tensors are on, as ``torch.device.type``.
        dtype: that of input and weight.
    """
    reason = None
    if dtype not in DTYPES:
        reason = f"dtype is {dtype}; the kernels take float64, float32, bfloat16 and float16"
    return {"cpu": reason, "cuda": reason, "triton": reason}


def target_log_prob(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    tree: Tree,
    path_rows: int,
    depth: int,
    *,
    training: Training = PLAIN,
    sparse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The log-probability of each token's target, and the objective of training.

    Args:
        input: ``[N, H]``.
        weight: ``[R, H]``.
        bias: ``[R]`` or None.
        target: int64 ``[N]``, words, or ``training.ignore_index``.
        tree: the hierarchy's tensors, on the device of the others.
        path_rows: rows on the longest path, ``Hierarchy.max_path_rows``.
        depth: nodes on the longest path, ``Hierarchy.depth``.
        training: what the objective is.
        sparse: whether the gradients of weight and bias are row-sparse.

    Returns:
        ``[N]`` each: float64 for float64 input, else float32; 0 for ignored tokens. Where the
        objective is log p they are one tensor; where it is not, the first has no gradient.

    Raises:
        RuntimeError: the backend asked for cannot serve the call.
    """
    device = input.device.type
    backend, _ = _backend.choose(device, softmax_limits(device, input.dtype))
    parameters = (input, weight, bias)
    if backend == "reference":
        if sparse:
            rows = softmax_reference.rows_met(target[target != training.ignore_index], tree, depth)
            weight = RowSparseGrad.apply(weight, rows)
            bias = None if bias is None else RowSparseGrad.apply(bias, rows)
        return softmax_reference.target_log_prob(
            input, weight, bias, target, tree, depth, *training
        )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in parameters):
        result = TargetLogProb.apply(
            backend, *parameters, target, path_rows, depth, training, sparse, *tree
        )
        return (result, result) if training.plain else result
    output, objective, *_ = _op("forward", backend)(
        *parameters, target, *tree, path_rows, depth, *training, False
    )
    return output, output if training.plain else objective


def _mark_coalesced(parameter: Tensor) -> None:
    """Say that a gradient is coalesced if it is: accumulating drops the flag (pytorch#105916)."""
    grad = parameter.grad
    if grad is None or grad.layout != torch.sparse_coo or grad.is_coalesced():
        return
    indices, values = grad._indices(), grad._values()
    if len(indices) == 1 and bool((indices[0, 1:] > indices[0, :-1]).all()):
        parameter.grad = _row_sparse(indices[0], values, grad.shape)


def keep_coalesced(parameter: Tensor) -> None:
    """Have the sparse gradients that accumulate in a parameter marked as coalesced."""
    hooks = parameter._post_accumulate_grad_hooks or {}
    if parameter.is_leaf and parameter.requires_grad and _mark_coalesced not in hooks.values():
        parameter.register_post_accumulate_grad_hook(_mark_coalesced)
