"""GRU with the reset gate before the product, as first published (Cho et al. 2014, v1)."""

from torch import Tensor, sigmoid

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell
from ._nonlinear import NONLINEARITIES


def cell(name: str, candidate: str = "tanh") -> Cell:
    """The cell with ``candidate`` as the nonlinearity of n."""
    act = NONLINEARITIES[candidate]
    g, slope, dropped = candidate, f"{candidate}_slope", "dropped"

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step: n = g(x_n + U_n p + b'_n),  p = r * h',  h = (1 - z) * n + z * h'."""
        (h,) = states
        u_r, u_z = recur(h, 0, 2)
        r, z = sigmoid(x[0] + u_r), sigmoid(x[1] + u_z)
        p = r * h
        (u_n,) = recur(p, 2, 3)
        n = act(x[2] + u_n)
        return ((1 - z) * own.dropped(n) + z * h,), (r, z, n, p)

    @jit
    def operand(x, u, s):
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        return r, z, 0.0, r * s[0]

    @jit
    def forward(x, u, s, saved, own):
        r, z, _, p = saved
        n = g(x[2] + u[2])
        return ((1 - z) * dropped(n, own) + z * s[0],), (r, z, n, p)

    @jit
    def backward(saved, s, out, dout, own):
        z, n = saved[1], saved[2]
        dz = dout[0] * (s[0] - dropped(n, own)) * z * (1 - z)
        dn = dropped(dout[0] * (1 - z) * slope(n), own)
        return (0.0, dz, dn), (dout[0] * z,)

    @jit
    def backward_operand(saved, s, dp, d, ds):
        r = saved[0]
        return (dp * s[0] * r * (1 - r), d[1], d[2]), (ds[0] + dp * r,)

    return Cell(
        name=name,
        gates=("r", "z", "n"),
        states=("h",),
        saved=("r", "z", "n", "p"),
        h_grad=(0, 1, 2),
        reference=reference,
        triton=TritonCell(forward, backward, operand, backward_operand),
        second=1,
        operand=3,
    )
