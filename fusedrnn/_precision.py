"""Which products of float32 numbers are made on a GPU: torch's switches, read in one place.

A recurrence follows torch's switch for RNNs, as cuDNN's does: ``torch.backends.cudnn.rnn
.fp32_precision``, which ``torch.backends.cudnn.allow_tf32`` sets too. torch's default is "tf32".
Output layers follow that for matrix products, ``torch.backends.cuda.matmul.fp32_precision``, as do
the products that torch itself makes around a recurrence (of the inputs, of the weights'
gradients); there the default is ieee.

"tf32" is a permission: the CUDA kernels with W_hh on chip and Triton round the numbers that
they multiply, to 11 bits of 24; the stepwise CUDA kernels are exact all the same. With any other
word float32 is kept: by multiply-adds, or on tensor cores as three products of parts
(csrc/cuda/product_tf32.cuh). The switch is read in each call, also of a compiled graph.
"""

import torch

from . import _native


def of_recurrence(dtype: torch.dtype, device: torch.device) -> str:
    """How products with W_hh are made: "tf32" or "ieee".

    Example:
        >>> import torch
        >>> of_recurrence(torch.float64, torch.device("cuda"))
        'ieee'
    """
    return _of(dtype, device, torch.backends.cudnn.rnn)


def of_output(dtype: torch.dtype, device: torch.device) -> str:
    """How the products of an output layer are made: "tf32" or "ieee"."""
    return _of(dtype, device, torch.backends.cuda.matmul)


def _of(dtype: torch.dtype, device: torch.device, switch: object) -> str:
    if dtype != torch.float32 or device.type != "cuda" or torch.version.hip:
        return "ieee"
    return "tf32" if switch.fp32_precision == "tf32" else "ieee"


def _recurrence_in_tf32() -> bool:
    return of_recurrence(torch.float32, torch.device("cuda")) == "tf32"


# The native op asks it for float32 tensors on a GPU: no argument, so no constant of a traced graph.
_native.LIBRARY.define("recurrence_in_tf32() -> bool")
_native.LIBRARY.impl("recurrence_in_tf32", _recurrence_in_tf32, "CompositeExplicitAutograd")
