"""GRU with the reset gate after the product, as torch.nn.GRU and cuDNN (Cho et al. 2014)."""

from torch import Tensor, sigmoid

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell
from ._nonlinear import NONLINEARITIES


def cell(name: str, candidate: str = "tanh", layer_norm: bool = False) -> Cell:
    """The cell with ``candidate`` as the nonlinearity of n."""
    act = NONLINEARITIES[candidate]
    g, slope, dropped = candidate, f"{candidate}_slope", "dropped"

    def reference(
        x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step: n = g(x_n + r * q),  h = (1 - z) * n + z * h',  q = U_n h' + b'_n."""
        (h,) = states
        u = recur(h)
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        n = act(x[2] + r * u[2])
        return ((1 - z) * own.dropped(n) + z * h,), (r, z, n, u[2])

    @jit
    def forward(x, u, s, own):
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        n = g(x[2] + r * u[2])
        return ((1 - z) * dropped(n, own) + z * s[0],), (r, z, n, u[2])

    @jit
    def backward(saved, s, out, dout, own):
        r, z, n, q = saved
        dn = dropped(dout[0] * (1 - z) * slope(n), own)
        dr, dz = dn * q * r * (1 - r), dout[0] * (s[0] - dropped(n, own)) * z * (1 - z)
        return (dr, dz, dn, dn * r), (dout[0] * z,)

    return Cell(
        name=name,
        gates=("r", "z", "n"),
        states=("h",),
        saved=("r", "z", "n", "q"),
        h_grad=(0, 1, 3),
        reference=reference,
        triton=TritonCell(forward, backward),
        norms=3 if layer_norm else 0,
    )
