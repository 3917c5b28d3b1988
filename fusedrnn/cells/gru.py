"""GRU with the reset gate after the product, as torch.nn.GRU and cuDNN (Cho et al. 2014)."""

from torch import Tensor, sigmoid, tanh

from ._base import Cell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
) -> tuple[Tensor, ...]:
    """N = tanh(x_n + r * q),  h = (1 - z) * n + z * h',  q = U_n h' + b'_n."""
    (h,) = states
    u = recur(h)
    r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    n = tanh(x[2] + r * u[2])
    return ((1 - z) * n + z * h,)


CELL = Cell(
    name="gru",
    gates=("r", "z", "n"),
    states=("h",),
    saved=("r", "z", "n", "q"),
    h_grad=(0, 1, 3),
    reference=reference,
)
