"""Which words go together: bins of like mass, and k-means on vectors of the words."""

from collections.abc import Callable

import torch
from torch import Tensor

# What every class gets an equal share of, as a function of the counts.
MASS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "frequency": lambda counts: counts,
    "equal": torch.ones_like,
}


def equal_mass(mass: Tensor, n: int) -> Tensor:
    """Cut items of falling mass into n bins of like mass, none empty: the bin of each item.

    A bin ends with the item that carries the running sum over its share, and each item moves on by
    one bin at most: bin[i+1] = min(bin[i] + 1, full[i]), which unrolls to a running minimum.
    """
    at = torch.arange(len(mass))
    total = mass.cumsum(0)
    full = (total[:-1] / total[-1] * n + 1e-9).floor().clamp(max=n - 1).long()
    full = torch.cat([torch.zeros(1, dtype=torch.int64), full])
    bins = at + (full - at).cummin(0).values
    return torch.maximum(bins, at - (len(mass) - n))  # the last ones, where rounding fell short


def kmeans(vectors: Tensor, n: int, rounds: int, seed: int) -> Tensor:
    """Lloyd's algorithm: the cluster of each row of ``vectors`` ``[V, H]``, none empty.

    It begins at ``n`` rows drawn without replacement. A cluster that has lost all its rows takes
    the one that is farthest from its own centre.
    """
    random = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randperm(len(vectors), generator=random)[:n]]
    before = torch.empty(0, dtype=torch.int64)
    for _ in range(rounds):
        cluster, distance = _nearest(vectors, centres)
        _fill_empty(cluster, distance, n)
        if torch.equal(cluster, before):
            break
        sums = torch.zeros_like(centres).index_add_(0, cluster, vectors)
        centres, before = sums / cluster.bincount(minlength=n)[:, None], cluster
    return cluster


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row, and its squared distance less the row's own square."""
    square = centres.square().sum(1)
    parts = [(square - 2 * rows @ centres.T).min(1) for rows in vectors.split(1 << 13)]
    distance = torch.cat([part.values for part in parts]) + vectors.square().sum(1)
    return torch.cat([part.indices for part in parts]), distance


def _fill_empty(cluster: Tensor, distance: Tensor, n: int) -> None:
    size = cluster.bincount(minlength=n)
    empty = (size == 0).nonzero().squeeze(1).tolist()
    if not empty:
        return
    for row in distance.argsort(descending=True, stable=True).tolist():
        if size[cluster[row]] > 1:
            size[cluster[row]] -= 1
            cluster[row] = empty.pop()
            size[cluster[row]] = 1
            if not empty:
                return
