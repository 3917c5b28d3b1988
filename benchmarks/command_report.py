"""``report``: one self-contained HTML page of one or more results."""

import argparse
import re
from html import escape
from itertools import groupby
from pathlib import Path

from . import command_lm
from . import report_page as pages
from . import report_plots as plots
from .case import MODES
from .peers import PEERS
from .results import Run, load
from .table import LEGEND, not_timed, summary

SPEED_NOTE = (
    "Bars start at 1x, the baseline (torch.nn, or linear and cross_entropy); striped ones are "
    "slower than it. Whiskers span the 95% interval; an upright mark is a goal that was set."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``."""
    parser.add_argument("files", nargs="+", metavar="FILE.json", help="results of run or lm")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-report.html"), metavar="PAGE")


def paragraphs(run: Run) -> str:
    """The summary: a list where lines start with blanks."""
    text = []
    for listed, lines in groupby(summary(run), key=lambda line: line.startswith("  ")):
        tag = "li" if listed else "p"
        inner = "\n".join(f"<{tag}>{escape(line.strip())}</{tag}>" for line in lines)
        text.append(f'<ul class="losses">{inner}</ul>' if listed else inner)
    return "\n".join(text)


def section(title: str, note: str, *figures: str) -> str:
    """Figures side by side under a heading; nothing where there are none."""
    shown = "".join(f"<div>{figure}</div>" for figure in figures if figure)
    if not shown:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section><h2>{escape(title)}</h2>{note}<div class="plots">{shown}</div></section>'


def clouds(run: Run) -> list[str]:
    """The drawings with a point for each row, under their heads."""
    figures = {
        "GFLOP/s below what the machine can do (the line)": plots.roofline(run),
        "Error beside speed; 100% is what the error rule allows": plots.errors(run),
        "Memory; below the line: less than the baseline": plots.memory(run),
    }
    return [f"<h3>{escape(head)}</h3>{figure}" for head, figure in figures.items() if figure]


def trained(run: Run) -> str:
    """All sections of a run of ``lm``."""
    heads, *body = command_lm.table(run.lm)
    lines = [*command_lm.goals(run.lm), str(run.lm["note"])]
    told = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    rows = ("".join(f"<td>{escape(word)}</td>" for word in line) for line in body)
    table = f"<tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows)
    note = "Milliseconds of a step: recurrence, output layer, the rest."
    return "\n".join(
        (
            told,
            pages.facts(run),
            section("Perplexity against speed", "", plots.trade_off(run)),
            f'<section><h2>Every row</h2><p class="note">{note}</p>'
            f'<div class="scroll"><table>{table}</table></div></section>',
        )
    )


def sides(run: Run) -> str:
    """What each peer's timed call computes."""
    names = dict.fromkeys(row.peer for row in run.rows if row.status == "ok" and row.peer in PEERS)
    listed = "".join(f"<dt>{escape(n)}</dt><dd>{escape(PEERS[n].what)}</dd>" for n in names)
    return f"<section><h2>What each side computes</h2><dl>{listed}</dl></section>"


def one(run: Run) -> str:
    """All sections of one run."""
    head = f"<h2>{escape(run.suite)} on {escape(str(run.environment.get('slug')))}</h2>"
    return head + (trained(run) if run.lm else measured(run))


def measured(run: Run) -> str:
    """All sections of a run of ``run``."""
    groups = list(run.by_case())
    speed = []
    for op in dict.fromkeys(case.op for case, _ in groups):
        for mode, meaning in MODES.items():
            chosen = [(c, r) for c, r in groups if (c.op, c.mode) == (op, mode)]
            if figure := plots.speedups(chosen):
                speed.append(f"<h3>{op}: {escape(meaning)}</h3>{figure}")
    curves = [
        f"<h3>{escape(title)}</h3>{plots.growth(run, axis, cases)}"
        for axis in "TBH"
        for title, cases in plots.series(run, axis)
    ]
    missing = "".join(f"<li>{escape(line)}</li>" for line in not_timed(run))
    legend = re.sub(r"(?m)^(\S+)  +", r"<br><b>\1</b> ", escape(LEGEND)).removeprefix("<br>")
    return "\n".join(
        (
            paragraphs(run),
            pages.facts(run),
            section("Speed-up", SPEED_NOTE, *speed),
            section("Growth", "Both scales logarithmic: a straight line is a power.", *curves),
            section("Ceilings, errors, memory", "Each point is a row.", *clouds(run)),
            f'<section><h2>Every row</h2><p class="note">{legend}</p>{pages.table(run)}'
            f"<ul>{missing}</ul></section>",
            sides(run),
        )
    )


def main(options: argparse.Namespace) -> int:
    """Write the page."""
    runs = [load(path) for path in options.files]
    body = "\n".join(one(run) for run in runs)
    title = f"fusedrnn beside its peers: {', '.join(dict.fromkeys(run.suite for run in runs))}"
    options.out.write_text(pages.page(title, body), encoding="utf-8")
    print(f"{options.out}: results of {len(runs)} runs, {sum(len(r.rows) for r in runs)} rows")
    return 0
