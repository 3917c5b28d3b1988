"""GRU with the reset gate after the product, as torch.nn.GRU and cuDNN (Cho et al. 2014).

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
        """One step: n = g(x_n + r * q),  h = (1 - z) * n + z * h',  q = U_n h' + b'_n."""
        (h,) = states
        u = recur(h)
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        n = g(x[2] + r * u[2])
        return ((1 - z) * n + z * h,), (r, z, n, u[2])

    return Cell(
        name=name,
        gates=("r", "z", "n"),
        states=("h",),
        saved=("r", "z", "n", "q"),
        h_grad=(0, 1, 3),
        reference=reference,
        triton=TritonCell(forward, backward),
    )


@jit
def _tanh(x, u, s):
    r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    n = tanh(x[2] + r * u[2])
    return ((1 - z) * n + z * s[0],), (r, z, n, u[2])


@jit
def _tanh_backward(saved, s, out, dout):
    r, z, n, q = saved
    dn = dout[0] * (1 - z) * (1 - n * n)
    dr, dz = dn * q * r * (1 - r), dout[0] * (s[0] - n) * z * (1 - z)
    return (dr, dz, dn, dn * r), (dout[0] * z,)


@jit
def _relu(x, u, s):
    r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    n = relu(x[2] + r * u[2])
    return ((1 - z) * n + z * s[0],), (r, z, n, u[2])


@jit
def _relu_backward(saved, s, out, dout):
    r, z, n, q = saved
    dn = dout[0] * (1 - z) * (n > 0)
    dr, dz = dn * q * r * (1 - r), dout[0] * (s[0] - n) * z * (1 - z)
    return (dr, dz, dn, dn * r), (dout[0] * z,)


TANH = _cell("gru", tanh, _tanh, _tanh_backward)
RELU = _cell("gru_relu", relu, _relu, _relu_backward)
