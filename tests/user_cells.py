"""Cells as users write them: for test_user_cell.py, user_cell_numbers.py and triton_compile.py."""

import re
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional

import fusedrnn

PAGE = Path(__file__).parents[1] / "docs/cells.md"


def example():
    """The example of the page, run without what it prints: its names."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (text,) = (block for block in blocks if "fusedrnn.Cell(" in block)
    names = {"print": lambda *_: None}
    exec(compile(text, str(PAGE), "exec"), names)
    return names


def lstm(x, u, s):
    """torch.nn.LSTM's, in its order of gates."""
    i, f, g, o = (a + b for a, b in zip(x, u, strict=True))
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def residual(x, u, s):
    """Two states and a way past the maths; u.b is not used, so that its gradient is zero."""
    c = s.c + 0.1 * torch.tanh(x.a + u.a)
    return s.h + c * torch.sigmoid(x.b - 0.3), c


def everything(x, u, s):
    """Every operation. Where a tile is padded, 0 / 0: NaN."""
    sign = x.a / abs(x.a)
    low = torch.minimum(torch.clamp(x.a + u.a, -0.5, 0.7), x.b)
    high = torch.maximum(u.b, 0.1 + low) + torch.where(x.b > u.a, s.p**2, 0.3)
    p = functional.softplus(high) + functional.silu(low + 2) ** -2 / (1 + torch.exp(x.a * x.a) ** 3)
    q = torch.log(1.5 + torch.square(u.b)) - torch.sqrt(1 + p.square()).reciprocal()
    q = q.relu() * functional.logsigmoid(u.a) + 0.1 * sign * (-q)
    return torch.tanh(p - q + 0.2 * s.h), torch.tanh(p), q


CELLS = {
    "user_lstm": (lstm, ("i", "f", "g", "o"), ("h", "c")),
    "user_residual": (residual, ("a", "b"), ("h", "c")),
    "user_everything": (everything, ("a", "b"), ("h", "p", "q")),
}


@contextmanager
def registered():
    """The cells by name, with the page's, for a while."""
    cells = {"mgu": example()["mgu"]}
    try:
        for name, (function, gates, states) in CELLS.items():
            cells[name] = fusedrnn.Cell(name, function, gates, states)
        yield cells
    finally:
        for name in cells:
            fusedrnn.Cell.unregister(name)
