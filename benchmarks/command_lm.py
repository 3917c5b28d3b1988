"""``lm``: trains word-level language models, for each cell and output layer: tokens/s, perplexity.

All rows read the same words in the same order, from the same initial weights where they have the
same parameters, and take turns of ten steps. Plain SGD, which takes row-sparse gradients: embedding
and hierarchical output layers have those, the full softmax has the dense ones it needs.
"""

import argparse
import shlex
import time
from pathlib import Path

import torch

from . import corpus as corpora
from . import environment, lm, lm_time
from .case import CaseError
from .command_run import kept, several
from .demo import Run as Training
from .demo import UsageError, chosen_device, positive, train
from .quiet import Others
from .results import FOLDER, Run

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
FULL = "full softmax"
TABLE3 = ("30", "100", "400", "1000", "4000", "full")
GOAL_SPEED, GOAL_RATIO = 40_000, 10  # two cores, V = 10,000, 100 classes, 200 hidden units


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``lm``."""
    add = parser.add_argument
    add("--corpus", metavar="PATH", help="a UTF-8 text (default: CPython's language reference)")
    add("--cells", type=several, metavar="NAMES", help=f"of {', '.join(CELLS)} (default: all)")
    add("--outputs", type=several, metavar="NAMES", help="full, huffman, or a number of classes "
        "(default: full,100,huffman)")  # fmt: skip
    add("--table3", action="store_true", help="the classes of Mikolov et al. 2011, table 3, "
        "with one cell (default: rnn)")  # fmt: skip
    add("--vocabulary", type=positive, default=10_000, help="words (default: 10000)")
    add("--hidden", type=positive, default=200, help="width of the model (default: 200)")
    add("--batch", type=positive, default=20, help="columns of text (default: 20)")
    add("--bptt", type=positive, default=35, help="steps of back-propagation (default: 35)")
    add("--epochs", type=float, default=1.0, help="of every row (default: 1)")
    add("--minutes", type=float, default=15, help="stop all rows evenly after this (default: 15)")
    add("--lr", type=float, default=10.0, help="of SGD, falling evenly to 0 (default: 10)")
    add("--clip", type=float, default=0.25, help="the gradients' largest norm (default: 0.25)")
    add("--dense", action="store_true", help="dense gradients everywhere")
    add("--seed", type=int, default=1, help="of the initial weights (default: 1)")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    add("--out", type=Path, metavar="FILE.json", help="default: bench-lm.json or bench-table3.json")
    add("--record", action="store_true", help="into benchmarks/results, see run --help")


def output_name(text: str) -> str:
    """``full``, ``huffman`` or a number as ``lm.output_layer`` names it.

    Raises:
        CaseError: it is none of these.
    """
    names = {"full": FULL, "huffman": "Huffman", "two-level": "two-level"}
    if text.lower() in names:
        return names[text.lower()]
    if text.isdecimal() and int(text) > 1:
        return f"{int(text)} classes"
    raise CaseError(f"--outputs {text}: write full, huffman, two-level or a number of classes")


def chosen_rows(options: argparse.Namespace) -> list[lm_time.Row]:
    """Each cell with each output layer; beside the full ones torch.nn's recurrence."""
    cells = options.cells or (["rnn"] if options.table3 else list(CELLS))
    outputs = options.outputs or (TABLE3 if options.table3 else ("full", "100", "huffman"))
    for cell in cells:
        if cell not in CELLS:
            raise CaseError(f"--cells {cell}: there is none; known are {', '.join(CELLS)}")
    rows = []
    for cell in cells:
        for output in map(output_name, outputs):
            if output == FULL and not options.table3:
                rows.append(lm_time.Row(f"torch.nn.{CELLS[cell]}", output))
            rows.append(lm_time.Row(f"fusedrnn.{CELLS[cell]}", output))
    return rows


def trainer(
    row: lm_time.Row, corpus: corpora.Corpus, options: argparse.Namespace, device: torch.device,
    steps: int, weights: dict[str, dict],
) -> lm.Trainer:  # fmt: skip
    """A row's model, with the initial weights of those rows that have the same parameters."""
    torch.manual_seed(options.seed)
    model = lm.LanguageModel(
        corpus.counts, row.recurrence, row.output, hidden=options.hidden, sparse=not options.dense
    )
    key = f"{row.recurrence.rpartition('.')[2]} {row.output}"
    model.load_state_dict(weights.setdefault(key, model.state_dict()))
    return lm.Trainer(
        model.to(device), corpus.train, batch=options.batch, bptt=options.bptt, lr=options.lr,
        steps=steps, clip=options.clip, optimizer=torch.optim.SGD,
    )  # fmt: skip


def content(training: Training, options: argparse.Namespace) -> dict[str, object]:
    """What the JSON holds of it."""
    corpus = training.corpus
    settings = ("hidden", "batch", "bptt", "lr", "clip", "seed", "dense")
    rows = []
    for row in training.rows:
        if row.turns and row.perplexity is not None:
            low, high = row.quartiles
            per_step = row.seconds_per_step
            speed = row.tokens_per_second
            rows.append(
                {
                    "recurrence": row.recurrence,
                    "output": row.output,
                    "tokens_per_second": round(speed, 1),
                    "spread": round((high - low) / 1e3 / per_step, 4),
                    "seconds_per_epoch": round(len(corpus.train) / speed, 2),
                    "perplexity": round(row.perplexity, 3),
                    "steps": row.steps,
                    "milliseconds": {part: round(row.ms(part), 4) for part in lm_time.PARTS},
                }
            )
    return {
        "corpus": corpus.name,
        "words": len(corpus.words),
        "train_tokens": len(corpus.train),
        "settings": {name: getattr(options, name) for name in settings},
        "note": training.note,
        "rows": rows,
    }


