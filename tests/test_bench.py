"""The benchmark suite: what it measures, how it verifies and how it times."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import command_run, contender, quiet, results, table, timing, words
from benchmarks.case import COUNTS, INPUTS, MODES, OPS, WORD_OPS, Case, CaseError, parse_shape
from benchmarks.contender import Failure, build
from benchmarks.peers import PEERS
from benchmarks.peers.torch_softmax import padded_paths
from benchmarks.problems import problem
from benchmarks.results import Row, Run
from benchmarks.suites import BASELINES, GOALS, SUITES
from benchmarks.verify import verify
from benchmarks.words import path_log_prob
from fusedrnn import Hierarchy, softmax_reference
from fusedrnn._trees import Tree
from fusedrnn.cells import CELLS

ROOT = Path(__file__).parent.parent
SMALL = Case("sequence", "gru", "fwdbwd", (3, 2, 4, 5))
WORDS = Case("softmax", "", "fwdbwd", (30, 6, 11))


# -- cases and suites


def test_every_suite_has_distinct_cases_and_known_peers():
    for name, suite in SUITES.items():
        assert len(set(suite.cases)) == len(suite.cases), name
        assert len({case.name + case.device for case in suite.cases}) == len(suite.cases), name
        for op, names in suite.peers.items():
            assert op in OPS
            for peer_name in names:
                assert op in PEERS[peer_name].ops


def test_quick_has_every_cell_op_and_mode():
    cases = SUITES["quick"].cases
    assert {c.cell for c in cases if c.op == "sequence"} == set(CELLS)
    assert {c.op for c in cases} == set(OPS)
    assert {c.mode for c in cases} == set(MODES)


def test_goals_are_of_cases_that_a_suite_has():
    for (case, name), goal in GOALS.items():
        suites = [suite for suite in SUITES.values() if case in suite.cases]
        assert suites and any(name in suite.peers[case.op] for suite in suites)
        assert goal.least and PEERS[name].takes_part(case)
        assert goal.of in ("", results.FULL) or case.op in PEERS[goal.of].ops


def test_who_is_left_out_of_a_case_is_measured_in_another_of_its_suite():
    for suite in SUITES.values():
        for case, names in suite.without.items():
            assert case in suite.cases
            for name in names:
                assert name in suite.peers[case.op] and name not in BASELINES[case.op]
                assert (case, name) not in GOALS
                others = [c for c in suite.cases if name not in suite.without.get(c, ())]
                assert any((c.op, c.mode) == (case.op, case.mode) for c in others)


def test_a_goal_may_be_about_another_peer_than_the_baseline():
    case = Case("log_prob", "", "infer", (30, 6, 11))
    rows = [
        Row(case, "linear+log_softmax", "ok", samples=[9.0] * 5, baseline=True),
        Row(case, "AdaptiveLogSoftmax", "ok", samples=[3.0] * 5),
        Row(case, "fusedrnn adaptive", "ok", samples=[2.0] * 5, ours=True, goal=2.0,
            goal_of="AdaptiveLogSoftmax", loss=1.25),
    ]  # fmt: skip
    run = Run("t", "", "", {}, {}, rows)
    assert table.attained(rows, rows[2]) == pytest.approx(1.5)
    line = table.cells(rows, rows[2], {})
    assert ">=2 MISSED" in line and "4.50x" in line and "1.25" in line
    assert any("1.50x, goal 2x of AdaptiveLogSoftmax" in text for text in table.summary(run))
    rows[1].status = "failed"
    assert table.attained(rows, rows[2]) is None
    full = Row(WORDS, "fusedrnn two-level", "ok", samples=[1.0], goal=5.0, goal_of=results.FULL)
    peers = [Row(WORDS, "Liger", "ok", samples=[6.0]), Row(WORDS, "quack", "ok", samples=[4.0])]
    assert table.attained([*peers, full], full) == pytest.approx(4.0)


@pytest.mark.parametrize("counts", [[5, 5, 5, 5, 5], [1, 2, 4, 8, 16, 32], [3, 7]])
def test_padded_paths_are_those_of_the_tree(counts):
    tree = Hierarchy.huffman(counts)
    nodes, signs = padded_paths(tree)
    for word in range(tree.words):
        on = signs[word] != 0
        own = zip(nodes[word, on].tolist(), signs[word, on].tolist(), strict=True)
        assert list(own)[::-1] == [(node, 1 - 2 * branch) for node, branch in tree.path(word)]


def test_peaked_inputs_leave_few_words_likely():
    most = []
    for inputs in INPUTS:
        of = problem(Case("topk", "", "infer", (20_000, 64, 8), inputs=inputs))
        most.append(of._every("flat", torch.float32).max(1).values.exp().mean())
    assert most[0] < 0.01 and most[1] > 0.1


def test_real_counts_are_those_of_the_file(monkeypatch, tmp_path):
    file = tmp_path / "brown.tsv"
    file.write_text("00\ta\t3\n01\tb\t70\n1\tc\t5\n", encoding="utf-8")
    monkeypatch.setattr(words, "BROWN", file)
    assert problem(WORDS.on(shape=(2, 6, 11), counts="brown")).counts.tolist() == [70, 5]
    for shape, missing in (((4, 6, 11), False), ((2, 6, 11), True)):
        if missing:
            file.unlink()
        with pytest.raises(Failure, match="has 3 words|no such file") as failure:
            build("fusedrnn two-level", WORDS.on(shape=shape, counts="brown"), 0.01)
        assert failure.value.status == "unsupported"


def test_the_loss_is_told():
    built = build("fusedrnn two-level", WORDS, 0.01)
    of = problem(WORDS)
    assert built.verdict.loss == pytest.approx(float(of.judge("two-level")[0]["loss"]))
    assert build("fusedrnn two-level", WORDS.on(op="topk", mode="infer"), 0.01).verdict.loss is None


@pytest.mark.parametrize("name", SUITES)
def test_the_command_of_a_row_describes_that_row(name):
    for case in SUITES[name].cases:
        words = case.command("torch.nn").split()
        options = vars(parser_of_run().parse_args(words[4:]))
        options["suite"] = None
        assert command_run.described(type("Options", (), options)) == [case]


def parser_of_run():
    import argparse

    parser = argparse.ArgumentParser()
    command_run.arguments(parser)
    return parser


def test_operations_are_counted():
    # 2 directions, 3 passes, 7 steps, 3 rows, 4 gates of 5: 20 rows of 4 + 5 columns.
    case = Case("sequence", "lstm", "fwdbwd", (7, 3, 4, 5), bidirectional=True)
    assert case.flops() == 2 * 3 * 2 * 7 * 3 * 20 * 9
    assert case.on(mode="infer", bidirectional=False).flops() == 2 * 7 * 3 * 20 * 9


@pytest.mark.parametrize(
    ("text", "op", "message"),
    [
        ("T=3,B=2", "sequence", "needs I, H too"),
        ("T=3,X=2", "sequence", "'X=2' is no size of sequence"),
        ("V=3,H=-1", "softmax", "'H=-1' is no size"),
    ],
)
def test_a_bad_shape_is_refused_with_what_is_needed(text, op, message):
    with pytest.raises(CaseError, match=re.escape(message)):
        parse_shape(text, op)


def test_the_input_size_is_that_of_h_unless_given():
    assert parse_shape("T=3,B=2,H=8", "sequence") == (3, 2, 8, 8)
    assert parse_shape("H=8,T=3,B=2,I=5", "sequence") == (3, 2, 5, 8)


# -- problems and the verdict


@pytest.mark.parametrize("kind", ["flat", "two-level", "huffman"])
def test_the_truth_by_paths_is_the_reference(kind):
    of = problem(WORDS.on(dtype="float64"))
    tree = of.tree(kind)
    weight, bias = of.weights(tree.rows)
    every = softmax_reference.log_prob(of.x, weight, bias, Tree(**tree.tensors()), tree.depth)
    want = every.gather(1, of.target[:, None])[:, 0]
    got = path_log_prob(of.x, weight, bias, tree, of.target)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", [SMALL, SMALL.on(cell="rnn_relu"), WORDS])
def test_inputs_are_never_zeros_and_always_the_same(case):
    one, other = problem(case), problem(case)
    assert torch.equal(one.x, other.x) and (one.x != 0).all()
    assert one.x.std() > 0.3


def test_truths_of_the_same_numbers_are_computed_once():
    train, score = problem(WORDS), problem(WORDS.on(op="log_prob", mode="infer"))
    truth = train.judge("two-level")
    every = score.judge("two-level")[0]["log_prob"]
    infer = problem(WORDS.on(mode="infer"), train)
    assert infer.judge("two-level") is truth and infer.tree("two-level") is train.tree("two-level")
    best = problem(WORDS.on(op="topk", mode="infer"), score).judge("two-level")[0]["log_prob"]
    torch.testing.assert_close(best, every.topk(10, 1).values, rtol=0, atol=0)
    assert score._judged


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (WORDS.on(mode="infer"), {"mode": "fwdbwd"}),  # it has no gradients
        (WORDS, {"inputs": "peaked"}),
        (WORDS, {"counts": "uniform"}),
        (WORDS, {"dtype": "float64"}),
        (WORDS, {"op": "log_prob", "mode": "infer"}),
    ],
)
def test_truths_of_other_numbers_are_not_taken_for_a_case(case, changes):
    before = problem(case)
    before.judge("huffman")
    after = problem(case.on(**changes), before)
    want = problem(case.on(**changes)).judge("huffman")[0]
    got = after.judge("huffman")[0]
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not before._judged


def test_weights_are_a_peers_own():
    of = problem(WORDS)
    first, _ = of.weights(30)
    first.zero_()
    assert (of.weights(30)[0] != 0).all()


@pytest.mark.parametrize("spoilt", ["y", "dx", "dweight_hh_l0"])
def test_a_wrong_output_or_gradient_is_found(spoilt):
    of = problem(SMALL)
    task = PEERS["fusedrnn"].build(of)
    assert verify(task, of).wrong is None
    forward = task.forward
    if spoilt == "y":
        task.forward = lambda: {"y": (y := forward()["y"]) + 1.23e-5 * y.detach()}
    else:
        task.restore = lambda name, grad: grad * (1.0000123 if f"d{name}" == spoilt else 1)
    assert verify(task, of).wrong.startswith(f"{spoilt}: error 1.")


@pytest.mark.parametrize("spoilt", ["log_prob", "words"])
def test_a_wrong_word_or_its_probability_is_found(spoilt):
    of = problem(WORDS.on(op="topk", mode="infer"))
    task = PEERS["fusedrnn two-level"].build(of)
    assert verify(task, of).wrong is None
    forward = task.forward
    change = {"log_prob": lambda t: t * 1.0000123, "words": lambda t: t.flip(1)}[spoilt]
    task.forward = lambda: (got := forward()) | {spoilt: change(got[spoilt])}
    assert verify(task, of).wrong.startswith(f"{spoilt}: error")


def test_either_of_two_equal_words_is_right():
    of = problem(Case("topk", "", "infer", (30, 6, 11)))
    every = of._every("flat", torch.float64)
    every[:, 5] = every[:, 3] = 0.0  # the most probable of all
    truth, _ = of.judge("flat")
    got = of.answer(every)
    other = torch.where(got["words"] == 3, 5, torch.where(got["words"] == 5, 3, got["words"]))
    assert not torch.equal(other, got["words"])
    assert torch.equal(of.comparable(got | {"words": other}, "flat")["words"], truth["words"])


def test_nan_is_wrong():
    of = problem(SMALL)
    task = PEERS["fusedrnn"].build(of)
    task.forward = lambda: {"y": of.leaf.new_full((3, 2, 5), math.nan) * of.leaf.sum()}
    task.leaves = {"x": of.leaf}
    assert "error nan" in verify(task, of).wrong


# -- timing


def test_contenders_take_turns_and_nobody_always_comes_first():
    calls = []
    noise = itertools.cycle([1.0, 2.0])
    contenders = [lambda i=i: calls.append(i) or next(noise) for i in range(3)]
    samples = timing.alternate(contenders, seconds=60.0)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in rounds)
    assert {turn[0] for turn in rounds} == {0, 1, 2}
    assert [len(taken) for taken in samples] == [len(rounds)] * 3
    assert len(rounds) == timing.MOST


def test_constant_samples_are_settled_at_once():
    (samples,) = timing.alternate([lambda: 1.0], seconds=60.0)
    assert len(samples) == 2 * timing.FEWEST


def test_time_over_still_leaves_enough_samples():
    (samples,) = timing.alternate([lambda: 1.0], seconds=-1.0)
    assert len(samples) == timing.FEWEST


def test_what_others_disturbed_is_sampled_anew(monkeypatch):
    """Whatever the samples are: the clock and the others' share decide."""
    monkeypatch.setattr(quiet.Quiet, "WINDOW", 0.0)
    shares = itertools.chain([0.0, 0.5, 0.5], itertools.repeat(0.0))
    monkeypatch.setattr(quiet.Others, "share", lambda self: next(shares))
    watch, taken = quiet.Quiet(patience=60.0), itertools.count()
    (samples,) = timing.alternate([lambda: float(next(taken))], seconds=-1.0, quiet=watch)
    assert samples == [0.0, 3.0, 4.0, 5.0, 6.0]
    assert watch.share() == 0.0 and watch.lost > 0


