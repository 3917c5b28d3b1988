"""Problems for the cluster kernels on the host, and the same problems in plain torch.

csrc/testing/cluster_host.h runs a cluster's threads as fibers. Resets, both directions in one call
and what the kernels leave for the weights' gradients are all judged here, in data with two
directions side by side in y.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from exactness import assert_exact
from torch import Tensor
from torch.nn.functional import linear

from fusedrnn.cells import CELLS, Cell

host = pytest.importorskip(
    "fusedrnn.fusedrnn_cluster_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)
GUARD = 64  # elements around each tensor: NaN, and still there after the call
SERVED = tuple(name for name, cell in CELLS.items() if not cell.second)
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A layer, and the cluster that runs it: ``shape`` as in csrc/cluster_tile.h, ``rows`` each."""

    T: int
    B: int
    H: int
    size: int
    rows: int = 8
    shape: int = 0
    directions: tuple[bool, ...] = (False,)  # whether it is the reverse one
    lengths: tuple[int, ...] | None = None
    resets: str = ""  # "": none; "zero"; "given": to states that are given
    bias: bool = True
    order: int = 7
    fault: str = ""
    only_forward: bool = False  # backward has another shape at such sizes

    def __str__(self) -> str:
        both = "-both" * (len(self.directions) == 2) + "-reverse" * (self.directions == (True,))
        extras = "-lengths" * (self.lengths is not None) + f"-{self.resets}" * bool(self.resets)
        shape = f"shape{self.shape}-C{self.size}x{self.rows}"
        return f"T{self.T}-B{self.B}-H{self.H}-{shape}{both}{extras}"


def inputs(cell: Cell, case: Case, dtype: torch.dtype) -> list[Tensors]:
    """Random tensors, one set for each direction, named as in csrc/sequence.h."""
    random = torch.Generator().manual_seed(case.T * 1009 + case.B * 101 + case.H)
    G, S, H, T, B = len(cell.gates), len(cell.states), case.H, case.T, case.B

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=random, dtype=torch.float64) * scale).to(dtype)

    # The slope of relu jumps at 0, where the last bit would decide: keep off it.
    relu, all_ = cell.name == "rnn_relu", []
    reset = torch.rand(T, B, generator=random) < 0.3
    for _ in case.directions:
        gx = normal(T, B, G * H)
        all_.append(
            {
                "gx": gx + 4 * gx.sign() if relu else gx,
                "weight_hh": normal(G * H, H, scale=(0.25 if relu else 1) * H**-0.5),
                "h0": normal(B, H, scale=0.5),
                "c0": normal(S - 1, B, H, scale=0.5),
                "dy": normal(T, B, H),
                "dhn": normal(B, H),
                "dcn": normal(S - 1, B, H),
            }
            | ({"bias_hh": normal(G * H, scale=H**-0.5)} if case.bias else {})
            | ({"reset": reset} if case.resets else {})
        )
        if case.resets == "given":
            all_[-1] |= {"reset_h": normal(B, H), "reset_c": normal(S - 1, B, H)}
        if case.lengths is not None:
            all_[-1]["lengths"] = torch.tensor(case.lengths)
    return all_


