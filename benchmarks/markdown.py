"""The tables and figures of README and docs, made from the recorded results.

A table stands between two comments, ``<!-- benchmarks: NAME -->`` and ``<!-- /benchmarks -->``;
what is between them is replaced. ``TABLES`` has the names.
"""

import re
from collections.abc import Callable
from pathlib import Path

from . import command_lm, report_plots
from .case import WORD_OPS, Case
from .environment import ROOT
from .report_page import DEFS
from .results import Row, Run, load, newest, ratio
from .suites import SHAPES, TORCH_CELLS
from .svg import STYLE
from .table import noise, summary, within_noise

PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
FIGURES = ROOT / "docs" / "figures"
MARKED = re.compile(r"(<!-- benchmarks: ([\w-]+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
NAMES = {"gru": "GRU", "lstm": "LSTM", "rnn_tanh": "RNN tanh"}
TASKS = {"softmax": "loss", "log_prob": "all words scored", "topk": "ten best words"}


def grid(heads: list[str], body: list[list[str]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *body))


def _ms(row: Row) -> str:
    return f"{row.median * 1e3:.3g}"


def _pair(run: Run, case: Case) -> tuple[Row, Row, list[Row]] | None:
    """Baseline, ours, and all rows of a case, where both were timed."""
    rows = [row for row in run.rows if row.case == case and row.status == "ok"]
    base = next((row for row in rows if row.baseline), None)
    mine = next((row for row in rows if row.ours and not row.twin), None)
    return (base, mine, rows) if base and mine else None


def speed(base: Row, row: Row, rows: list[Row]) -> str:
    """The ratio as text, ~ where it is within the noise."""
    point, low, high = ratio(base.samples, row.samples)
    return f"{'~' * within_noise(point, low, high, noise(rows))}{point:.2f}x"


def source(run: Run) -> str:
    """Where a table's figures come from."""
    e = run.environment
    return (
        f"{e.get('gpu') or e['processor']}, {e['threads']} threads, float32, torch {e['torch']}, "
        f"commit {e['commit']}, {run.created[:10]}"
    )


def layers(run: Run) -> str:
    """The five shapes: torch's time, ours, and the ratio, for training and inference."""
    heads = ["T, B, I, H"]
    heads += [f"{NAMES[c]} {mode}" for mode in ("training", "inference") for c in TORCH_CELLS]
    body = []
    for shape in SHAPES:
        line = [", ".join(map(str, shape))]
        for mode in ("fwdbwd", "infer"):
            for cell in TORCH_CELLS:
                pair = _pair(run, Case("sequence", cell, mode, shape))
                line.append("-" if pair is None else f"{_ms(pair[1])} ({speed(*pair)})")
        body.append(line)
    note = "Milliseconds of fusedrnn, and how many times as fast as torch.nn."
    return f"{grid(heads, body)}\n\n{note} {source(run)}."


def outputs(run: Run) -> str:
    """Training steps of output layers beside the full softmax."""
    plain = ("fwdbwd", "zipf", "random")
    return _of_words(run, lambda case: (case.mode, case.counts, case.inputs) == plain)


def scores(run: Run) -> str:
    """Other words and inputs, and inference."""
    plain = ("fwdbwd", "zipf", "random")
    return _of_words(run, lambda case: (case.mode, case.counts, case.inputs) != plain)


def _of_words(run: Run, wanted: Callable[[Case], bool]) -> str:
    """A line for each timed row of the wanted cases."""
    body = []
    for case, rows in run.by_case():
        base = next((row for row in rows if row.baseline), None)
        if case.op not in WORD_OPS or not wanted(case) or not base:
            continue
        V, H, N = case.shape
        sizes = f"V = {V:,}, H = {H}, N = {N:,}"
        what = ", ".join(filter(None, (f"{TASKS[case.op]}: {sizes}", case.options)))
        for row in rows:
            if row.status == "ok" and not row.twin:
                again = "1" if row is base else speed(base, row, rows)
                loss = "" if row.loss is None else f"{row.loss:.2f}"
                memory = "" if row.peak is None else f"{row.peak / 2**20:.0f} MiB"
                body.append([what, row.peer, _ms(row), again, loss, memory])
    heads = ["case", "output layer", "ms", "speed-up", "loss", "memory"]
    return f"{grid(heads, body)}\n\n{source(run)}."


def others(run: Run) -> str:
    """What torch.nn has not, or not fast: variants, lengths, step-by-step decoding."""
    body = []
    for case, rows in run.by_case():
        special = case.options or case.cell not in TORCH_CELLS or case.op == "decode"
        mine = next((r for r in rows if r.ours and r.status == "ok" and not r.twin), None)
        if case.op in WORD_OPS or not special or mine is None:
            continue
        base = next((row for row in rows if row.baseline), None)
        value = (
            f"{mine.median / case.shape[0] * 1e6:.1f} us a step"
            if case.op == "decode"
            else f"{_ms(mine)} ms"
        )
        body.append(
            [case.name, value, speed(base, mine, rows) if base and base is not mine else "-"]
        )
    heads = ["case (T, B, I, H)", "fusedrnn", "beside torch.nn"]
    return f"{grid(heads, body)}\n\n{source(run)}."


def sentences(run: Run) -> str:
    """The run's own summary."""
    return "```text\n" + "\n".join(summary(run)) + "\n```"


def language_models(run: Run) -> str:
    """Tokens per second and perplexity."""
    heads, *body = command_lm.table(run.lm)
    found = run.lm
    settings = "batch {batch} x {bptt} steps, H = {hidden}".format_map(found["settings"])
    note = f"{found['corpus']}, {found['train_tokens']:,} training tokens, V = {found['words']:,}"
    note = f"{note}; {settings}; {source(run)}. `{run.command}`"
    reached = "".join(f"\n- {line}" for line in [*command_lm.goals(found), found["note"]] if line)
    return f"{grid(heads, body)}\n\n{note}\n{reached}"


def trade_off(run: Run) -> str:
    """The same with its drawing."""
    drawn = "![Perplexity against tokens per second](figures/table3.svg)"
    return f"{language_models(run)}\n\n{drawn}"


TABLES: dict[str, tuple[str, Callable[[Run], str]]] = {
    "layers": ("cpu", layers),
    "outputs": ("cpu", outputs),
    "scores": ("softmax", scores),
    "others": ("cpu", others),
    "summary": ("cpu", sentences),
    "lm": ("lm", language_models),
    "table3": ("table3", trade_off),
}
"""For each name, the suite whose newest recorded run it is made from, and how."""


def rendered(page: str) -> str:
    """A page with its tables brought up to date."""

    def table(found: re.Match) -> str:
        suite, make = TABLES[found[2]]
        path = newest(suite)
        text = make(load(path)) if path else f"No run of {suite} is recorded yet."
        return f"{found[1]}{text}\n{found[3]}"

    return MARKED.sub(table, page)


def standalone(figure: str) -> str:
    """An SVG of the report as a file of its own, with the colours of light and dark."""
    style = (
        STYLE[: STYLE.index("* {")] + "svg { font: 12.5px system-ui, sans-serif; fill: var(--ink); "
    )
    style += (
        "background: var(--paper); }"
        + STYLE[STYLE.index(".axis") :]
        + ".goal { stroke: var(--ink); stroke-width: 2.5; }"
    )
    inside = f"<style>{style}</style>{DEFS[DEFS.index('<defs>') : DEFS.index('</svg>')]}"
    head, _, rest = figure.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{inside}{rest}\n'


def figures() -> dict[Path, str]:
    """The drawings of the docs, by file."""
    found: dict[Path, str] = {}
    if path := newest("cpu"):
        run = load(path)
        chosen = [(c, r) for c, r in run.by_case() if c.op == "sequence" and c.shape in SHAPES
                  and c.mode == "fwdbwd" and not c.options and c.cell in TORCH_CELLS]  # fmt: skip
        found[FIGURES / "cpu-layers.svg"] = standalone(report_plots.speedups(chosen))
        for axis in "TBH":
            for title, cases in report_plots.series(run, axis):
                if title.startswith("gru fwdbwd"):
                    found[FIGURES / f"cpu-gru-{axis}.svg"] = standalone(
                        report_plots.growth(run, axis, cases)
                    )
    if path := newest("table3"):
        found[FIGURES / "table3.svg"] = standalone(report_plots.trade_off(load(path)))
    return found


def stale() -> list[Path]:
    """The pages and figures that differ from what the results say."""
    wanted = {page: rendered(page.read_text()) for page in PAGES} | figures()
    return [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]


def update() -> list[Path]:
    """Bring them up to date; returns those that changed."""
    changed = stale()
    wanted = {page: rendered(page.read_text()) for page in PAGES} | figures()
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    return changed
