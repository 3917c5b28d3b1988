"""The demo: corpus, batching, the six rows, the table, the page, the command line."""

import contextlib
import io
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import corpus, demo, demo_page, lm, lm_time

ROOT = Path(__file__).parent.parent
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this".split()


def make_text(tokens=3000, seed=3):
    """Sentences of few words with a skewed distribution, in paragraphs."""
    rng, parts = random.Random(seed), []
    for i in range(tokens):
        parts.append(WORDS[int(len(WORDS) * rng.random() ** 2)])
        if i % 9 == 8:
            parts[-1] += ".\n\n" if i % 27 == 26 else "."
    return " ".join(parts)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are tiny: threads only wait for each other, for long where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "small text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


def tiny(text_file, out, *more):
    options = "--hidden 8 --batch 4 --bptt 7 --tokens 700 --device cpu --seed 5".split()
    return ["--corpus", str(text_file), "--out", str(out), *options, *more]


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    """One whole run through main(): exit status, output, page."""
    out = tmp_path_factory.mktemp("demo") / "demo.html"
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        status = demo.main(tiny(text_file, out))
    return status, stream.getvalue(), out.read_text(encoding="utf-8")


# -- the corpus


def test_words_marks_rules_and_paragraphs():
    text = "It's late.\n==========\nGo <unk>\n\n\n  3.5 km, naïve!\n"
    want = "It's late . Go <unk> <eos> 3 . 5 km , naïve ! <eos>".split()
    assert corpus.tokenize(text) == want


def test_without_blank_lines_each_line_is_a_paragraph():
    assert corpus.tokenize("a b\nc <eos>\nd") == "a b <eos> c <eos> d <eos>".split()


def test_vocabulary_is_by_count_and_bounded():
    tokens = "b a a b a c <eos> <eos> d d".split()
    assert corpus.vocabulary(tokens, size=10, min_count=2) == ["a", "b", "d", "<eos>", "<unk>"]
    # At size 4 only two words stay; b outlives d by coming first, and <unk> takes c and both d.
    assert corpus.vocabulary(tokens, size=4, min_count=2) == ["a", "<unk>", "b", "<eos>"]
    assert set(corpus.vocabulary(["x"] * 9, size=10, min_count=2)) == {"x", "<unk>", "<eos>"}


def test_split_ids_and_counts():
    text = make_text() + " rareword never seen again"
    made = corpus.build("text", text)
    tokens = corpus.tokenize(text)
    assert len(made.train) == len(tokens) * 9 // 10
    assert len(made.train) + len(made.valid) == len(tokens)
    stream = [made.words[i] for i in torch.cat([made.train, made.valid]).tolist()]
    known = set(made.words)
    assert stream == [word if word in known else "<unk>" for word in tokens]
    assert "rareword" not in known
    assert made.counts.tolist() == [
        max(1, made.train.tolist().count(i)) for i in range(len(made.words))
    ]


def test_default_text_repeats_no_paragraph():
    paragraphs = re.split(r"\n\s*\n", corpus.reference_text())
    assert len(paragraphs) == len(set(paragraphs)) > 1000


# -- the training