def plain(cell: Cell, given: Tensors, reverse: bool, dtype: torch.dtype) -> Tensors:
    """One direction, step by step, as torch operators in ``dtype``; gradients by autograd."""
    G, (T, B) = len(cell.gates), given["gx"].shape[:2]
    v = {k: t.to(dtype) if t.is_floating_point() else t for k, t in given.items()}
    H = v["h0"].shape[1]
    leaves = {k: v[k].requires_grad_() for k in ("gx", "h0", "c0", "reset_h", "reset_c") if k in v}
    leaves["gu"] = torch.zeros_like(v["gx"]).requires_grad_()  # of the h-preactivations
    bounds = v.get("lengths", torch.full((B,), T))
    reset = v.get("reset", torch.zeros(T, B, dtype=torch.bool))
    fresh = (v.get("reset_h", torch.zeros_like(v["h0"])),
             *v.get("reset_c", torch.zeros_like(v["c0"])))  # fmt: skip
    states, y = (v["h0"], *v["c0"]), [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        edge = t + 1 if reverse else t
        cut = (reset[edge] & (edge < bounds)).unsqueeze(1) if edge < T else torch.zeros(B, 1) > 0
        states = tuple(torch.where(cut, f, s) for f, s in zip(fresh, states, strict=True))

        def recur(h: Tensor, first: int = 0, last: int = G, t: int = t) -> tuple[Tensor, ...]:
            assert (first, last) == (0, G)
            u = linear(h, v["weight_hh"], v.get("bias_hh")) + leaves["gu"][t]
            return u.chunk(G, -1)

        new = cell.reference(v["gx"][t].chunk(G, -1), states, recur)
        alive = (t < bounds).unsqueeze(1)
        y[t] = torch.where(alive, new[0], 0)
        states = tuple(torch.where(alive, n, s) for n, s in zip(new, states, strict=True))
    out = {"y": torch.stack(y), "hn": states[0]}
    if len(states) > 1:
        out["cn"] = torch.stack(states[1:])
    pairs = [(out[k], v[f"d{k}"]) for k in out]
    present = {k: t for k, t in leaves.items() if t.numel()}
    grads = torch.autograd.grad(*map(list, (dict(pairs).keys(), present.values())),
                                [d for _, d in pairs])  # fmt: skip
    return {k: t.detach() for k, t in out.items()} | {
        f"d{k}": g.view(T, B, G, H) if k in ("gx", "gu") else g
        for k, g in zip(present, grads, strict=True)
    }


class Guarded:
    """New tensors within NaN, which must still be there at the end."""

    def __init__(self) -> None:
        self.buffers: list[tuple[str, Tensor]] = []

    def new(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of NaN."""
        count = torch.Size(size).numel()
        buffer = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
        self.buffers.append((name, buffer))
        return buffer[GUARD : GUARD + count].view(size)

    def check(self) -> None:
        """Nobody wrote beyond a tensor's ends."""
        for name, buffer in self.buffers:
            outside = torch.cat([buffer[:GUARD], buffer[len(buffer) - GUARD :]])
            assert outside.isnan().all(), f"{name}: written out of bounds"


def call(direction: str, cell: Cell, case: Case, dtype: torch.dtype, tensors: list[Tensors]):
    """Run a kernel; raise what it says is wrong."""
    wide = len(case.directions) * case.H
    problem = host.Problem(
        T=case.T, B=case.B, H=case.H, dtype=NAMES[dtype], y_row=wide, shape=case.shape,
        size=case.size, rows=case.rows, order=case.order, fault=case.fault,
    )  # fmt: skip
    flags = [{"reverse": 1} if reverse else {} for reverse in case.directions]
    pointers = [
        {k: t.data_ptr() for k, t in one.items() if t.numel()} | flag
        for one, flag in zip(tensors, flags, strict=True)
    ]
    wrong = getattr(host, direction)(cell.name, problem, pointers)
    if wrong is not None:
        raise RuntimeError(wrong)


def run(cell: Cell, case: Case, given: list[Tensors], dtype: torch.dtype) -> list[Tensors]:
    """Forward and backward by the kernels: results named as ``plain`` names them."""
    T, B, H, N = case.T, case.B, case.H, len(case.directions)
    S, K, D = len(cell.states), len(cell.saved), cell.grads
    made = Guarded()
    both, both_dy = made.new("y", (T, B, N, H), dtype), made.new("dy", (T, B, N, H), dtype)
    forward, backward = [], []
    for i, one in enumerate(given):
        both_dy[:, :, i] = one["dy"]
        kept = {"y": both[:, :, i], "saved": made.new("saved", (T, B, K, H), dtype)}
        kept["cells"] = made.new("cells", (T, S - 1, B, H), torch.float32)
        ends = {"hn": made.new("hn", (B, H), dtype), "cn": made.new("cn", (S - 1, B, H), dtype)}
        forward.append(one | kept | ends)
        grads = {"grads": ((T, B, D, H)), "dh0": (B, H), "dc0": (S - 1, B, H)}
        if "reset_h" in one:
            grads |= {"dreset_h": (B, H), "dreset_c": (S - 1, B, H)}
        news = {k: made.new(k, size, dtype) for k, size in grads.items()}
        backward.append(one | kept | {"dy": both_dy[:, :, i]} | news)
    call("forward", cell, case, dtype, forward)
    call("backward", cell, replace(case, shape=case.shape), dtype, backward)
    made.check()
    results = []
    for ahead, back in zip(forward, backward, strict=True):
        got = {k: ahead[k] for k in ("y", "hn", "cn") if ahead[k].numel()}
        got["dgx"] = back["grads"][:, :, : len(cell.gates)]
        got["dgu"] = back["grads"][:, :, list(cell.h_grad)]
        names = ("dh0", "dc0", "dreset_h", "dreset_c")
        results.append(got | {k: back[k] for k in names if k in back and back[k].numel()})
    return results


def judge(cell: Cell, case: Case, dtype: torch.dtype) -> list[Tensors]:
    """Run a case and hold it to the error rule; return what came out."""
    given = inputs(cell, case, dtype)
    results = run(cell, case, given, dtype)
    for got, one, reverse in zip(results, given, case.directions, strict=True):
        truth = plain(cell, one, reverse, torch.float64)
        theirs = plain(cell, one, reverse, dtype)
        assert got.keys() == truth.keys()
        for name in got:
            assert_exact(got[name], theirs[name], truth[name], dtype, f"{cell.name} {case} {name}")
    return results
