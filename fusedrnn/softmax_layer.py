"""What an output layer over a hierarchy consists of: its parameters, and what it is given."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._given import integer
from ._trees import Tree
from .hierarchy import Hierarchy
from .softmax_ops import DTYPES, SparseGradCast


class TreeLayer(nn.Module):
    """Weight and bias of the rows of a hierarchy, and the hierarchy, in the state_dict.

    See :class:`fusedrnn.HierarchicalSoftmax` for the arguments.
    """

    in_features: int
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        hierarchy: Hierarchy,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        in_features = integer(in_features, "in_features", 1, 1 << 31, "the size of an input")
        if not isinstance(hierarchy, Hierarchy):
            of_best = hasattr(hierarchy, "hierarchy")  # what Hierarchy.best returns has it
            raise TypeError(
                f"hierarchy is {type(hierarchy).__name__}; it must be a fusedrnn.Hierarchy, "
                f"{'its .hierarchy' if of_best else 'such as fusedrnn.Hierarchy.classes(counts)'}"
            )
        self.in_features = in_features
        self.hierarchy = hierarchy
        if dtype not in (None, *DTYPES):
            known = ", ".join(map(str, DTYPES))
            raise TypeError(f"dtype is {dtype}; it must be one of {known}")
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

    def tie_weights(self, embedding: nn.Embedding) -> None:
        """Share the embedding's weight: row w of both is word w's (Press & Wolf 2017).

        Only where the hierarchy's rows are the words' rows, in the order of their ids, which is
        ``Hierarchy.flat``: other trees have rows for their nodes too. Optimizers must be made after
        this, as the layer's own weight is no parameter any more.

        Args:
            embedding: with a weight ``[V, in_features]`` of the layer's dtype, on its device.

        Raises:
            TypeError: it is no ``torch.nn.Embedding``.
            ValueError: the hierarchy has other rows, or the weights differ in shape, dtype or
                device.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding is {type(embedding).__name__}; it must be nn.Embedding")
        if self.hierarchy != Hierarchy.flat(self.hierarchy.words):
            raise ValueError(
                f"the rows of {self.hierarchy} are not one per word in the order of ids, as those "
                f"of an embedding: use fusedrnn.Hierarchy.flat({self.hierarchy.words})"
            )
        own, other = self.weight, embedding.weight
        if (own.shape, own.dtype, own.device) != (other.shape, other.dtype, other.device):
            raise ValueError(
                f"embedding.weight is {tuple(other.shape)}, {other.dtype}, on {other.device}; it "
                f"must be {tuple(own.shape)}, {own.dtype}, on {own.device}, as the layer's weight"
            )
        self.weight = other

    def _tree(self) -> Tree:
        return Tree(*(getattr(self, f"hierarchy_{name}") for name in Tree._fields))

    def _operands(
        self, input: Tensor, sparse: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
        """Input, weight and bias as autocast would have them, and the dtype of what is returned."""
        x, cast, dtype = operands(input, sparse)
        return x, cast(self.weight), None if self.bias is None else cast(self.bias), dtype

    def _check_input(self, input: Tensor) -> None:
        check_input(input, self.in_features, self.weight)

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


def operands(
    input: Tensor, sparse: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor], torch.dtype]:
    """The input as autocast would have it, what casts parameters so, and the dtype of results.

    Under autocast layers behave as ``Linear`` followed by ``cross_entropy``: all operands in
    autocast's dtype, results in float32. ``sparse``: the parameters' gradients may be sparse.
    """
    device = input.device.type
    if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, lambda parameter: parameter, input.dtype
    low = torch.get_autocast_dtype(device)
    cast = SparseGradCast.apply if sparse else Tensor.to
    return input.to(low), lambda parameter: cast(parameter, low), torch.float32


def check_input(input: Tensor, in_features: int, weight: Tensor) -> None:
    """Raise unless ``input`` ``[..., in_features]`` goes with ``weight``."""
    if input.ndim == 0 or input.shape[-1] != in_features:
        raise ValueError(
            f"input has shape {tuple(input.shape)}; its last dimension must be in_features, "
            f"{in_features}"
        )
    if input.device != weight.device:
        raise ValueError(
            f"input is on {input.device} and weight on {weight.device}; move one of them"
        )
    autocast = torch.is_autocast_enabled(input.device.type)
    if input.dtype != weight.dtype and not (
        autocast and torch.float64 not in (input.dtype, weight.dtype)
    ):
        raise TypeError(
            f"input is {input.dtype} and weight {weight.dtype}; convert one of them, or use "
            "autocast"
        )


def check_target(target: Tensor, input: Tensor, words: int, ignored: int) -> None:
    """Raise unless there is a target for each token: a word 0..words-1 or ``ignored``."""
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; it must be that of input without its last "
            f"dimension, {tuple(input.shape[:-1])}"
        )
    check_words(target, "target", input, words, ignored)


def check_words(
    given: Tensor, name: str, input: Tensor, words: int, ignored: int | None = None
) -> None:
    """Raise unless these are words, by dtype, device and range, or ``ignored``."""
    if given.dtype != torch.int64:
        raise TypeError(f"{name} is {given.dtype}; it must be torch.int64: use {name}.long()")
    if given.device != input.device:
        raise ValueError(f"{name} is on {given.device} and input on {input.device}; move one")
    # The kernel checks too, but cannot raise IndexError; a compiled graph has only that.
    if given.device.type != "cpu" or torch.compiler.is_compiling() or not given.numel():
        return
    if torch._C._are_functorch_transforms_active():  # vmap cannot look at values
        return
    low, high = given.aminmax()
    if low >= 0 and high < words:
        return
    outside = (given < 0) | (given >= words)
    if ignored is not None:
        outside &= given != ignored
    if (bad := given[outside]).numel():
        also = "" if ignored is None else f", and ignore_index is {ignored}"
        raise IndexError(f"{name} holds {int(bad[0])}; there are the words 0..{words - 1}{also}")


def check_ignore_index(ignore_index: int) -> int:
    """``ignore_index`` if it is an int."""
    return integer(ignore_index, "ignore_index", -(1 << 63), (1 << 63) - 1, "the target of no word")
