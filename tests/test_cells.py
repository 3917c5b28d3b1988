"""The registry: Python's records against the library's; C++ units against finite differences."""

import numpy as np
import pytest
import torch
from sequence_case import CLIPPED, EVERY, RANDOM

from fusedrnn import _native
from fusedrnn.cells import CELLS, PerUnit

# dh_clip is the kernels', not a unit's.
NAMES = EVERY + RANDOM + tuple(name for name in CLIPPED if "dh_clip" not in name)
units = pytest.importorskip(
    "fusedrnn.fusedrnn_units",
    reason="the unit bindings are not built: FUSEDRNN_TESTING=1 pip install -e .",
)
cells = pytest.mark.parametrize("cell", [CELLS[n] for n in NAMES], ids=NAMES)


@pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
def test_records_agree_with_the_library():
    table = {}
    for line in torch.ops.fusedrnn.cells_table().splitlines():
        name, gates, states, saved, grads, second, h_grad = line.split()
        table[name] = (*map(int, (gates, states, saved, grads, second)), h_grad)
    for c in CELLS.values():
        h_grad = ",".join(map(str, c.h_grad))
        sizes = (len(c.gates), len(c.states), len(c.saved), c.grads, c.second)
        assert table[c.kernel] == (*sizes, h_grad)
    assert table.keys() == {c.kernel for c in CELLS.values()}


def random(cell, seed=0):
    g = np.random.default_rng(seed)
    x, s, w = (g.normal(size=len(of)) for of in (cell.gates, cell.states, cell.gates))
    if "n" in cell.states:  # a normaliser is a sum of positive numbers, at least 1
        n = cell.states.index("n")
        s[n] = 1 + abs(s[n])
    return x, s, w


OWN = (0.7, -0.4, 0.9, 1.25, 0.3, 0.6)  # weights, drop, keep_h, keep_c


def forward(cell, x, s, w):
    return units.forward(cell.name, x, s, w, OWN)


@cells
@pytest.mark.parametrize("seed", range(4))
def test_a_unit_is_the_reference(cell, seed):
    x, s, w = random(cell, seed)
    tensor = lambda v: torch.tensor([[v]], dtype=torch.float64)  # noqa: E731
    recur = lambda v, first=0, last=None: [w[g] * v for g in range(len(w))[first:last]]  # noqa: E731
    own = PerUnit(OWN[: len(cell.weights)], OWN[3] if cell.dropout else None)
    truth, kept = cell.reference(tuple(map(tensor, x)), tuple(map(tensor, s)), recur, own)
    shares = [OWN[4] if cell.zoneout_h else 1] + [OWN[5] if cell.zoneout_c else 1] * (len(s) - 1)
    truth = [p * a + (1 - p) * b for p, a, b in zip(shares, truth, s, strict=True)]
    out, saved = forward(cell, x, s, w)
    np.testing.assert_allclose(out, [t.item() for t in truth], rtol=1e-14)
    assert len(saved) == len(kept) == len(cell.saved)
    np.testing.assert_allclose(saved, [t.item() for t in kept], rtol=1e-14)


@cells
@pytest.mark.parametrize("seed", range(4))
def test_a_unit_backward_is_its_derivative(cell, seed):
    x, s, w = random(cell, seed)
    out, saved = forward(cell, x, s, w)
    dout = np.random.default_rng(seed + 100).normal(size=len(out))
    dx, ds, dw = units.backward(cell.name, saved, s, out, dout, w, OWN)
    step = 1e-6
    for values, grads in ((x, dx), (s, ds), (w, dw)):
        for i in range(len(values)):
            sides = []
            for sign in (1, -1):
                moved = values.copy()
                moved[i] += sign * step
                args = [moved if v is values else v for v in (x, s, w)]
                sides.append(np.dot(dout, forward(cell, *args)[0]))
            assert grads[i] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=2e-9, rel=2e-7)


def ulps(value, truth):
    """The largest error in units of the last place of the truth, as a float32."""
    return float((np.abs(value - truth) / np.spacing(np.abs(truth).astype(np.float32))).max())


def floats(low, high, stride):
    """Every stride-th float32 between two of one sign."""
    first, last = np.array([low, high], dtype=np.float32).view(np.uint32)
    return np.arange(first, last, stride, dtype=np.uint32).view(np.float32)


def test_activations_errors_in_ulp():
    """Over every 97th float32 of all; every single one where it matters: test_isa.py."""
    positive = floats(1e-38, 88.0, 97)
    x = np.concatenate([positive, -positive])
    wide = x.astype(np.float64)
    assert ulps(units.tanh(x), np.tanh(wide)) <= 3.0
    inside = np.abs(x) <= 87.0
    assert ulps(units.sigmoid(x)[inside], (1 / (1 + np.exp(-wide)))[inside]) <= 3.0
    log_sigmoid = np.minimum(wide, 0) - np.log1p(np.exp(-np.abs(wide)))
    assert ulps(units.log_sigmoid(x)[inside], log_sigmoid[inside]) <= 4.0


def test_activations_at_the_ends():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], dtype=np.float32)
    tanh, sigmoid = units.tanh(x), units.sigmoid(x)
    np.testing.assert_array_equal(tanh[[0, 2, 3, 5, 6]], [0, 1, -1, 1, -1])
    assert np.signbit(tanh[1]) and np.isnan(tanh[4]) and np.isnan(sigmoid[4])
    np.testing.assert_array_equal(sigmoid[[0, 1, 2, 5]], [0.5, 0.5, 1, 1])
    assert 0 <= sigmoid[3] < 1e-37 and 0 <= sigmoid[6] < 1e-37
