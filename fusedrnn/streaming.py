"""Sequences in pieces: one step at a time, and truncated backpropagation through time."""

from collections.abc import Iterator

from torch import Tensor

from .layer import RecurrentLayer

Hx = Tensor | tuple[Tensor, ...]


def step(module: RecurrentLayer, input: Tensor, hx: Hx | None = None) -> tuple[Tensor, Hx]:
    """One step of all layers: streaming inference.

    The result is that of a sequence of one step, and agrees with the same step of a longer sequence
    as closely as the kernels agree with the reference: the input products may be summed in another
    order.

    Args:
        module: an LSTM, GRU or RNN of one direction.
        input: ``[B, I]``, or ``[I]`` without a batch.
        hx: the state, as the module takes and returns it; None: zeros.

    Returns:
        The output ``[B, H]`` (``[B, P]`` with a projection) and the new state.

    Raises:
        ValueError: the module is bidirectional, or ``input`` has another number of dimensions.

    Example:
        >>> import torch, fusedrnn
        >>> lstm, state = fusedrnn.LSTM(3, 5, num_layers=2), None
        >>> for x in torch.randn(7, 2, 3):
        ...     y, state = fusedrnn.step(lstm, x, state)
        >>> y.shape
        torch.Size([2, 5])
    """
    if module.bidirectional:
        raise ValueError(
            "module is bidirectional: its reverse direction needs the whole sequence first"
        )
    if input.dim() not in (1, 2):
        raise ValueError(
            f"input has {input.dim()} dimensions; one step is [B, I], or [I] without a batch"
        )
    time = 1 if module.batch_first and input.dim() == 2 else 0
    y, hx = module(input.unsqueeze(time), hx)
    return y.squeeze(time), hx


def truncated_bptt(
    module: RecurrentLayer,
    input: Tensor,
    hx: Hx | None = None,
    *,
    steps: int,
    reset: Tensor | None = None,
) -> Iterator[tuple[Tensor, Hx]]:
    """Run a long sequence in chunks whose states pass on their values but not their gradients.

    Call backward on each chunk's loss before the next is asked for, and no more than ``steps``
    steps are ever held (Williams & Peng 1990; Mikolov et al. 2010).

    Args:
        module: an LSTM, GRU or RNN of one direction.
        input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or ``[T, I]``.
        hx: the first state; its own gradient comes from the first chunk. None: zeros.
        steps: how many steps a chunk has; the last may have fewer.
        reset: where rows begin anew, as the module takes it.

    Yields:
        The output of a chunk and the state after it.

    Raises:
        ValueError: the module is bidirectional, or ``steps`` is not positive.

    Example:
        >>> import torch, fusedrnn
        >>> gru = fusedrnn.GRU(3, 5)
        >>> for y, state in fusedrnn.truncated_bptt(gru, torch.randn(100, 2, 3), steps=35):
        ...     y.square().mean().backward()
        >>> y.shape
        torch.Size([30, 2, 5])
    """
    if module.bidirectional:
        raise ValueError("module is bidirectional: its reverse direction cannot run chunk by chunk")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    return _chunks(module, input, hx, steps, reset)


def _chunks(
    module: RecurrentLayer, input: Tensor, hx: Hx | None, steps: int, reset: Tensor | None
) -> Iterator[tuple[Tensor, Hx]]:
    time = 1 if module.batch_first and input.dim() == 3 else 0
    masks = [None] * (-(-input.shape[time] // steps)) if reset is None else reset.split(steps, time)
    for x, mask in zip(input.split(steps, time), masks, strict=True):
        y, hx = module(x, hx, reset=mask)
        yield y, hx
        hx = tuple(s.detach() for s in hx) if isinstance(hx, tuple) else hx.detach()
