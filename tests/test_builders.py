"""Builders of hierarchies from parents, paths, files and vectors; adaptive, balanced, the best."""

import math

import pytest
import torch
from trees import BROWN, brown_counts, fibonacci, zipf

from fusedrnn import Hierarchy
from fusedrnn._trees import Tree


def codes(hierarchy):
    return [[branch for _, branch in hierarchy.path(word)] for word in range(hierarchy.words)]


def as_parents(hierarchy):
    """Its parents, with the nodes numbered at random."""
    V, M = hierarchy.words, hierarchy.nodes
    number = V + torch.randperm(M)
    parents = [0] * (V + M)
    for word in range(V):
        path = [int(number[node]) for node, _ in hierarchy.path(word)]
        for above, below in zip([-1, *path], [*path, word], strict=True):
            parents[below] = above
    return parents


# Parents and paths


@pytest.mark.parametrize(
    "tree",
    [
        lambda: Hierarchy.huffman(zipf(97)),
        lambda: Hierarchy.huffman(fibonacci(50)),
        lambda: Hierarchy.balanced(2),
        lambda: Hierarchy.balanced(1000, 7),
        lambda: Hierarchy.classes(zipf(300), 17),
    ],
    ids=["huffman", "chain", "two", "7-ary", "classes"],
)
def test_paths_and_parents_describe_the_same_tree(tree):
    hierarchy = tree()
    again = Hierarchy.from_paths(codes(hierarchy))
    assert codes(again) == codes(hierarchy)
    # Parents do not say which child is first: the tree is the same but for the order of branches.
    same = Hierarchy.from_parents(as_parents(hierarchy))
    assert (same.nodes, same.depth) == (hierarchy.nodes, hierarchy.depth)
    for word in range(0, hierarchy.words, 17):
        for other in range(0, hierarchy.words, 31):
            met = [
                len(set(t.path(word)) & set(t.path(other))) for t in (again, same) if word != other
            ]
            assert len(set(met)) <= 1  # nodes whose same branch both take


def test_parents_by_hand():
    # 7 {5 {0, 2}, 1, 6 {3, 4}}: the children of 7 in the order of their numbers 1, 5, 6
    hierarchy = Hierarchy.from_parents(torch.tensor([5, 7, 5, 6, 6, 7, 7, -1]))
    assert hierarchy.tensors()["node_rows"].tolist() == [0, 3, 4, 5]
    assert codes(hierarchy) == [[1, 0], [0], [1, 1], [2, 0], [2, 1]]
    assert hierarchy.kind == "tree" and hierarchy.expected_rows == pytest.approx((4 * 4 + 3) / 5)


def test_only_children_are_left_out():
    # 9 - 4 {0, 5 - 6 - 7 {1, 8 - 2}, 3}
    parents = [4, 7, 8, 4, 9, 4, 5, 6, 7, -1]
    assert Hierarchy.from_parents(parents) == Hierarchy.from_parents([4, 5, 5, 4, -1, 4])
    assert Hierarchy.from_paths(["10", "1100", "1101", "120"]) == Hierarchy.from_paths(
        ["0", "10", "11", "2"]
    )