def test_the_shortest_run_tells_the_share_of_others(monkeypatch):
    monkeypatch.setattr(quiet.Others, "share", lambda self: 0.25)
    watch = quiet.Quiet()
    timing.alternate([lambda: 1.0], seconds=-1.0, quiet=watch)
    assert watch.share() == 0.25


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(quiet.Quiet, "WINDOW", 0.0)
    monkeypatch.setattr(quiet.Others, "share", lambda self: 0.5)
    watch, taken = quiet.Quiet(patience=1e-9), itertools.count()
    (samples,) = timing.alternate([lambda: float(next(taken))], seconds=-1.0, quiet=watch)
    assert samples == [1.0, 2.0, 3.0, 4.0, 5.0] and watch.share() == 0.5


def test_quartiles_are_those_of_torch():
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 7.0]
    want = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert timing.quartiles(values) == pytest.approx(want)


@pytest.mark.parametrize("long", [True, False])
def test_a_long_call_is_warm_after_those_before(long, monkeypatch):
    monkeypatch.setattr(contender, "LONG", 0.0 if long else 60.0)
    warmed = []
    monkeypatch.setattr(contender, "warm_up", lambda *given: warmed.append(given) or 3)
    built = build("fusedrnn", SMALL, 0.01)
    assert (built.calls, len(warmed)) == ((1, 0) if long else (3, 1))