def table(found: dict) -> list[list[str]]:
    """Heads and cells; ratios are to our recurrence with the full softmax."""
    heads = ["recurrence", "output layer", "tokens/s", "x full", "s/epoch", "perplexity"]
    heads += ["recur.", "output", "rest"]
    full = {r["recurrence"].rpartition(".")[2]: r for r in found["rows"]
            if r["output"] == FULL and r["recurrence"].startswith("fusedrnn")}  # fmt: skip
    body = [heads]
    for r in found["rows"]:
        base = full.get(r["recurrence"].rpartition(".")[2])
        ratio = f"{r['tokens_per_second'] / base['tokens_per_second']:.1f}" if base else ""
        line = [r["recurrence"], r["output"], f"{r['tokens_per_second']:,.0f}", ratio]
        line += [f"{r['seconds_per_epoch']:.1f}", f"{r['perplexity']:.1f}"]
        body.append([*line, *(f"{ms:.1f}" for ms in r["milliseconds"].values())])
    return body


def goals(found: dict) -> list[str]:
    """The goals for V = 10,000, 100 classes, 200 hidden units on two cores, and what came out."""
    full = {r["recurrence"]: r["tokens_per_second"] for r in found["rows"] if r["output"] == FULL}
    text = []
    for r in found["rows"]:
        if r["output"] == "100 classes" and found["settings"]["hidden"] == 200:
            speed, base = r["tokens_per_second"], full.get(r["recurrence"])
            line = f"{r['recurrence']}, 100 classes: {speed:,.0f} tokens/s"
            line += f" (goal {GOAL_SPEED:,}: {'met' if speed >= GOAL_SPEED else 'MISSED'})"
            if base:
                line += f", {speed / base:.1f} times the full softmax (goal {GOAL_RATIO}: "
                line += "met)" if speed / base >= GOAL_RATIO else "MISSED)"
            text.append(line)
    return text


def main(options: argparse.Namespace) -> int:
    """Train, print, write the JSON."""
    rows = chosen_rows(options)
    try:
        corpus, device = read(options), chosen_device(options.device)
    except (UsageError, corpora.CorpusError) as error:
        raise CaseError(str(error)) from error
    columns = (len(corpus.train) - 1) // options.batch
    if columns < 1:
        raise CaseError(f"--batch {options.batch}: too many columns for {corpus.name}; take fewer")
    steps = max(1, round(options.epochs * columns / options.bptt))
    weights: dict[str, dict] = {}
    trainers = [trainer(row, corpus, options, device, steps, weights) for row in rows]
    suite = "table3" if options.table3 else "lm"
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run = Run(suite, created, typed(options), environment.describe(device.type))
    facts = run.environment
    if options.record and facts["dirty"]:
        raise CaseError("--record names the file after the commit: commit your changes first")
    print(f"{corpus.name}: {len(corpus.train):,} training tokens, V = {len(corpus.words):,}; "
          f"{steps:,} steps of {options.batch} x {options.bptt} for each of {len(rows)} rows; "
          f"{facts['threads']} threads", flush=True)  # fmt: skip
    training, others = Training(corpus, rows, trainers, steps), Others()
    try:
        train(training, options.minutes)
    except KeyboardInterrupt:
        training.note = "interrupted"
        return 130
    run.lm = content(training, options)
    run.environment |= {"clock_at_end": environment.clock(), "others": others.share()}
    name = f"{created[:10]}-{facts['commit']}-{suite}.json"
    recorded = FOLDER / str(facts["slug"]) / name
    out = recorded if options.record else options.out or Path(f"bench-{suite}.json")
    run.save(out)
    show(run)
    stays = kept(run, out, options.record)
    print(f"\nEverything measured: {stays}")
    if options.record and stays == out:
        from . import markdown

        markdown.update()
    return int(stays != out)


def read(options: argparse.Namespace) -> corpora.Corpus:
    """The corpus that was asked for."""
    if options.corpus:
        name, text = Path(options.corpus).name, corpora.read_text(options.corpus)
    else:
        name, text = "CPython's language reference", corpora.reference_text()
    return corpora.build(name, text, size=options.vocabulary)


def typed(options: argparse.Namespace) -> str:
    """The command without the folder of the corpus: it goes into the results, and the docs."""
    if not options.corpus:
        return options.typed
    path, name = (shlex.quote(text) for text in (options.corpus, Path(options.corpus).name))
    return options.typed.replace(path, name)


def show(run: Run) -> None:
    """The table and the goals."""
    body = table(run.lm)
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    for line in body:
        left = [c.ljust(w) for c, w in zip(line[:2], widths[:2], strict=True)]
        right = [c.rjust(w) for c, w in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(left + right).rstrip())
    print("\nmilliseconds per step: recurrence, output layer (both forward and backward), the rest")
    for line in filter(None, [*goals(run.lm), run.lm["note"]]):
        print(line)