def test_paths_with_gaps_and_lists():
    assert Hierarchy.from_paths([[7, 1], [2], [7, 900]]) == Hierarchy.from_paths(["10", "0", "11"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Hierarchy.from_parents([2, 2, -1, -1]), "2 roots"),
        (lambda: Hierarchy.from_parents([2, 3, 3, 2]), "0 roots"),
        (lambda: Hierarchy.from_parents([3, 3, 1, -1]), "item 1 has children"),
        (lambda: Hierarchy.from_parents([3, 3, 3, -1, 3]), "item 3 has children but there are 4"),
        (lambda: Hierarchy.from_parents([6, 6, 4, 6, 5, 4, -1]), "going up from item 2 never"),
        (lambda: Hierarchy.from_parents([2, 2, 9]), r"parents\[2\] is 9; .* -1\.\.2"),
        (lambda: Hierarchy.from_parents([2, 2, -2]), r"parents\[2\] is -2"),
        (lambda: Hierarchy.from_parents([-1]), "at least 2 words"),
        (lambda: Hierarchy.from_parents([0.5, 1.0]), "1-D list of ints"),
        (lambda: Hierarchy.from_parents([None, 1]), "parents must be a 1-D list of ints"),
        (lambda: Hierarchy.from_parents([2, 2, -1], counts=[1, 2, 3]), "counts has 3 words"),
        (lambda: Hierarchy.from_paths(["0"]), "paths has 1 words"),
        (lambda: Hierarchy.from_paths(["0", ""]), r"paths\[1\] is empty"),
        (lambda: Hierarchy.from_paths(["0", "1x"]), "string of digits"),
        (lambda: Hierarchy.from_paths([[0], [-1]]), "paths go from -1"),
        (lambda: Hierarchy.from_paths([[0], [0.5]]), "a list of ints"),
        (lambda: Hierarchy.from_paths(["0", None]), "a string or a list for each word"),
        (lambda: Hierarchy.from_paths(["01", "1", "01"]), "word 0 is also .* word 2"),
        (lambda: Hierarchy.from_paths(["011", "1", "01"]), "word 2 is also .* word 0"),
        (lambda: Hierarchy.from_paths([[0, 0], [0, 0, 1]]), "word 0 is also .* word 1"),
    ],
)
def test_what_is_no_tree(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Balanced, adaptive


@pytest.mark.parametrize("n", [2, 3, 64, 1001])
@pytest.mark.parametrize("arity", [2, 3, 10])
def test_balanced(n, arity):
    if arity > n:
        with pytest.raises(ValueError, match=rf"arity is {arity}; .* 2\.\.{n}"):
            Hierarchy.balanced(n, arity)
        return
    hierarchy = Hierarchy.balanced(n, arity)
    lengths = [len(code) for code in codes(hierarchy)]
    assert max(lengths) == math.ceil(round(math.log(n, arity), 9))
    assert max(lengths) - min(lengths) <= 1
    assert hierarchy.tensors()["leaf_rank"].tolist() == list(range(n))
    assert hierarchy.rows == (n - 1 if arity == 2 else hierarchy.rows)
    assert hierarchy.kind == ("balanced" if arity == 2 else f"{arity}-ary")


def test_adaptive():
    counts = torch.tensor([3, 50, 7, 9, 100, 7, 1, 20])
    hierarchy = Hierarchy.adaptive(counts, [2, 5])
    assert hierarchy.tensors()["node_rows"].tolist() == [0, 4, 7, 10]
    # By falling count: 4, 1 | 7, 3, 2 | 5, 0, 6
    assert codes(hierarchy) == [[3, 1], [1], [2, 2], [2, 1], [0], [3, 0], [3, 2], [2, 0]]
    with_single = Hierarchy.adaptive(counts, [6, 7])  # clusters of one word
    assert with_single == Hierarchy.adaptive(counts, [7])
    for bad in ([], [0, 3], [3, 3], [5, 2], [8], [2.5]):
        with pytest.raises(ValueError, match=r"cutoffs is .* rising ints in 1\.\.7"):
            Hierarchy.adaptive(counts, bad)


def test_bad_balanced():
    for call in (Hierarchy.flat, Hierarchy.balanced):
        with pytest.raises(ValueError, match="n is 1; the number of words"):
            call(1)
    with pytest.raises(ValueError, match="arity is 1"):
        Hierarchy.balanced(5, 1)


# k-means


def test_kmeans_ends_where_each_word_is_nearest_to_its_own_class():
    vectors = torch.randn(400, 3) * torch.tensor([3.0, 1.0, 0.1])
    hierarchy = Hierarchy.kmeans(vectors, 12, rounds=1000, seed=3)
    assert hierarchy == Hierarchy.kmeans(vectors, 12, rounds=1000, seed=3)
    of_word = torch.tensor([code[0] for code in codes(hierarchy)])
    centres = torch.stack([vectors[of_word == c].mean(0) for c in range(12)])
    distance = torch.cdist(vectors, centres)
    own = distance.gather(1, of_word[:, None])[:, 0]
    assert (own <= distance.min(1).values * (1 + 1e-5)).all()


def test_kmeans_leaves_no_class_empty():
    vectors = torch.zeros(50, 4)
    vectors[:3] = torch.eye(3, 4)
    hierarchy = Hierarchy.kmeans(vectors, 20)
    assert int(hierarchy.tensors()["node_rows"][1]) == 20
    assert int(Hierarchy.kmeans(torch.randn(100, 4)).tensors()["node_rows"][1]) == 6


def test_bad_vectors():
    for bad, message in [
        (torch.zeros(5), r"vectors is \(5,\)"),
        ([[1.0]], "vectors is list"),
        (torch.tensor([[0.0], [math.nan], [1.0]]), r"vectors\[1\] is not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hierarchy.kmeans(bad)
    with pytest.raises(ValueError, match="n is 9"):
        Hierarchy.kmeans(torch.randn(5, 2), 9)
    with pytest.raises(ValueError, match="rounds is 0"):
        Hierarchy.kmeans(torch.randn(5, 2), 2, rounds=0)


# Files


def test_class_files(tmp_path):
    file = tmp_path / "classes.tsv"
    file.write_text("a\t10\nb\t9\nc\t10\nd\t2\n", encoding="utf-8")
    assert Hierarchy.from_file(file) == Hierarchy.from_clusters([10, 9, 10, 2])
    some = Hierarchy.from_file(file, ["c", "d", "b"])
    assert some == Hierarchy.from_clusters([10, 2, 9])
    file.write_text("a\tverb\r\nb\tnoun\r\nc\tverb\r\n", encoding="utf-8")
    named = Hierarchy.from_file(file, counts=[1, 2, 1])
    assert named == Hierarchy.from_clusters([1, 0, 1])
    assert named.expected_rows == pytest.approx((2 * 4 + 2 * 2) / 4)


def test_brown_files(tmp_path):
    file = tmp_path / "paths"
    file.write_text("00\tthe\t8\n010\tcat\t2\n010\tdog\t1\n010\tcow\t1\n011\tran\t4\n")
    tree = Hierarchy.from_file(file)
    assert codes(tree) == [[0], [1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 1]]
    assert tree.expected_rows == pytest.approx((8 * 1 + 4 * (1 + 1 + 3) + 4 * 2) / 16)
    assert Hierarchy.from_file(file, bits=2) == Hierarchy.from_clusters([0, 1, 1, 1, 1])
    assert Hierarchy.from_file(file, ["cow", "the"], bits=9) == Hierarchy.flat(2).from_clusters(
        [1, 0]
    )


def test_brown_clusters_on_the_way_to_others(tmp_path):
    file = tmp_path / "paths"
    file.write_text("0\ta\t1\n00\tb\t1\n01\tc\t1\n01\td\t1\n1\te\t1\n")
    tree = Hierarchy.from_file(file)
    assert tree == Hierarchy.from_paths(["02", "00", "010", "011", "1"])


def test_the_real_brown_file():
    counts = brown_counts()
    tree = Hierarchy.from_file(BROWN)
    bits = [line.split("\t")[0] for line in BROWN.read_text(encoding="utf-8").splitlines()]
    assert tree.words == len(counts) == len(set(bits))
    for word in range(0, len(bits), 501):  # each bit is a branch
        assert [b for _, b in tree.path(word)] == [int(b) for b in bits[word]]
    classes = Hierarchy.from_file(BROWN, bits=8)
    assert int(classes.tensors()["node_rows"][1]) == len({b[:8] for b in bits})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a\t1\nb\n", {}, r"line 2 is 'b'"),
        ("a\t1\nb\tc\td\n", {}, "line 2"),
        ("a\t1\na\t2\n", {}, "line 2: 'a' has a cluster already"),
        ("a\t1\n01\tb\t3\n", {}, "lines of both kinds"),
        ("a\t1\nb\t2\n", {"vocabulary": ["a", "x", "y"]}, "no cluster for 2 words, such as 'x'"),
        ("a\t1\nb\t2\n", {"vocabulary": ["a", "b", "a"]}, "holds 'a' twice"),
        ("a\t1\nb\t2\n", {"bits": 4}, "no Brown clusters"),
        ("0\ta\t1\n1\tb\t2\n", {"bits": 0}, "bits is 0"),
        ("a\t1\n", {}, "gives 1 words"),
        ("", {}, "gives 0 words"),
    ],
)
def test_bad_files(tmp_path, text, options, message):
    file = tmp_path / "clusters.tsv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Hierarchy.from_file(file, **options)


# The best


def test_best_orders_by_expected_time():
    counts = zipf(20_000)
    choice = Hierarchy.best(counts, 256, 512)
    times = [estimate.seconds for estimate in choice.estimates]
    assert times == sorted(times) and choice.hierarchy is choice.estimates[0].hierarchy
    assert choice.hierarchy.kind == "two-level"
    assert len(str(choice).splitlines()) == len(times) and "two-level: 20000 words" in str(choice)
    assert {e.hierarchy.kind for e in choice.estimates} == {"flat", "two-level"}


def test_best_grows_with_the_work():
    counts = zipf(5000)
    for device in ("cpu", "cuda"):
        few, many = (Hierarchy.best(counts, 128, n, device) for n in (100, 10_000))
        assert few.estimates[0].seconds < many.estimates[0].seconds
        wide = Hierarchy.best(counts, 1024, 100, device)
        assert few.estimates[0].seconds < wide.estimates[0].seconds
    dense, sparse = (Hierarchy.best(counts, 128, 100, sparse_grad=s) for s in (False, True))
    assert sparse.estimates[0].seconds < dense.estimates[0].seconds
    with_tree = Hierarchy.best(counts, 128, 100, kinds=("flat", "huffman"))
    assert {e.hierarchy.kind for e in with_tree.estimates} == {"flat", "huffman"}


def test_best_of_few_words_is_flat():
    assert Hierarchy.best([3, 2, 1], 16, 64).hierarchy == Hierarchy.flat(3)


def test_the_nodes_that_are_met():
    """The model's expected rows against what random targets meet."""
    from fusedrnn import _cost, softmax_reference

    counts = zipf(3000)
    tree = Hierarchy.classes(counts)
    chances = counts.double() / counts.sum()
    _, rows = _cost._met(tree, chances, 50)
    targets = torch.multinomial(chances, 50 * 200, replacement=True).view(200, 50)
    tensors = Tree(**tree.tensors())
    met = [len(softmax_reference.rows_met(t, tensors, tree.depth)) for t in targets]
    met = torch.tensor(met).double()
    assert abs(met.mean() - rows) < 5 * met.std() / 200**0.5


def test_bad_questions():
    for arguments, message in [
        (([1, 2], 0, 5), "hidden is 0"),
        (([1, 2], 5, 0), "tokens is 0"),
        (([1, 2], 5, 5, "mps"), "device is 'mps'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hierarchy.best(*arguments)
    for kinds in ((), ("flat", "deep")):
        with pytest.raises(ValueError, match="kinds is"):
            Hierarchy.best([1, 2], 5, 5, kinds=kinds)


def code_lengths(hierarchy):
    """How many nodes each word passes, by strides that double: for trees of any size."""
    tree = Tree(**hierarchy.tensors())
    nodes = len(tree.node_rows) - 1
    owner = torch.repeat_interleave(torch.arange(nodes), tree.node_branches.diff())
    inner, up = tree.branch_node >= 0, torch.full((nodes + 1,), nodes)
    up[tree.branch_node[inner]] = owner[inner]
    count = (torch.arange(nodes + 1) < nodes).long()
    while (up < nodes).any():
        count, up = count + count[up], up[up]
    of_rank = torch.empty(hierarchy.words, dtype=torch.int64)
    of_rank[tree.branch_leaf[~inner]] = count[owner[~inner]]
    return of_rank[tree.leaf_rank]


MILLION = 1_000_000


def zipf_of_a_million():
    return (1e8 / torch.arange(1, MILLION + 1)).long()


def test_a_million_words_in_classes():
    counts = zipf_of_a_million()
    tree = Hierarchy.classes(counts)
    assert tree.words == MILLION and (code_lengths(tree) == 2).all()
    rows = Tree(**tree.tensors()).node_rows
    assert rows[-1] == MILLION + rows[1] and rows[1] == len(rows) - 2


def test_a_million_words_by_huffman():
    """Codes of an optimal length: between the entropy and one bit more; rare words longer."""
    counts = zipf_of_a_million()
    lengths, chances = code_lengths(Hierarchy.huffman(counts)), counts.double() / counts.sum()
    entropy = -(chances * chances.log2()).sum()
    assert entropy <= (chances * lengths).sum() < entropy + 1
    assert 2.0 ** -lengths.double() @ torch.ones(MILLION).double() == 1  # Kraft: no code wasted
    order = (counts * 64 - lengths).argsort()  # words of one count may differ by a bit
    assert (lengths[order].diff() <= 0).all()


def test_a_million_words_as_parents_and_paths():
    """A complete binary tree from the leaves up; and the same number of words by 20 bits."""
    parents = torch.arange(2 * MILLION - 1) // 2 + MILLION
    parents[-1] = -1
    lengths = code_lengths(Hierarchy.from_parents(parents))
    assert lengths.unique().tolist() == [19, 20]
    assert 2.0 ** -lengths.double() @ torch.ones(MILLION).double() == 1
    tree = Hierarchy.from_paths([f"{word:020b}" for word in range(MILLION)])
    assert torch.equal(
        tree.tensors()["leaf_rank"], torch.arange(MILLION)
    )  # bits in order are words in order
    assert code_lengths(tree).max() == 20
