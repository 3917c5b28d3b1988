"""What a training step over a hierarchy should take: the model behind ``Hierarchy.best``.

    seconds = 6 N H rows / products + bytes / bandwidth + nodes met * node

N tokens, H features; rows: logits per token; 6: a multiply-add is two operations, and backward
makes two products for forward's one. Bytes: the weight rows met, read twice, and the gradient of
the weight, written; the dense one has all rows. Nodes met: each is planned and computed by itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from .hierarchy import Hierarchy


class Machine(NamedTuple):
    """Operations a second, bytes a second, seconds for each node met, seconds for a call."""

    products: float
    bandwidth: float
    node: float
    call: float


MACHINES = {
    # Two cores with AVX-512 (docs/notebook-cpu.md, Output layers: the cost model).
    "cpu": Machine(1.0e11, 1.2e10, 0.8e-6, 1.5e-4),
    # An H200 by its data sheet, at half of its float32 and bandwidth; not measured.
    "cuda": Machine(3.3e13, 2.4e12, 0.0, 5e-5),
}
KINDS = ("flat", "two-level", "huffman")
_SHARES = (0.25, 0.4, 0.6, 0.8, 1.2, 2.0)  # of sqrt(V): numbers of classes that are tried


class Estimate(NamedTuple):
    """One candidate and what a step is expected to take."""

    hierarchy: "Hierarchy"
    seconds: float


class Choice(NamedTuple):
    """What ``Hierarchy.best`` found."""

    hierarchy: "Hierarchy"
    estimates: list[Estimate]

    def __str__(self) -> str:
        lines = [f"{1e3 * e.seconds:10.3f} ms a step: {e.hierarchy}" for e in self.estimates]
        return "\n".join(lines)


def seconds(
    hierarchy: "Hierarchy", chances: Tensor, hidden: int, tokens: int, device: str, sparse: bool
) -> float:
    """Expected time of a step.

    Args:
        hierarchy: of any kind.
        chances: how probable each word is as a target, ``[V]``, float64.
        hidden: H.
        tokens: N.
        device: a key of ``MACHINES``.
        sparse: whether the gradient has only the rows met.
    """
    machine = MACHINES[device]
    nodes, rows = _met(hierarchy, chances, tokens)
    written = rows if sparse else hierarchy.rows
    products = 6 * tokens * hidden * hierarchy.expected_rows / machine.products
    traffic = 4 * hidden * (2 * rows + written) / machine.bandwidth
    return machine.call + products + traffic + nodes * machine.node


def _met(hierarchy: "Hierarchy", chances: Tensor, tokens: int) -> tuple[float, float]:
    """Nodes and rows that some of the tokens are expected to meet: 1 - (1 - p)^N of each node."""
    mass = chances.new_zeros(len(chances) + 1)
    tree = hierarchy.tensors()
    mass[1:].scatter_(0, tree["leaf_rank"], chances)
    total = mass.cumsum(0)
    low, high = hierarchy.intervals()
    p = (total[high] - total[low]).clamp(0, 1)
    met = -(tokens * (-p).log1p()).expm1()  # p = 1: 1 - exp(-inf)
    return float(met.sum()), float(met @ tree["node_rows"].diff().double())


def choose(
    make: type["Hierarchy"],
    counts: Tensor,
    hidden: int,
    tokens: int,
    device: str,
    kinds: Sequence[str],
    sparse: bool,
) -> Choice:
    """Build the candidates and order them by expected time; of equals the simpler is first."""
    if device not in MACHINES:
        raise ValueError(f"device is {device!r}; the cost model knows {', '.join(MACHINES)}")
    V = len(counts)
    candidates = [make.flat(V)] if "flat" in kinds else []
    if "two-level" in kinds:
        numbers = sorted({min(V, max(1, round(share * V**0.5))) for share in _SHARES})
        candidates += [make.classes(counts, n) for n in numbers]
    if "huffman" in kinds:
        candidates.append(make.huffman(counts))
    chances = counts.double() / counts.double().sum()
    estimates = [
        Estimate(tree, seconds(tree, chances, hidden, tokens, device, sparse))
        for tree in candidates
    ]
    estimates.sort(key=lambda estimate: estimate.seconds)
    return Choice(estimates[0].hierarchy, estimates)
