"""GRU with the reset gate before the product, as first published (Cho et al. 2014, v1)."""

from torch import Tensor, sigmoid, tanh

from ._base import Cell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object
) -> tuple[Tensor, ...]:
    """N = tanh(x_n + U_n p + b'_n),  p = r * h',  h = (1 - z) * n + z * h'."""
    (h,) = states
    u_r, u_z = recur(h, 0, 2)
    r, z = sigmoid(x[0] + u_r), sigmoid(x[1] + u_z)
    (u_n,) = recur(r * h, 2, 3)
    n = tanh(x[2] + u_n)
    return ((1 - z) * n + z * h,)


CELL = Cell(
    name="gru_reset_before",
    gates=("r", "z", "n"),
    states=("h",),
    saved=("r", "z", "n", "p"),
    h_grad=(0, 1, 2),
    reference=reference,
    second=1,
    operand=3,
)
