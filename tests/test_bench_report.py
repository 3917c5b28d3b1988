"""The report in a browser, the tables of the docs, and the language-model command."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import command_lm, markdown
from benchmarks.case import Case
from benchmarks.cli import main
from benchmarks.results import Row, Run, load

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run"

# Sorts by ms, twice; filters; leaves what it saw in the page.
PROBE = """
<script>
const box = document.querySelector('.rows'), body = box.querySelector('tbody');
const times = () => [...body.rows].filter(r => !r.hidden && r.cells[2].dataset.v)
  .map(r => Number(r.cells[2].dataset.v));
const button = box.querySelectorAll('th button')[2];
const seen = {before: times()};
button.click(); seen.up = times();
button.click(); seen.down = times();
const search = box.querySelector('input');
search.value = 'gru fusedrnn'; search.dispatchEvent(new Event('input'));
seen.found = [...body.rows].filter(r => !r.hidden).map(r => r.textContent);
seen.count = box.querySelector('output').textContent;
seen.asked = performance.getEntriesByType('resource').map(e => e.name);
const pre = document.createElement('pre');
pre.id = 'seen'; pre.textContent = JSON.stringify(seen); document.body.append(pre);
</script>
"""


def made_up():
    """A run with every status, several sizes of T, a goal missed and a name to escape."""
    run = Run("cpu", "2026-01-02T03:04:05+0000", "python -m benchmarks run <x>", {"slug": "a-box"})
    run.environment |= {"processor": "<b>chip</b>", "torch": "2.13", "commit": "abc", "threads": 2}
    run.peaks = {"gflops": 200.0, "gb_per_s": 20.0}
    for cell in ("gru", "lstm"):
        for i, T in enumerate((16, 32, 64)):
            case = Case("sequence", cell, "fwdbwd", (T, 4, 8, 8))
            for peer, speed in (("torch.nn", 1.0), ("fusedrnn", 0.4 + i / 2)):
                samples = [1e-3 * T / 16 / speed * (1 + j / 100) for j in range(8)]
                run.rows.append(
                    Row(case, peer, "ok", "", samples, {}, 1e-7, 5e-7, 3 * 2**20, case.flops(),
                        peer == "fusedrnn", peer == "torch.nn",
                        goal=1.2 if peer == "fusedrnn" else None)
                )  # fmt: skip
    run.rows.append(Row(case, "haste", "unsupported", "not <installed>"))
    run.rows.append(Row(case, "oneDNN", "out of memory", "no room"))
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    made_up().save(folder / "run.json")
    assert main(["report", str(folder / "run.json"), "-o", str(folder / "page.html")]) == 0
    return folder / "page.html"


def test_page_is_one_file_that_names_no_other(page):
    text = page.read_text()
    assert not re.search(r"https?://|@import|src=", text)
    assert re.findall(r'href="([^"]*)"', text) == ["data:,"]
    assert "<b>chip" not in text and "not <installed>" not in text


def test_page_shows_what_was_lost_first(page):
    text = page.read_text()
    assert text.index("Slower than the fastest peer in 4 of 6 cases") < text.index("Goals met")
    for head in ("Speed-up", "Growth", "Ceilings, errors, memory", "Every row"):
        assert f"<h2>{head}</h2>" in text
    assert text.count("--shape T=16,B=4,I=8,H=8 --peer fusedrnn") == 2
    assert "out of memory" in text
    assert "<dt>torch.nn</dt><dd>input product, recurrence, all gradients" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_page_in_a_browser_sorts_filters_and_asks_for_nothing(page, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--dump-dom", f"file://{probe}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert len(seen["before"]) == 12
    assert seen["up"] == sorted(seen["before"]) == seen["down"][::-1] != seen["before"]
    assert seen["count"] == "3 of 14 rows" and len(seen["found"]) == 3
    assert all("gru" in text for text in seen["found"])
    assert seen["asked"] == []


# -- the docs


def test_tables_and_figures_of_the_docs_are_those_of_the_results():
    assert [path.name for path in markdown.stale()] == [], "run: python -m benchmarks tables"


def test_every_marker_is_known_and_closed():
    for page_path in markdown.PAGES:
        text = page_path.read_text()
        opened = re.findall(r"<!-- benchmarks: ([\w-]+) -->", text)
        assert text.count("<!-- /benchmarks -->") == len(opened)
        assert set(opened) <= set(markdown.TABLES)


def test_a_changed_table_is_noticed():
    marked = "<!-- benchmarks: layers -->\nold\n<!-- /benchmarks -->"
    assert "old" not in markdown.rendered(marked)
    assert markdown.rendered(markdown.rendered(marked)) == markdown.rendered(marked)


def test_tables_have_the_ratios_of_the_rows():
    run = made_up()
    text = markdown.others(run) + markdown.layers(run)
    assert "abc" in text and "2026-01-02" in text


def test_a_figure_is_a_file_of_its_own(page):
    figure = re.search(r"<svg viewBox.*?</svg>", page.read_text(), re.DOTALL)[0]
    alone = markdown.standalone(figure)
    from xml.etree import ElementTree

    assert ElementTree.fromstring(alone).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme" in alone


# -- the language-model command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small trainings through the command line: each cell, and the table of classes."""
    folder = tmp_path_factory.mktemp("lm")
    words = "the of and to in a is that for it as was with be by on not he his but".split()
    generator = torch.Generator().manual_seed(1)
    picks = (torch.rand(4000, generator=generator) ** 2 * len(words)).long().tolist()
    (folder / "text.txt").write_text(" ".join(words[i] for i in picks))
    common = ["--corpus", str(folder / "text.txt"), "--hidden", "8", "--batch", "4", "--bptt", "7"]
    common += ["--epochs", "0.3", "--device", "cpu"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = ["lm", *common, "--cells", "lstm,rnn", "--outputs", "full,4,huffman"]
        assert main([*plain, "--out", str(folder / "lm.json")]) == 0
        table3 = ["lm", *common, "--table3", "--outputs", "2,4,full"]
        assert main([*table3, "--out", str(folder / "table3.json")]) == 0
    finally:
        torch.set_num_threads(before)
    return folder


def test_lm_trains_every_cell_with_every_output_layer(trained):
    found = load(trained / "lm.json").lm
    rows = [(row["recurrence"], row["output"]) for row in found["rows"]]
    want = []
    for name in ("LSTM", "RNN"):
        want.append((f"torch.nn.{name}", "full softmax"))
        want += [(f"fusedrnn.{name}", o) for o in ("full softmax", "4 classes", "Huffman")]
    assert rows == want
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0 and 1 < row["perplexity"] < found["words"]


def test_the_full_softmax_learns_the_same_under_both_recurrences(trained):
    rows = load(trained / "lm.json").lm["rows"]
    full = {row["recurrence"]: row["perplexity"] for row in rows if row["output"] == "full softmax"}
    assert full["torch.nn.LSTM"] == pytest.approx(full["fusedrnn.LSTM"], rel=1e-3)


def test_table3_is_drawn_and_told(trained, tmp_path):
    run = load(trained / "table3.json")
    assert [row["output"] for row in run.lm["rows"]] == ["2 classes", "4 classes", "full softmax"]
    heads, *body = command_lm.table(run.lm)
    assert [line[heads.index("x full")] for line in body][-1] == "1.0"
    out = tmp_path / "page.html"
    assert main(["report", str(trained / "table3.json"), "-o", str(out)]) == 0
    text = out.read_text()
    assert "<h2>Perplexity against speed</h2>" in text and "Slower than" not in text
    assert "<td>2 classes</td>" in text


def test_the_folder_of_a_corpus_is_not_recorded(trained):
    assert "--corpus text.txt --hidden" in load(trained / "lm.json").command


def test_goals_of_the_language_model_are_told():
    row = {"recurrence": "fusedrnn.RNN", "output": "100 classes", "tokens_per_second": 50_000.0}
    full = row | {"output": "full softmax", "tokens_per_second": 10_000.0}
    found = {"rows": [row, full], "settings": {"hidden": 200}}
    (line,) = command_lm.goals(found)
    assert "goal 40,000: met" in line and "5.0 times the full softmax (goal 10: MISSED)" in line
