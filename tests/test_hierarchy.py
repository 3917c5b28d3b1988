"""Hierarchies: layout, builders, word2vec's codes, round trips, and what bad input says."""

import copy
import math
import pickle

import pytest
import torch
from trees import brown_counts, fibonacci, trees, zipf

from fusedrnn import Hierarchy


def word2vec_codes(counts):
    """Codes of words sorted by falling count, after the description of word2vec's method: two
    indices walk apart from the boundary between words and merged nodes."""
    V = len(counts)
    count = list(counts) + [10**18] * V
    parent, binary = [0] * (2 * V), [0] * (2 * V)
    pos1, pos2 = V - 1, V
    for a in range(V - 1):
        lightest = []
        for _ in range(2):
            if pos1 >= 0 and count[pos1] < count[pos2]:
                lightest.append(pos1)
                pos1 -= 1
            else:
                lightest.append(pos2)
                pos2 += 1
        first, second = lightest
        count[V + a] = count[first] + count[second]
        parent[first] = parent[second] = V + a
        binary[second] = 1
    codes = []
    for word in range(V):
        code, at = [], word
        while at != 2 * V - 2:
            code.append(binary[at])
            at = parent[at]
        codes.append(code[::-1])
    return codes


@trees
def test_nodes_own_contiguous_rows_and_leaves(tree):
    hierarchy = tree()
    tensors = hierarchy.tensors()
    arity = tensors["node_branches"].diff().tolist()
    sizes = tensors["node_rows"].diff().tolist()
    below = [set() for _ in sizes]
    for word in range(hierarchy.words):
        for node, branch in hierarchy.path(word):
            assert 0 <= branch < arity[node]
            below[node].add(int(tensors["leaf_rank"][word]))
    for ranks, size, branches in zip(below, sizes, arity, strict=True):
        assert max(ranks) - min(ranks) + 1 == len(ranks) >= 2
        assert branches == (2 if size == 1 else size)
    paths = [tuple(hierarchy.path(word)) for word in range(hierarchy.words)]
    assert len(set(paths)) == hierarchy.words
    assert hierarchy.depth == max(map(len, paths))
    assert hierarchy.max_path_rows == max(sum(sizes[n] for n, _ in path) for path in paths)
    assert hierarchy.rows == sum(sizes) and hierarchy.nodes == len(sizes)


@pytest.mark.parametrize(
    "counts",
    [
        [1, 1],
        [5, 5, 5, 5, 5],
        [3, 9, 3, 3, 1, 1, 9, 27],
        list(range(1, 60)),
        zipf(997).tolist(),
        fibonacci(45),
        [0.5, 0.25, 0.125, 0.125],
    ],
    ids=["two", "ties", "some-ties", "rising", "zipf", "fibonacci", "floats"],
)
def test_huffman_codes_are_word2vecs(counts):
    hierarchy = Hierarchy.huffman(counts)
    order = sorted(range(len(counts)), key=lambda word: -counts[word])  # stable
    codes = word2vec_codes([counts[word] for word in order])
    for word, code in zip(order, codes, strict=True):
        assert [branch for _, branch in hierarchy.path(word)] == code


def test_huffman_of_real_counts():
    counts = brown_counts()
    hierarchy = Hierarchy.huffman(counts)
    order = sorted(range(len(counts)), key=lambda word: -counts[word])
    codes = word2vec_codes([counts[word] for word in order])
    for word, code in list(zip(order, codes, strict=True))[::97]:
        assert [branch for _, branch in hierarchy.path(word)] == code
    total = sum(counts)
    entropy = -sum(c / total * math.log2(c / total) for c in counts if c)
    assert entropy <= hierarchy.expected_rows < entropy + 1
    assert hierarchy.expected_rows == pytest.approx(
        sum(counts[word] * len(code) for word, code in zip(order, codes, strict=True)) / total
    )


def test_chain_is_as_deep_as_it_can_be():
    hierarchy = Hierarchy.huffman(fibonacci(90))  # the last that int64 holds is the 92nd
    assert hierarchy.depth == 89 == hierarchy.nodes