@pytest.mark.parametrize(("tokens", "batch"), [(50, 1), (50, 7), (43, 6), (3, 2)])
def test_every_token_is_a_target_once_and_columns_are_contiguous(tokens, batch):
    inputs, targets = lm.columns(torch.arange(tokens), batch)
    assert inputs.shape == targets.shape == ((tokens - 1) // batch, batch)
    assert torch.equal(targets, inputs + 1)
    used = (tokens - 1) // batch * batch
    assert torch.equal(targets.t().flatten(), torch.arange(1, used + 1))
    assert tokens - 1 - used < batch


def test_too_few_tokens_for_the_columns():
    with pytest.raises(ValueError, match="tokens has 3; batch=4 needs at least 5"):
        lm.columns(torch.arange(3), 4)


def trainer(recurrence, output, text, dtype=torch.float32, weights=None, **options):
    made = corpus.build("text", text)
    torch.manual_seed(0)
    model = lm.LanguageModel(made.counts, recurrence, output, hidden=8).to(dtype)
    if weights:
        model.load_state_dict(weights)
    options = {"batch": 4, "bptt": 7, "lr": 1e-2, "steps": 40, "clip": 1.0} | options
    return lm.Trainer(model, made.train, **options), made


def test_gradients_taken_in_parts_are_those_of_one_backward():
    ours, _ = trainer(lm.FUSED, "two-level", make_text(), torch.float64)
    inputs, targets = (part[:7] for part in ours.data)
    ours._gradients(inputs, targets, lm_time.Stopwatch(torch.device("cpu")))
    parts = [p.grad.clone() for p in ours.model.parameters()]
    ours.optimizer.zero_grad()
    h, _ = ours.model.recurrence(ours.model.embedding(inputs))
    ours.model.output(h.flatten(0, 1), targets.flatten())[1].backward()
    for part, whole in zip(parts, (p.grad for p in ours.model.parameters()), strict=True):
        assert torch.equal(part, whole)


def test_state_is_carried_through_an_epoch_and_cleared_after():
    ours, _ = trainer(lm.TORCH, "full softmax", make_text(), torch.float64, lr=0.0)
    ours.warm_up()
    assert ours.state is None
    ours.train(math.ceil(len(ours.data[0]) / 7))
    _, whole = ours.model.recurrence(ours.model.embedding(ours.data[0]))
    torch.testing.assert_close(ours.state, whole)
    next(ours._windows)
    assert ours.state is None


def test_perplexity_is_that_of_the_whole_text_read_at_once():
    ours, made = trainer(lm.TORCH, "full softmax", make_text(), torch.float64)
    inputs, targets = lm.columns(made.valid, 4)
    h, _ = ours.model.recurrence(ours.model.embedding(inputs))
    logits = ours.model.output.linear(h.flatten(0, 1))
    want = torch.nn.functional.cross_entropy(logits, targets.flatten()).exp().item()
    # Sums in another order, over 2^8 terms: a few roundings of float64.
    assert ours.perplexity(made.valid) == pytest.approx(want, rel=64 * 2**-53)


def test_learning_rate_falls_to_nothing():
    ours, _ = trainer(lm.TORCH, "full softmax", make_text(), lr=0.5, steps=4)
    rates = []
    for _ in range(6):
        rates.append(ours.optimizer.param_groups[0]["lr"])
        ours.train(1)
    assert rates == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]


def test_stopwatch_adds_up_what_lies_between_marks():
    watch = lm_time.Stopwatch(torch.device("cpu"))
    moments = [10.0, 11.0, 13.0, 13.5, 14.0]
    with mock.patch("time.perf_counter", side_effect=moments):
        for name in ("", "rest", "recurrence", "output", "recurrence"):
            watch.mark(name)
    assert watch.read() == {"recurrence": 2.5, "output": 0.5, "rest": 1.0}


def test_a_stalled_turn_counts_for_nothing():
    row = lm_time.Row(lm.TORCH, "Huffman")
    for seconds in (1.0, 1.0, 50.0, 1.0, 0.2, 1.0, 1.0, 1.0):
        parts = {"recurrence": seconds / 2, "output": seconds / 4, "rest": seconds / 4}
        row.turns.append(lm_time.Turn(10, 100, 3.0, parts))
    assert row.tokens_per_second == 100.0
    assert [row.ms(part) for part in lm_time.PARTS] == [50.0, 25.0, 25.0]
    assert row.quartiles == (100.0, 100.0)


@pytest.mark.parametrize("output", lm.OUTPUTS)
def test_both_recurrences_learn_the_same(output):
    """Error rule: away from float64 at most twice as far as torch, over the whole curve."""
    text, curves = make_text(), {}
    exact, _ = trainer(lm.TORCH, output, text, torch.float64)
    weights = {
        k: v.float() if v.is_floating_point() else v for k, v in exact.model.state_dict().items()
    }
    exact.model.load_state_dict(weights)
    for name in (lm.TORCH, lm.FUSED):
        curves[name], _ = trainer(name, output, text, weights=weights)
    runs = [exact, curves[lm.TORCH], curves[lm.FUSED]]
    want, torchs, ours = (torch.tensor([t.train(1).loss for _ in range(30)]) for t in runs)
    floor = 8 * 2**-24 * want.max()  # of a mean loss itself in float32
    assert (ours - want).abs().max() <= 2 * (torchs - want).abs().max() + floor
    assert want[-5:].mean() < want[:5].mean()


# -- the command


def test_table_has_all_rows_and_equal_perplexities(finished):
    status, output, _ = finished
    assert status == 0
    lines = [
        line.split()
        for line in output.splitlines()
        if re.match(r"(torch\.nn|fusedrnn)\.LSTM +\w", line)
    ]
    names = [(line[0], line[1].replace("full", "full softmax")) for line in lines]
    assert names == [(r, o) for o in lm.OUTPUTS for r in lm.RECURRENCES]
    for ours, torchs in zip(lines[1::2], lines[::2], strict=True):
        difference, perplexity = float(ours[-1]), float(ours[-2])
        assert torchs[2 if torchs[1] != "full" else 3].replace(",", "").isdigit()
        assert abs(perplexity - float(torchs[-1]) - difference) <= 1.1e-3  # as printed
        assert 1 < perplexity < len(WORDS) + 4


