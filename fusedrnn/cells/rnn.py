"""Elman RNN (1990), h = g(W x + b + U h' + b'): torch.nn.RNN's tanh and relu, sigmoid, identity."""

from collections.abc import Callable

from torch import Tensor, relu, sigmoid, tanh

from ..triton.lazy import Twin, jit
from ._base import Cell, TritonCell


def _cell(name: str, g: Callable[[Tensor], Tensor], forward: Twin, backward: Twin) -> Cell:
    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        h = g(x[0] + recur(states[0])[0])
        return (h,), (h,)

    return Cell(name, ("h",), ("h",), ("h",), (0,), reference, TritonCell(forward, backward))


@jit
def _tanh(x, u, s):
    h = tanh(x[0] + u[0])
    return (h,), (h,)


@jit
def _tanh_backward(saved, s, out, dout):
    h = saved[0]
    return (dout[0] * (1 - h * h),), (0.0,)


@jit
def _relu(x, u, s):
    h = relu(x[0] + u[0])
    return (h,), (h,)


@jit
def _relu_backward(saved, s, out, dout):
    h = saved[0]
    return (dout[0] * (h > 0),), (0.0,)


@jit
def _sigmoid(x, u, s):
    h = sigmoid(x[0] + u[0])
    return (h,), (h,)


@jit
def _sigmoid_backward(saved, s, out, dout):
    h = saved[0]
    return (dout[0] * (h * (1 - h)),), (0.0,)


@jit
def _identity(x, u, s):
    h = x[0] + u[0]
    return (h,), (h,)


@jit
def _identity_backward(saved, s, out, dout):
    return (dout[0],), (0.0,)


TANH = _cell("rnn_tanh", tanh, _tanh, _tanh_backward)
RELU = _cell("rnn_relu", relu, _relu, _relu_backward)
SIGMOID = _cell("rnn_sigmoid", sigmoid, _sigmoid, _sigmoid_backward)
IDENTITY = _cell("rnn_identity", lambda x: x, _identity, _identity_backward)