def test_only_the_call_is_timed_when_something_must_be_prepared():
    log = []
    steps = timing.Stepper(lambda ready: log.append(ready), prepare=lambda: log.append("p") or "c")
    steps.seconds(2)
    assert log == ["p", "c"] * 3  # one before the block


def test_ratio_is_of_medians_and_its_interval_holds_it():
    point, low, high = results.ratio([2.0, 2.2, 2.1, 1.9, 2.0], [1.0, 1.1, 0.9, 1.0, 1.0])
    assert point == 2.0 and 1.7 < low <= 2.0 <= high < 2.5
    assert results.ratio([1.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)


def test_noise_is_that_of_the_two_copies():
    rows = [
        Row(SMALL, "fusedrnn", "ok", samples=[1.0] * 5, ours=True),
        Row(SMALL, "fusedrnn", "ok", samples=[1.1] * 5, ours=True, twin=True),
    ]
    assert table.noise(rows) == pytest.approx(1.1)
    assert table.within_noise(1.05, 1.04, 1.06, 1.1)
    assert not table.within_noise(1.2, 1.1, 1.3, 1.1)


def test_lengths_are_set_against_the_same_rows_all_long():
    case = SMALL.on(layout="lengths")
    rows = [
        Row(case, "fusedrnn", "ok", samples=[0.8] * 5, ours=True),
        Row(case, "fusedrnn padded", "ok", samples=[1.0] * 5),
    ]
    assert table.layouts(Run("t", "", "", {}, {}, rows))[1].endswith(": 0.80 (0.80-0.80)")
    assert not table.layouts(Run("t", "", "", {}, {}, rows[:1]))


def test_another_commit_is_told_as_a_ratio():
    rows = [
        Row(SMALL, "fusedrnn", "ok", samples=[0.8] * 5, ours=True),
        Row(SMALL, "fusedrnn@v0.1", "ok", samples=[1.0] * 5),
    ]
    head, line = table.commits(Run("t", "", "", {}, {}, rows))
    assert head.endswith("as v0.1:") and line.endswith(": 1.25x (1.25-1.25)")


# -- peers


@pytest.mark.parametrize("name", [n for n, p in PEERS.items() if "sequence" in p.ops])
@pytest.mark.parametrize("cell", CELLS)
def test_every_peer_of_layers_is_right_or_says_why_not(name, cell):
    if name == "torch.compile":
        pytest.skip("compiles for half a minute; the benchmark verifies it whenever it runs")
    try:
        built = build(name, SMALL.on(cell=cell), 0.01)
    except Failure as failure:
        assert failure.status == "unsupported" and len(failure.reason) > 10
    else:
        assert built.verdict.error is not None


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("op", WORD_OPS)
@pytest.mark.parametrize("name", [n for n, p in PEERS.items() if {*WORD_OPS} & {*p.ops}])
def test_every_peer_of_output_layers_is_right_or_says_why_not(name, op, counts):
    if name.startswith("compiled"):
        pytest.skip("compiles for seconds; the benchmark verifies it whenever it runs")
    mode = "fwdbwd" if op == "softmax" else "infer"
    try:
        built = build(name, Case(op, "", mode, (240, 64, 11), counts=counts), 0.01)
    except Failure as failure:
        assert failure.status == "unsupported" and len(failure.reason) > 10
    else:
        assert built.verdict.error is not None or name == "gensim"


def test_adaptive_softmax_is_held_to_torchs():
    built = build("fusedrnn adaptive", Case("softmax", "", "fwdbwd", (240, 64, 11)), 0.01)
    assert built.verdict.bound is not None
    with pytest.raises(Failure, match="its clusters need at least 200 and 64"):
        build("fusedrnn adaptive", WORDS, 0.01)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_what_it_computes_and_how_to_get_it(name):
    record = PEERS[name]
    assert record.what and record.ops
    assert not record.needs or "pip install" in record.get
    if record.missing():
        assert re.search(r"pip install|NVIDIA GPU", record.missing())


@pytest.mark.parametrize("layout", ["lengths", "packed"])
@pytest.mark.parametrize("name", ["torch.nn", "fusedrnn", "eager loop"])
def test_rows_of_unequal_length_are_verified(name, layout):
    built = build(name, SMALL.on(shape=(6, 4, 3, 5), layout=layout), 0.01)
    assert built.verdict.error <= built.verdict.bound


def test_sparse_gradients_are_verified_as_the_dense_ones():
    for name in ("fusedrnn two-level sparse", "fusedrnn Huffman sparse"):
        built = build(name, WORDS, 0.01)
        assert built.verdict.wrong is None and built.verdict.error > 0
