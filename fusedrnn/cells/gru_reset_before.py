"""GRU with the reset gate before the product, as first published (Cho et al. 2014, v1).

Its candidate's nonlinearity is tanh, or relu.
"""

from collections.abc import Callable

from torch import Tensor, relu, sigmoid, tanh

from ..triton.lazy import Twin, jit
from ._base import Cell, TritonCell


def _cell(name: str, g: Callable[[Tensor], Tensor], forward: Twin, backward: Twin) -> Cell:
    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step: n = g(x_n + U_n p + b'_n),  p = r * h',  h = (1 - z) * n + z * h'."""
        (h,) = states
        u_r, u_z = recur(h, 0, 2)
        r, z = sigmoid(x[0] + u_r), sigmoid(x[1] + u_z)
        p = r * h
        (u_n,) = recur(p, 2, 3)
        n = g(x[2] + u_n)
        return ((1 - z) * n + z * h,), (r, z, n, p)

    return Cell(
        name=name,
        gates=("r", "z", "n"),
        states=("h",),
        saved=("r", "z", "n", "p"),
        h_grad=(0, 1, 2),
        reference=reference,
        triton=TritonCell(forward, backward, _operand, _backward_operand),
        second=1,
        operand=3,
    )


@jit
def _operand(x, u, s):
    r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    return r, z, 0.0, r * s[0]


@jit
def _backward_operand(saved, s, dp, d, ds):
    r = saved[0]
    return (dp * s[0] * r * (1 - r), d[1], d[2]), (ds[0] + dp * r,)


@jit
def _tanh(x, u, s, saved):
    r, z, _, p = saved
    n = tanh(x[2] + u[2])
    return ((1 - z) * n + z * s[0],), (r, z, n, p)


@jit
def _tanh_backward(saved, s, out, dout):
    z, n = saved[1], saved[2]
    dz, dn = dout[0] * (s[0] - n) * z * (1 - z), dout[0] * (1 - z) * (1 - n * n)
    return (0.0, dz, dn), (dout[0] * z,)


@jit
def _relu(x, u, s, saved):
    r, z, _, p = saved
    n = relu(x[2] + u[2])
    return ((1 - z) * n + z * s[0],), (r, z, n, p)


@jit
def _relu_backward(saved, s, out, dout):
    z, n = saved[1], saved[2]
    dz, dn = dout[0] * (s[0] - n) * z * (1 - z), dout[0] * (1 - z) * (n > 0)
    return (0.0, dz, dn), (dout[0] * z,)


TANH = _cell("gru_reset_before", tanh, _tanh, _tanh_backward)
RELU = _cell("gru_reset_before_relu", relu, _relu, _relu_backward)
