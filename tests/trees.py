"""Hierarchies of every shape, real word counts, and the softmax in torch's own operators."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear, log_softmax, logsigmoid

from fusedrnn import Hierarchy

BROWN = Path(__file__).parents[2] / "shared/data/wikitext2-brown-clusters.tsv"


def zipf(n):
    """Counts of a natural vocabulary, shuffled: word ids need not be sorted by count."""
    counts = (1000 * n / torch.arange(1, n + 1)).long()
    return counts[torch.randperm(n, generator=torch.Generator().manual_seed(n))]


def fibonacci(n):
    """Counts whose Huffman tree is a chain: the deepest there is."""
    counts = [1, 1]
    while len(counts) < n:
        counts.append(counts[-1] + counts[-2])
    return counts


def mixed():
    """Nodes of one and of several rows, leaves and nodes as siblings, three levels."""
    # root: softmax {leaf 0, node 1 over 1..4, leaf 5}; node 1: sigmoid {node 2 over 1..3, leaf 4};
    # node 2: softmax {1, 2, 3}
    return Hierarchy(
        leaf_rank=torch.tensor([1, 3, 4, 2, 0, 5]),
        node_rows=torch.tensor([0, 3, 4, 7]),
        node_branches=torch.tensor([0, 3, 5, 8]),
        branch_leaf=torch.tensor([0, 1, 5, 1, 4, 1, 2, 3]),
        branch_node=torch.tensor([-1, 1, -1, 2, -1, -1, -1, -1]),
    )


TREES = {
    "flat": lambda: Hierarchy.flat(23),
    "flat-2": lambda: Hierarchy.flat(2),
    "flat-1100": lambda: Hierarchy.flat(1100),  # more rows than one task takes
    "sqrt": lambda: Hierarchy.classes(zipf(101)),
    "frequency": lambda: Hierarchy.classes(zipf(101), 9, "frequency"),
    "equal": lambda: Hierarchy.classes(zipf(101), 13, "equal"),
    "huffman": lambda: Hierarchy.huffman(zipf(101)),
    "huffman-2": lambda: Hierarchy.huffman([3, 5]),
    "chain": lambda: Hierarchy.huffman(fibonacci(40)),
    "singletons": lambda: Hierarchy.from_clusters([7, 2, 9, 2, 2, 0, 9]),
    "one-huge": lambda: Hierarchy.from_clusters([1] * 700 + [0, 2]),
    "mixed": mixed,
}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def brown_counts():
    """Counts of WikiText-2's words; skips where the file is not there."""
    if not BROWN.exists():
        pytest.skip(f"no {BROWN.name} beside the repository, in ../shared/data")
    lines = BROWN.read_text(encoding="utf-8").splitlines()
    return [int(line.split("\t")[2]) for line in lines]


def by_paths(hierarchy, x, weight, bias, target):
    """log p of each target, node after node in torch's own operators, all in x's dtype."""
    rows = hierarchy.tensors()["node_rows"].tolist()
    tokens = {}  # of each node: which of them pass through it, and the branches that they take
    for token, word in enumerate(target.tolist()):
        for node, branch in hierarchy.path(word):
            tokens.setdefault(node, []).append((token, branch))
    output = torch.zeros_like(x[:, 0])
    for node, pairs in sorted(tokens.items()):
        index, branch = torch.tensor(pairs, device=x.device).unbind(1)
        own = slice(rows[node], rows[node + 1])
        z = linear(x[index], weight[own], None if bias is None else bias[own])
        log_p = logsigmoid(torch.cat([z, -z], 1)) if z.shape[1] == 1 else log_softmax(z, 1)
        output = output.index_add(0, index, log_p.gather(1, branch[:, None])[:, 0])
    return output
