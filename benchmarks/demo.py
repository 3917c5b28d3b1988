"""Six language models, of two recurrences and three output layers: `python -m benchmarks.demo`.

Prints a table and writes one self-contained page. All rows start from the same weights, read the
same words in the same order, and take turns, ten steps each, so that a machine that slows down
slows all of them.
"""

import argparse
import platform
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fusedrnn

from . import corpus as corpora
from . import demo_page
from .environment import cores, processor
from .lm import FUSED, OUTPUTS, RECURRENCES, TORCH, LanguageModel, Trainer, backends
from .lm_time import PARTS, Row
from .progress import Progress

TURN = 10  # steps of a row before the next row's turn

# The longest training, as words scored: a token costs V scores in the full rows, and what 7,000
# more would in all else. 3e9 take two to three minutes on two cores.
WORK, OVERHEAD = 3_000_000_000, 7_000
EPOCHS = 4  # beyond these the smaller texts are learnt by heart

LR, CLIP = 4e-3, 1.0

SPLIT = (
    "ms/step = recur. + output + rest: the recurrence and the output layer, forward and backward, "
    "and the embedding, clipping and optimizer. val. ppl: perplexity of the validation text."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    add = cli.add_argument
    add("--corpus", metavar="PATH", help="a UTF-8 text (default: CPython's language reference)")
    add("--out", metavar="PATH", default="demo.html", help="the page to write (default: demo.html)")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    add(
        "--tokens",
        type=positive,
        help="training tokens per row (default: about two minutes' worth)",
    )
    add("--minutes", type=float, default=3, help="stop all rows evenly after this (default: 3)")
    add("--hidden", type=positive, default=200, help="width of the model (default: 200)")
    add("--batch", type=positive, default=20, help="columns of text (default: 20)")
    add("--bptt", type=positive, default=35, help="steps of back-propagation (default: 35)")
    add("--seed", type=int, default=1, help="of the initial weights (default: 1)")
    return cli


def positive(text: str) -> int:
    """An argument that must be a whole number above 0."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


class UsageError(ValueError):
    """The command cannot run as asked; the message says why and what to do."""


def chosen_device(name: str | None) -> torch.device:
    """The device asked for, else the GPU where there is one.

    Raises:
        UsageError: it is not there, or the backend asked for cannot run on it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; leave --device out")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        backends(device)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    return device


@dataclass
class Run:
    """All rows with their trainers, and what is the same for all."""

    corpus: corpora.Corpus
    rows: list[Row]
    trainers: list[Trainer]
    steps: int
    note: str = ""


def planned_tokens(corpus: corpora.Corpus) -> int:
    """Training tokens per row: the same on every machine, for the same text."""
    work = WORK // (len(corpus.words) + OVERHEAD)
    return min(EPOCHS * (len(corpus.train) - 1), work)


def prepare(corpus: corpora.Corpus, options: argparse.Namespace, device: torch.device) -> Run:
    """Build every row's model, each pair of recurrences with the very same initial weights."""
    wanted = options.tokens or planned_tokens(corpus)
    run = Run(corpus, [], [], steps=max(1, wanted // (options.batch * options.bptt)))
    for output in OUTPUTS:
        weights = None
        for recurrence in RECURRENCES:
            torch.manual_seed(options.seed)
            model = LanguageModel(corpus.counts, recurrence, output, hidden=options.hidden)
            weights = weights or model.state_dict()
            model.load_state_dict(weights)
            trainer = Trainer(
                model.to(device),
                corpus.train,
                batch=options.batch,
                bptt=options.bptt,
                lr=LR,
                steps=run.steps,
                clip=CLIP,
            )
            run.rows.append(Row(recurrence, output))
            run.trainers.append(trainer)
    return run


def train(run: Run, minutes: float) -> None:
    """Train all rows by turns, then evaluate; stop all at the same step when the time is over."""
    turns = -(-run.steps // TURN)
    progress = Progress(turns * len(run.rows))
    deadline = time.perf_counter() + 60 * minutes
    try:
        for row, trainer in zip(run.rows, run.trainers, strict=True):
            progress.show(f"warm-up of {row.name}")
            trainer.warm_up()
        start = time.perf_counter()
        for turn in range(turns):
            now = time.perf_counter()
            if turn and now + (now - start) / turn > deadline:  # the next turns would pass it
                done = run.rows[0].steps
                run.note = (
                    f"The limit of {minutes:g} minutes stopped every row at step {done:,} "
                    f"of {run.steps:,}."
                )
                break
            for row, trainer in zip(run.rows, run.trainers, strict=True):
                row.turns.append(trainer.train(min(TURN, run.steps - turn * TURN)))
                loss = row.turns[-1].loss
                progress.advance(
                    f"step {row.steps:,}/{run.steps:,}  {row.name}: loss {loss:.3f}",
                    min(remaining(run.rows, run.steps), deadline - time.perf_counter()),
                )
        for row, trainer in zip(run.rows, run.trainers, strict=True):
            progress.show(f"perplexity of {row.name}")
            row.perplexity = trainer.perplexity(run.corpus.valid)
    finally:
        progress.close()


def remaining(rows: list[Row], steps: int) -> float:
    """Seconds of training to come; a row not yet measured counts as the mean of the others."""
    known = [row.seconds_per_step for row in rows if row.turns]
    mean = sum(known) / len(known)
    return sum((steps - r.steps) * (r.seconds_per_step if r.turns else mean) for r in rows)


def difference(row: Row, rows: Sequence[Row]) -> str:
    """The perplexity of a row less that of torch's recurrence with the same output layer."""
    if row.recurrence == TORCH:
        return ""
    peer = next(r for r in rows if r.recurrence == TORCH and r.output == row.output)
    if row.perplexity is None or peer.perplexity is None:
        return "-"
    return f"{row.perplexity - peer.perplexity:+.1e}"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells, for the terminal and for the page."""
    heads = ["recurrence", "output layer", "tokens/s", "speed-up", "ms/step"]
    heads += ["recur.", "output", "rest", "val. ppl", "vs torch"]
    cells = []
    for row in rows:
        if not row.turns:
            cells.append([row.recurrence, row.output, *["-"] * 8])
            continue
        parts = [row.ms(part) for part in PARTS]
        speed = row.tokens_per_second
        line = [row.recurrence, row.output, f"{speed:,.0f}"]
        line += [f"{speed / rows[0].tokens_per_second:.2f}x", f"{sum(parts):.1f}"]
        line += [f"{ms:.1f}" for ms in parts]
        line += ["-" if row.perplexity is None else f"{row.perplexity:.3f}", difference(row, rows)]
        cells.append(line)
    return heads, cells


def summary(rows: Sequence[Row]) -> str:
    """What came out, in two sentences."""
    ratios, gaps = [], []
    for output in OUTPUTS:
        torch_row, our_row = (
            next(r for r in rows if (r.recurrence, r.output) == (name, output))
            for name in (TORCH, FUSED)
        )
        ratio = our_row.tokens_per_second / torch_row.tokens_per_second
        ratios.append(f"{ratio:.2f} times with {output}")
        gaps.append(abs(our_row.perplexity - torch_row.perplexity) / torch_row.perplexity)
    best = max(rows, key=lambda row: row.tokens_per_second)
    gain = best.tokens_per_second / rows[0].tokens_per_second
    return (
        f"Tokens per second of {FUSED} over {TORCH}: {', '.join(ratios)}. The fastest row, "
        f"{best.name}, reaches {gain:.2f} times row 1. Perplexities of {FUSED} and {TORCH} differ "
        f"by {max(gaps):.1e} of their value at most."
    )


def print_table(rows: Sequence[Row]) -> None:
    """The table, aligned: names to the left, numbers to the right."""
    heads, cells = table(rows)
    widths = [max(len(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    for line in (heads, *cells):
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(names + numbers).rstrip())


def print_wrapped(text: str, head: str = "") -> None:
    """A paragraph in 98 columns, its further lines below the first one's text."""
    print(textwrap.fill(text, 98, initial_indent=head, subsequent_indent=" " * len(head)))


def environment(run: Run, options: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    corpus = run.corpus
    name = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type}, {name}",
        "threads": f"{torch.get_num_threads()} of torch, {cores()} cores",
        "software": f"torch {torch.__version__}, fusedrnn {fusedrnn.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "corpus": f"{corpus.name}: {len(corpus.train):,} training tokens, "
        f"{len(corpus.valid):,} validation tokens, V = {len(corpus.words):,}",
        "model": f"embedding, one LSTM layer, output layer; H = {options.hidden}; "
        f"batch {options.batch} x {options.bptt} steps of back-propagation, state carried on",
        "training": f"Adam, lr {LR:g} falling evenly to 0, gradients clipped at norm {CLIP:g}, "
        f"float32, seed {options.seed}",
        "backends": "; ".join(f"{name}: {why}" for name, why in backends(device).items()),
    }


def workload(run: Run, options: argparse.Namespace) -> str:
    """How much each row trains, in one line."""
    tokens = run.steps * options.batch * options.bptt
    share = tokens / len(run.corpus.train)
    cut = " (cut to keep to the time, the same for every row)" if share < 1 else ""
    return f"{run.steps:,} steps, {tokens:,} tokens, {share:.2f} of the training text{cut}"


def measure(options: argparse.Namespace, command: str) -> int:
    """Train, print, write the page; returns the exit status."""
    if options.corpus:
        name, text = Path(options.corpus).name, corpora.read_text(options.corpus)
    else:
        name, text = "CPython's language reference", corpora.reference_text()
    corpus = corpora.build(name, text)
    if len(corpus.train) <= options.batch:
        raise UsageError(f"--batch {options.batch}: too many columns for {name}; take fewer")
    device = chosen_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 for both, as cuBLAS already does
    run = prepare(corpus, options, device)
    facts = environment(run, options, device) | {"each row": workload(run, options)}
    for key, value in facts.items():
        print_wrapped(value, f"{key:<9} ")
    print(flush=True)
    try:
        train(run, options.minutes)
    except KeyboardInterrupt:
        print("interrupted; measured so far:")
        print_table(run.rows)
        return 130
    print_table(run.rows)
    print()
    print_wrapped(SPLIT)
    outcome = " ".join(filter(None, (summary(run.rows), run.note)))
    print_wrapped(outcome)
    page = demo_page.render(run.rows, *table(run.rows), facts | {"command": command}, outcome)
    Path(options.out).write_text(page, encoding="utf-8")
    print(f"\nThe same with curves and bars: {options.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.demo", *argv])
    try:
        return measure(parser().parse_args(argv), command)
    except (UsageError, corpora.CorpusError) as error:
        print(f"benchmarks.demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
