"""The output layer over a large vocabulary, with the interface of torch's adaptive softmax."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import softmax_reference
from ._trees import Tree
from .hierarchy import Hierarchy
from .softmax_ops import SparseGradCast, softmax_limits, target_log_prob

__all__ = ["HierarchicalSoftmax", "HierarchicalSoftmaxOutput", "softmax_limits"]


class HierarchicalSoftmaxOutput(NamedTuple):
    """What :class:`HierarchicalSoftmax` returns, as ``torch.nn.AdaptiveLogSoftmaxWithLoss``."""

    output: Tensor
    loss: Tensor


class HierarchicalSoftmax(nn.Module):
    """Log-probabilities of words under a hierarchy, and their loss, without the full softmax.

    ``log p(word | x)`` is the sum over the nodes on the word's path of the log-probability of the
    branch taken there: ``log_softmax(W x + b)`` over the rows of a node, or, in a node of one row,
    ``logsigmoid(w x + b)`` for branch 0 and ``logsigmoid(-(w x + b))`` for branch 1
    (Morin & Bengio 2005; Goodman 2001). A token costs the rows on its target's path, forward and
    backward, not all. With ``Hierarchy.flat`` it is ``Linear`` and ``cross_entropy``.

    Args:
        in_features: size of each input vector.
        hierarchy: a :class:`fusedrnn.Hierarchy`.
        bias: whether each row has a bias.
        sparse_grad: whether the gradients of weight and bias are sparse, see below.
        device: as in ``torch.nn.Linear``.
        dtype: float64, float32, bfloat16 or float16. 16-bit inputs and weights have float32 logits,
            log-sum-exp and accumulation.

    Attributes:
        weight: ``[hierarchy.rows, in_features]``.
        bias: ``[hierarchy.rows]`` or None. Both initialised as those of ``torch.nn.Linear``.
        hierarchy: the hierarchy in use. It is part of the state_dict, as the buffers
            ``hierarchy_<name>`` for each tensor of :meth:`Hierarchy.tensors`, so that a checkpoint
            says what its rows mean; loading one puts its hierarchy in force. They never change:
            ``DistributedDataParallel(..., broadcast_buffers=False)`` saves sending them each step.

    With ``sparse_grad=True``, as in ``torch.nn.Embedding``, the gradients of weight and bias are
    ``torch.sparse_coo`` tensors of the rows of the nodes that some target's path meets: coalesced,
    equal to those rows of the dense gradients, and made, as the forward pass is, without touching
    the rest. Both are sparse, so that no optimizer walks all rows of either. SGD, SparseAdam and
    Adagrad take them (momentum is dense: with it SGD walks all rows, and weight decay raises);
    :func:`fusedrnn.clip_grad_norm_` clips them. Only :meth:`forward` makes sparse gradients,
    :meth:`log_prob` dense ones. The reference backend computes the dense gradient and picks the
    rows. ``torch.compile`` leaves the layer outside its graphs (with ``fullgraph=True``, an error).

    Under autocast it behaves as ``Linear`` followed by ``cross_entropy``: input and parameters are
    rounded to autocast's dtype, and outputs are float32.

    Example:
        >>> import torch, fusedrnn
        >>> tree = fusedrnn.Hierarchy.classes(counts=[100, 50, 20, 20, 5, 1, 1, 1], n=3)
        >>> layer = fusedrnn.HierarchicalSoftmax(16, tree)
        >>> output, loss = layer(torch.randn(5, 16), torch.tensor([0, 7, 3, 0, 1]))
        >>> output.shape, loss.shape
        (torch.Size([5]), torch.Size([]))
        >>> layer.log_prob(torch.randn(5, 16)).exp().sum(1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], grad_fn=<SumBackward1>)
    """

    __constants__ = ["in_features"]
    in_features: int
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        hierarchy: Hierarchy,
        bias: bool = True,
        *,
        sparse_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_features, bool) or not isinstance(in_features, int) or in_features < 1:
            raise ValueError(f"in_features is {in_features!r}; it must be an int >= 1")
        if not isinstance(hierarchy, Hierarchy):
            raise TypeError(
                f"hierarchy is {type(hierarchy).__name__}; it must be a fusedrnn.Hierarchy, "
                "for example fusedrnn.Hierarchy.classes(counts)"
            )
        self.in_features = in_features
        self.sparse_grad = sparse_grad
        self.hierarchy = hierarchy
        new = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(hierarchy.rows, in_features, **new))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(hierarchy.rows, **new)) if bias else None
        )
        for name, tensor in hierarchy.tensors().items():
            self.register_buffer(f"hierarchy_{name}", tensor.to(self.weight.device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weight and bias as ``torch.nn.Linear``: uniform within 1/sqrt(in_features).

        The hierarchy's buffers are written too, so that ``to_empty`` may be followed by this.
        """
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        for name, tensor in self.hierarchy.tensors().items():
            getattr(self, f"hierarchy_{name}").copy_(tensor)

    def forward(self, input: Tensor, target: Tensor) -> HierarchicalSoftmaxOutput:
        """The log-probability of every target, and the mean of their negatives.

        Args:
            input: ``[N, in_features]``, ``[in_features]``, or with more leading dimensions.
            target: int64 words, of input's leading dimensions: ``[N]``, ``[]``, ...

        Returns:
            A named tuple: ``output``, of target's shape, and ``loss``, a scalar (NaN for no tokens,
            as in torch), both in input's dtype.

        Raises:
            ValueError: shapes do not fit.
            TypeError: target is not int64, or input and weight differ in dtype.
            IndexError: a target is not in 0..V-1. Under ``torch.compile`` this is a RuntimeError;
                on a GPU, a device-side assertion, as in ``cross_entropy``.
            RuntimeError: the backend asked for cannot serve the call.
        """
        self._check_input(input)
        self._check_target(input, target)
        if self.sparse_grad and torch.is_grad_enabled():
            from .softmax_sparse import row_sparse

            output, dtype = row_sparse(self, input, target)
        else:
            output, dtype = self._target_log_prob(input, target)
        loss = (-output).mean()
        return HierarchicalSoftmaxOutput(output.to(dtype).view(target.shape), loss.to(dtype))

    def log_prob(self, input: Tensor) -> Tensor:
        """The log-probabilities of all words, in order of their ids.

        Plain PyTorch on every backend; all rows of the weight are used. Differentiable.

        Args:
            input: ``[N, in_features]``, ``[in_features]``, or with more leading dimensions.

        Returns:
            ``[N, V]`` (leading dimensions as in input), in input's dtype.

        Raises:
            ValueError: input's last dimension is not in_features.
            TypeError: input and weight differ in dtype.
        """
        return self._log_prob(input)[0]

    def predict(self, input: Tensor) -> Tensor:
        """The most probable word: the exact argmax over all words, the first of equals.

        It is not the word that the most probable branch at every node leads to: a likely class may
        hold no likely word. 16-bit probabilities are compared before they are rounded.

        Args:
            input: as in :meth:`log_prob`.

        Returns:
            int64 words, of input's leading dimensions.
        """
        with torch.no_grad():
            return self._log_prob(input)[1].argmax(-1)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        sparse = ", sparse_grad=True" if self.sparse_grad else ""
        return f"{self.in_features}, {self.hierarchy}, bias={self.bias is not None}{sparse}"

    def _target_log_prob(
        self, input: Tensor, target: Tensor, sparse: bool = False
    ) -> tuple[Tensor, torch.dtype]:
        """As computed, and the dtype to return."""
        x, weight, bias, dtype = self._operands(input, sparse)
        output = target_log_prob(
            x.reshape(-1, self.in_features),
            weight,
            bias,
            target.reshape(-1),
            self._tree(),
            self.hierarchy.max_path_rows,
            self.hierarchy.depth,
            sparse=sparse,
        )
        return output, dtype

    def _log_prob(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded to the dtype to return, and as computed."""
        self._check_input(input)
        x, weight, bias, dtype = self._operands(input)
        wide = softmax_reference.log_prob(
            x.reshape(-1, self.in_features), weight, bias, self._tree(), self.hierarchy.depth
        ).view(*input.shape[:-1], self.hierarchy.words)
        return wide.to(dtype), wide

    def _tree(self) -> Tree:
        return Tree(*(getattr(self, f"hierarchy_{name}") for name in Tree._fields))

    def _operands(
        self, input: Tensor, sparse: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
        """Input, weight and bias as autocast would have them, and the dtype of what is returned."""
        device = input.device.type
        if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
            return input, self.weight, self.bias, input.dtype
        low = torch.get_autocast_dtype(device)
        cast = SparseGradCast.apply if sparse else Tensor.to
        bias = None if self.bias is None else cast(self.bias, low)
        return input.to(low), cast(self.weight, low), bias, torch.float32

    def _check_input(self, input: Tensor) -> None:
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input has shape {tuple(input.shape)}; its last dimension must be in_features, "
                f"{self.in_features}"
            )
        if input.device != self.weight.device:
            raise ValueError(
                f"input is on {input.device} and weight on {self.weight.device}; move one of them"
            )
        autocast = torch.is_autocast_enabled(input.device.type)
        if input.dtype != self.weight.dtype and not (
            autocast and torch.float64 not in (input.dtype, self.weight.dtype)
        ):
            raise TypeError(
                f"input is {input.dtype} and weight {self.weight.dtype}; convert one of them, or "
                "use autocast"
            )

    def _check_target(self, input: Tensor, target: Tensor) -> None:
        if target.shape != input.shape[:-1]:
            raise ValueError(
                f"target has shape {tuple(target.shape)}; it must be that of input without its "
                f"last dimension, {tuple(input.shape[:-1])}"
            )
        if target.dtype != torch.int64:
            raise TypeError(f"target is {target.dtype}; it must be torch.int64: use target.long()")
        if target.device != input.device:
            raise ValueError(f"target is on {target.device} and input on {input.device}; move one")
        # The kernel checks too, but cannot raise IndexError; a compiled graph has only that.
        if target.device.type != "cpu" or torch.compiler.is_compiling() or not target.numel():
            return
        low, high = target.aminmax()
        if low < 0 or high >= self.hierarchy.words:
            bad = int(low) if low < 0 else int(high)
            raise IndexError(
                f"target holds {bad}; the hierarchy has the words 0..{self.hierarchy.words - 1}"
            )

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        metadata: dict,
        strict: bool,
        missing_keys: list,
        unexpected_keys: list,
        error_msgs: list,
    ) -> None:
        """Check the hierarchy before anything is copied, and take it over."""
        found = [state_dict.get(f"{prefix}hierarchy_{name}") for name in Tree._fields]
        if all(t is not None for t in found):
            sizes = [tuple(t.shape) for t in found]
            if sizes != [tuple(t.shape) for t in self._tree()]:
                words, nodes = sizes[0][0], sizes[1][0] - 1
                error_msgs.append(
                    f"the checkpoint's hierarchy ({prefix}hierarchy_*) has {words} words and "
                    f"{nodes} nodes, but this module has {self.hierarchy}: build it with the "
                    "hierarchy that the checkpoint was trained with"
                )
                return
            try:
                loaded = Hierarchy(*found)
            except ValueError as error:
                error_msgs.append(f"{prefix}hierarchy_*: {error}")
                return
            if loaded != self.hierarchy:
                self.hierarchy = loaded
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