def test_output_is_plain_lines_of_at_most_100_columns(finished):
    output = finished[1]
    assert "\r" not in output and "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 100
    assert "fusedrnn.LSTM: " in output  # which backend, and why
    assert re.search(r"^100%  ETA 0:00  step 25/25 ", output, re.MULTILINE)


class Page(HTMLParser):
    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_whole_and_asks_the_network_for_nothing(finished):
    text = finished[2]
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|//\w|@import", text)
    for tag, attributes in page.seen:
        assert tag not in ("script", "link", "img", "iframe"), tag
        assert not {"src", "href", "xlink:href"} & attributes.keys()
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_page_shows_every_row_in_table_bars_and_curves(finished):
    page = Page(finished[2])
    words = " ".join(page.text)
    for recurrence in lm.RECURRENCES:
        for output in lm.OUTPUTS:
            assert words.count(f"{recurrence} + {output}") >= 4  # bar, both curves, legend
    assert sum("curve" in a.get("class", "") for _, a in page.seen) == 3 * 6
    assert not re.search(r"\b(nan|inf)\b", words)
    for figure in re.findall(r' (?:x|y|width|cx|cy)="([^"]*)"', finished[2]):
        assert 0 <= float(figure) <= 900


def test_names_are_escaped_in_the_page():
    row = lm_time.Row("<b>", "a&b")
    for _ in range(2):
        row.turns.append(lm_time.Turn(1, 10, 2.0, dict.fromkeys(lm_time.PARTS, 1e-3)))
    page = Page(demo_page.render([row], ["h"], [["<i>"]], {"k": "<u>"}, "<s>"))
    assert not {"b", "i", "u", "s"} & {tag for tag, _ in page.seen}


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (4.1, 6.9, [5, 6]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
        (0, 59, [0, 20, 40]),
    ],
)
def test_ticks_are_round(low, high, want):
    assert demo_page.ticks(low, high) == pytest.approx(want)


def test_same_command_same_figures(finished, text_file, tmp_path, capsys):
    assert demo.main(tiny(text_file, tmp_path / "again.html")) == 0
    pattern = r"^((?:torch\.nn|fusedrnn)\.LSTM) .*?([\d.]+)(?:  +\S+)?$"

    def figures(output):
        return [
            re.findall(r"\d+\.\d{3}\b", line)
            for line in output.splitlines()
            if re.match(pattern, line)
        ]

    assert figures(capsys.readouterr().out) == figures(finished[1])


def test_time_limit_stops_every_row_at_the_same_step(text_file, tmp_path, capsys):
    clock = iter(range(0, 10**6, 2))  # seconds; each look takes two
    with mock.patch("time.perf_counter", lambda: float(next(clock))):
        demo.main(tiny(text_file, tmp_path / "demo.html", "--minutes", "25"))
    output = capsys.readouterr().out
    assert "limit of 25 minutes stopped every row at step 20 of 25" in " ".join(output.split())


def test_interrupt_prints_what_was_measured(text_file, tmp_path, capsys):
    calls, train = [], lm.Trainer.train

    def interrupted(self, steps):
        calls.append(steps)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return train(self, steps)

    with mock.patch.object(lm.Trainer, "train", interrupted):
        assert demo.main(tiny(text_file, tmp_path / "demo.html")) == 130
    output = capsys.readouterr().out
    assert output.count("LSTM  ") == 6 and "interrupted" in output
    assert not (tmp_path / "demo.html").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"caf\xe9 " * 2000), "not UTF-8 (byte 0xe9 at 3)"),
        (lambda path: path.write_text("too short"), "3 tokens; training needs at least 1,000"),
    ],
)
def test_unusable_corpus_is_one_line_and_status_2(make, message, tmp_path, capsys):
    path = tmp_path / "corpus"
    make(path)
    assert demo.main(["--corpus", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line_and_status_2(text_file, capsys):
    assert demo.main(["--corpus", str(text_file), "--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_module_runs_as_a_command():
    command = [sys.executable, "-m", "benchmarks.demo", "--corpus", "nowhere.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere.txt" in done.stderr
