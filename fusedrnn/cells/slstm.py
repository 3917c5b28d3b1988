"""sLSTM (Beck et al. 2024): an exponential input gate, a normaliser n and a stabiliser m.

What m and n = 0 mean, and how m is differentiated: csrc/cells/slstm.h.
"""

from torch import Tensor, exp, relu, sigmoid, tanh
from torch.nn.functional import logsigmoid as log_sigmoid

from ..triton.lazy import jit
from ._base import Cell, PerUnit, TritonCell


def reference(
    x: tuple[Tensor, ...], states: tuple[Tensor, ...], recur: object, own: PerUnit
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One step: m = max(log f + m', log i),  c = F c' + I z,  n = F n' + I,  h = o * c / n.

    I = i / e^m,  F = f e^m' / e^m;  where n' = 0 nothing was seen yet, and m = log i.
    """
    h, c, n, m = states
    u = recur(h)
    log_i, a = x[0] + u[0], x[1] + u[1]
    z, o = tanh(x[2] + u[2]), sigmoid(x[3] + u[3])
    lead = log_sigmoid(a) + m - log_i
    raised = (n > 0) * relu(lead)
    i, f = exp(-raised), exp(-relu(raised - lead))
    c, n = f * c + i * own.dropped(z), f * n + i
    slope = sigmoid(-a) * (1 - 2 * (raised > 0).to(a))
    return (o * c / n, c, n, log_i + raised), (i, f, z, o, slope)


@jit
def _forward(x, u, s, own):
    log_i, a = x[0] + u[0], x[1] + u[1]
    z, o = tanh(x[2] + u[2]), sigmoid(x[3] + u[3])
    lead = log_sigmoid(a) + s[3] - log_i
    raised = (s[2] > 0) * relu(lead)
    i, f = exp(-raised), exp(-relu(raised - lead))
    c, n = f * s[1] + i * (z if own[1] is None else own[1] * z), f * s[2] + i
    slope = sigmoid(-a) * (1 - 2 * (raised > 0))
    return (o * c / n, c, n, log_i + raised), (i, f, z, o, slope)


@jit
def _backward(saved, s, out, dout, own):
    i, f, z, o, slope = saved
    reached = z if own[1] is None else own[1] * z
    inverse = 1 / (out[2] + (out[2] <= 0))  # n is 0 only where a tile has no unit
    y = out[1] * inverse
    dy = dout[0] * o * inverse
    dc, dn = dout[1] + dy, dout[2] - dy * y
    df, di = (dc * s[1] + dn * s[2]) * f, (dc * reached + dn) * i  # of the exponents
    by_f = 1.0 * (1 / slope < 0)  # m is log f + m': the sign says it, that of 0 too
    dm = dout[3] - df - di
    da = df + by_f * dm
    d_i, d_f = di + (1 - by_f) * dm, da * slope * (1 - 2 * by_f)
    dz = dc * i * (1 - z * z)
    if own[1] is not None:
        dz = own[1] * dz
    d = (d_i, d_f, dz, dout[0] * y * o * (1 - o))
    return d, (0.0, dc * f, dn * f, da)


def cell(name: str) -> Cell:
    """The cell; it has no options."""
    return Cell(
        name=name,
        gates=("i", "f", "z", "o"),
        states=("h", "c", "n", "m"),
        saved=("i", "f", "z", "o", "slope"),
        h_grad=(0, 1, 2, 3),
        reference=reference,
        triton=TritonCell(_forward, _backward),
    )