def test_classes_share_their_mass():
    counts = zipf(5000)
    for binning, mass in [("frequency", counts.double()), ("sqrt", counts.double().sqrt())]:
        hierarchy = Hierarchy.classes(counts, 50, binning)
        of_word = torch.tensor([hierarchy.path(word)[0][1] for word in range(5000)])
        share = torch.zeros(50).double().index_add(0, of_word, mass) / mass.sum()
        assert (share > 0).all() and len(share) == 50
        single = of_word.bincount() == 1  # a heavy word may exceed its class's share on its own
        # Classes of many words: within one word of an equal share of what the heavy words left.
        assert share[~single].max() < 1 / 50 + float(mass.max() / mass.sum())
        heaviest = torch.zeros(50, dtype=torch.int64).scatter_reduce(0, of_word, counts, "amax")
        assert (heaviest.diff() <= 0).all()  # words of like frequency
    sizes = Hierarchy.classes(counts, 50, "equal").tensors()["node_rows"].diff()
    assert sizes.tolist() == [50] + 50 * [100]


@pytest.mark.parametrize("binning", ["sqrt", "frequency", "equal"])
@pytest.mark.parametrize("words", [2, 3, 10, 57])
def test_every_number_of_classes(words, binning):
    counts = zipf(words)
    for n in range(1, words + 1):
        hierarchy = Hierarchy.classes(counts, n, binning)
        if n in (1, words):
            assert hierarchy.nodes == 1 and hierarchy.rows == words
        else:
            assert int(hierarchy.tensors()["node_rows"][1]) == n


def test_ints_of_numpy_and_torch_will_do():
    import numpy

    assert Hierarchy.flat(numpy.int64(5)) == Hierarchy.flat(torch.tensor(5)) == Hierarchy.flat(5)
    assert Hierarchy.classes([3, 2, 1], numpy.int32(2)) == Hierarchy.classes([3, 2, 1], 2)


def test_lists_of_floats_are_not_rounded():
    """2^24 and its neighbour are one number in float32, and Huffman's tree is another."""
    counts = [16777217.0, 16777216.0, 3.0]
    assert Hierarchy.huffman(counts) == Hierarchy.huffman([16777217, 16777216, 3])
    assert Hierarchy.huffman(counts) == Hierarchy.huffman(torch.tensor(counts).double())
    assert Hierarchy.huffman([1e300, 1e299, 1.0]).depth == 2


def test_default_classes():
    assert int(Hierarchy.classes(zipf(10_000)).tensors()["node_rows"][1]) == 60
    hierarchy = Hierarchy.classes(zipf(10_000))
    costs = [Hierarchy.classes(zipf(10_000), n).expected_rows for n in (20, 200)]
    assert hierarchy.expected_rows < min(costs)


def test_unseen_words_count_as_the_rarest_seen():
    assert Hierarchy.huffman([0, 3, 0, 7]) == Hierarchy.huffman([3, 3, 3, 7])
    assert Hierarchy.classes([0, 0.5, 0, 7.0], 2) == Hierarchy.classes([0.5, 0.5, 0.5, 7.0], 2)


def test_from_clusters():
    hierarchy = Hierarchy.from_clusters([30, 10, 10, 5, 30, 10])
    assert hierarchy.rows == 3 + 3 + 2 and hierarchy.nodes == 3
    assert [hierarchy.path(w) for w in (3, 1, 2, 5, 0, 4)] == [
        [(0, 0)],
        [(0, 1), (1, 0)],
        [(0, 1), (1, 1)],
        [(0, 1), (1, 2)],
        [(0, 2), (2, 0)],
        [(0, 2), (2, 1)],
    ]
    assert hierarchy == Hierarchy.from_clusters(torch.tensor([2, 1, 1, 0, 2, 1]))
    assert Hierarchy.from_clusters([4, 4, 4]) == Hierarchy.flat(3)
    weighted = Hierarchy.from_clusters([0, 1, 1], counts=[8, 1, 1])
    assert weighted.expected_rows == pytest.approx(0.8 * 2 + 0.2 * 4)


def test_real_counts_cost_few_rows():
    counts = brown_counts()
    V = len(counts)
    two_level = Hierarchy.classes(counts)
    assert two_level.expected_rows < 3 * V**0.5 < Hierarchy.flat(V).expected_rows
    assert two_level.expected_rows < Hierarchy.classes(counts, binning="frequency").expected_rows


@trees
def test_round_trips(tree):
    hierarchy = tree()
    for other in (
        copy.deepcopy(hierarchy),
        pickle.loads(pickle.dumps(hierarchy)),
        Hierarchy(**hierarchy.tensors()),
    ):
        assert other == hierarchy and hash(other) == hash(hierarchy)
        assert other.max_path_rows == hierarchy.max_path_rows and other.depth == hierarchy.depth


def test_is_immutable():
    hierarchy = Hierarchy.flat(4)
    hierarchy.tensors()["leaf_rank"].zero_()
    assert hierarchy == Hierarchy.flat(4) != Hierarchy.flat(5)
    assert hierarchy != "flat"
    with pytest.raises(AttributeError):
        hierarchy.words = 5


def test_repr():
    assert repr(Hierarchy.flat(5)) == (
        "Hierarchy(flat: 5 words, 1 nodes, 5 rows, depth 1, 5.00 rows per token)"
    )
    assert repr(Hierarchy.huffman([50, 20, 20, 10])) == (
        "Hierarchy(huffman: 4 words, 3 nodes, 3 rows, depth 3, 1.80 rows per token)"
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], "at least 2 words"),
        ([3], "at least 2 words"),
        ([[1, 2], [3, 4]], "1-D"),
        ([1, -2, 3], r"counts\[1\] is -2"),
        ([1.0, 2.0, math.nan], r"counts\[2\] is nan"),
        ([math.inf, 2.0], r"counts\[0\] is inf"),
        ([0, 0, 0], "all zero"),
        (["a", "b"], "1-D sequence of numbers"),
        ([True, False], "bool"),
        (torch.tensor([1j, 2j]), "complex"),
    ],
)
def test_bad_counts(counts, message):
    for build in (Hierarchy.huffman, Hierarchy.classes):
        with pytest.raises(ValueError, match=message):
            build(counts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Hierarchy.flat(1), "n is 1; the number of words"),
        (lambda: Hierarchy.flat(True), "n is True"),
        (lambda: Hierarchy.flat(2.0), r"n is 2\.0"),
        (lambda: Hierarchy.classes([1, 2, 3], 0), r"n is 0; .* 1\.\.3"),
        (lambda: Hierarchy.classes([1, 2, 3], 4), r"n is 4; .* 1\.\.3"),
        (lambda: Hierarchy.classes([1, 2, 3], 2, "log"), "binning is 'log'; .* 'sqrt'"),
        (lambda: Hierarchy.from_clusters([0]), "at least 2 words"),
        (lambda: Hierarchy.from_clusters([0.0, 1.0]), "1-D list of ints"),
        (lambda: Hierarchy.from_clusters([0, -1]), r"clusters\[1\] is -1"),
        (lambda: Hierarchy.from_clusters([0, 1], counts=[1, 2, 3]), "counts has 3 words"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_such_word():
    with pytest.raises(IndexError, match=r"word is 5; it must be in 0\.\.4"):
        Hierarchy.flat(5).path(5)


# A binary tree of words 0..3: root {node 1 {0, 1}, node 2 {2, 3}}.
GOOD = {
    "leaf_rank": [0, 1, 2, 3],
    "node_rows": [0, 1, 2, 3],
    "node_branches": [0, 2, 4, 6],
    "branch_leaf": [0, 2, 0, 1, 2, 3],
    "branch_node": [1, 2, -1, -1, -1, -1],
}


def test_good_tensors():
    assert Hierarchy(**{k: torch.tensor(v) for k, v in GOOD.items()}).depth == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaf_rank": [0, 1, 1, 3]}, "permutation"),
        ({"leaf_rank": [0, 1, 2, 4]}, "permutation"),
        ({"leaf_rank": [0, 1, 2]}, "3 words"),
        ({"node_rows": [0, 0, 2, 3]}, "must rise"),
        ({"node_rows": [1, 2, 3, 4]}, "must rise"),
        ({"node_branches": [0, 3, 4, 6]}, "two branches"),
        ({"branch_node": [1, 1, -1, -1, -1, -1]}, "each node but the root once"),
        ({"branch_node": [1, 3, -1, -1, -1, -1]}, "each node but the root once"),
        ({"branch_node": [1, -2, -1, -1, -1, -1]}, "each node but the root once"),
        ({"branch_node": [-1, 2, -1, -1, 1, -1]}, "before those below"),
        ({"branch_node": [2, 1, -1, -1, -1, -1]}, "nest"),
        ({"branch_leaf": [0, 2, 0, 1, 3, 2]}, "nest"),
        ({"branch_leaf": [0, 2, 0, 2, 2, 3]}, "one rank"),
        ({"branch_leaf": [0, 3, 0, 1, 3, 4]}, "one rank"),
        (
            {"branch_leaf": [0, 2, 2, 3, 0, 1], "branch_node": [2, 1, -1, -1, -1, -1]},
            "preorder",
        ),
    ],
)
def test_bad_tensors(change, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy(**{k: torch.tensor(v) for k, v in {**GOOD, **change}.items()})
