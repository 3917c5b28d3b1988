"""``run``: measures a suite, or the cases that the options describe; prints a table, writes JSON.

Exit status 1 if a row of ours is wrong or failed, or the machine was too busy to record, 130 after
Ctrl-C, which keeps what was measured.
"""

import argparse
import shutil
import time
from itertools import product
from pathlib import Path

import torch

from . import environment, runner, table
from .base import Base, checkout
from .case import (
    COUNTS,
    DTYPES,
    INFERENCE_ONLY,
    INPUTS,
    LAYOUTS,
    MODES,
    OPS,
    WORD_OPS,
    Case,
    CaseError,
    parse_shape,
)
from .peers import PEERS
from .progress import Progress
from .quiet import QUIET, Quiet
from .results import FOLDER, Run
from .suites import CPU_PEERS, GPU_PEERS, SUITES

PATIENCE = 900.0
"""Seconds of disturbed samples that are taken anew before a run gives up being recorded."""


def several(text: str) -> list[str]:
    """A list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    add = parser.add_argument
    add(
        "--suite",
        metavar="NAME",
        help=f"one of {', '.join(SUITES)}; else the options describe cases",
    )
    add("--op", type=several, default=[], metavar="NAMES", help=f"of {', '.join(OPS)}")
    add("--cell", type=several, default=[], metavar="NAMES", help="cells of the registry")
    add("--mode", type=several, default=[], metavar="NAMES", help=f"of {', '.join(MODES)}")
    add("--shape", action="append", default=[], metavar="T=..,B=..,H=..", help="may be repeated")
    add("--dtype", type=several, default=[], metavar="NAMES", help=f"of {', '.join(DTYPES)}; "
        "replaces that of a suite")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), help="replaces that of a suite (default: cpu)")
    add("--layers", type=int, default=1, help="stacked layers of a case described here")
    add("--bidirectional", action="store_true", help="two directions, of a case described here")
    add("--no-bias", action="store_true", help="without biases, of a case described here")
    add("--layout", choices=tuple(LAYOUTS), default="padded", help="of a case described here")
    add("--counts", choices=tuple(COUNTS), default="zipf", help="of a case described here")
    add("--inputs", choices=tuple(INPUTS), default="random", help="of a case described here")
    add("--peer", type=several, default=[], metavar="NAMES", help="only these, beside ours; 'all'")
    add("--base", metavar="GIT-REF", help="another commit of ours as one more peer")
    add("--seconds", type=float, help="of samples for each peer of a case")
    add("--threads", type=int, help="for torch and fusedrnn (default: torch's)")
    add("--out", type=Path, metavar="FILE.json", help="default: bench-SUITE.json here")
    add("--record", action="store_true", help="into benchmarks/results/DEVICE/DATE-COMMIT.json, "
        "and bring the tables of the docs up to date")  # fmt: skip


def checked(names: list[str], known: object, option: str) -> None:
    """Refuse what is not known.

    Raises:
        CaseError: with what is.
    """
    for name in names:
        if name not in known:
            raise CaseError(f"{option} {name}: there is none; known are {', '.join(known)}")


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The suite's cases that pass the filters, or those described.

    Raises:
        CaseError: there are none.
    """
    checked(options.op, OPS, "--op")
    checked(options.mode, MODES, "--mode")
    checked(options.dtype, DTYPES, "--dtype")
    if options.suite is None:
        return described(options)
    checked([options.suite], SUITES, "--suite")
    cases = list(SUITES[options.suite].cases)
    cases = [c for c in cases if not options.op or c.op in options.op]
    cases = [c for c in cases if not options.cell or c.cell in options.cell]
    cases = [c for c in cases if not options.mode or c.mode in options.mode]
    if options.shape:
        wanted = [set(_sizes(text).items()) for text in options.shape]
        cases = [c for c in cases if any(sizes <= set(c.sizes.items()) for sizes in wanted)]
    changes = [{"dtype": d} for d in options.dtype] or [{}]
    if options.device:
        changes = [c | {"device": options.device} for c in changes]
    cases = list(dict.fromkeys(c.on(**change) for change in changes for c in cases))
    if not cases:
        raise CaseError(
            f"no case of the suite {options.suite} passes --op, --cell, --mode and --shape; "
            "without --suite they describe cases of their own"
        )
    return cases


def _sizes(text: str) -> dict[str, int]:
    """A filter's sizes, some or all of an operation's."""
    sizes = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.isdecimal() or not any(name in names for names in OPS.values()):
            raise CaseError(f"--shape {text}: {part!r} is no size; write T=35,H=200")
        sizes[name] = int(value)
    return sizes


def described(options: argparse.Namespace) -> list[Case]:
    """Cases from the options alone, all combinations."""
    if not options.shape:
        raise CaseError(
            f"say what to measure: --suite ({', '.join(SUITES)}), or --shape T=35,B=20,H=200 with "
            "--op, --cell, --mode, --dtype"
        )
    op = options.op[0] if options.op else "softmax" if "V=" in options.shape[0] else "sequence"
    cells = options.cell or ([""] if op in WORD_OPS else ["lstm"])
    modes = options.mode or (["infer"] if op in INFERENCE_ONLY else ["fwdbwd"])
    shapes = [parse_shape(text, op) for text in options.shape]
    return [
        Case(op, cell, mode, shape, dtype, options.device or "cpu", options.layers,
             options.bidirectional, not options.no_bias, options.layout, options.counts,
             options.inputs)
        for dtype, mode, shape, cell in product(options.dtype or ["float32"], modes, shapes, cells)
    ]  # fmt: skip


def chosen_peers(options: argparse.Namespace, cases: list[Case]) -> dict[str, tuple[str, ...]]:
    """Who is measured, by operation."""
    if options.peer == ["all"]:
        return {op: tuple(n for n, p in PEERS.items() if op in p.ops) for op in OPS}
    checked(options.peer, PEERS, "--peer")
    on_gpu = any(case.device == "cuda" for case in cases)
    usual = SUITES[options.suite].peers if options.suite else GPU_PEERS if on_gpu else CPU_PEERS
    if not options.peer:
        return usual
    asked = {op: [n for n in options.peer if op in PEERS[n].ops] for op in OPS}
    if any(PEERS[n].ours for n in options.peer):
        return {op: tuple(names) for op, names in asked.items()}
    return {op: (*asked[op], *(n for n in usual[op] if PEERS[n].ours)) for op in OPS}


def output(options: argparse.Namespace, run: Run) -> Path:
    """Where the JSON goes.

    Raises:
        CaseError: what is measured is not the commit that ``--record`` would name.
    """
    if not options.record:
        return options.out or Path(f"bench-{run.suite}.json")
    facts = run.environment
    if facts["dirty"] or facts["commit"] == "unknown":
        raise CaseError("--record names the file after the commit: commit your changes first")
    return FOLDER / str(facts["slug"]) / f"{run.created[:10]}-{facts['commit']}-{run.suite}.json"


def kept(run: Run, out: Path, record: bool) -> Path:
    """Where the file stays: what a busy machine gave is not recorded, but moved here."""
    share = run.environment["others"]
    if share is None or share <= QUIET:
        return out
    text = (
        f"\nOther processes took {share:.0%} of the processors' time, which can spoil all figures"
    )
    if record:
        here = Path(f"bench-{run.suite}.json")
        shutil.move(out, here)
        out, text = here, f"{text}: nothing is recorded"
    print(f"{text}. Measure again when they have ended.")
    return out


def main(options: argparse.Namespace) -> int:
    """Measure."""
    cases = chosen_cases(options)
    suite = SUITES.get(options.suite)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = (
        "cuda" if any(c.device == "cuda" for c in cases) and torch.cuda.is_available() else "cpu"
    )
    base = None
    if options.base:
        base = Base(options.base, checkout(options.base), torch.get_num_threads())
    plan = runner.Plan(
        cases,
        chosen_peers(options, cases),
        options.seconds or (suite.seconds if suite else 0.5),
        suite.twin if suite else True,
        base,
        suite.without if suite and not options.peer else {},
        Quiet(PATIENCE if options.record else 0),
    )
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run = Run(options.suite or "custom", created, options.typed, environment.describe(device))
    out = output(options, run)
    run.rows = plan.rows()
    run.peaks = environment.peaks(device)
    heading(run)
    interrupted = False
    try:
        runner.execute(plan, run, out, Progress(len(cases)))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if base:
            base.close()
    run.environment |= {
        "clock_at_end": environment.clock(),
        "others": plan.quiet.share(),
        "seconds_thrown_away": round(plan.quiet.lost),
    }
    run.save(out)
    stays = kept(run, out, options.record)
    conclude(run, stays, interrupted)
    if options.record and stays == out and not interrupted:
        from . import markdown

        markdown.update()
    bad = any(row.ours and row.status in ("wrong", "failed") for row in run.rows)
    return 130 if interrupted else int(bad or stays != out)


def heading(run: Run) -> None:
    """What the figures depend on."""
    facts = run.environment
    commit = f"{facts['commit']}{', changed since' if facts['dirty'] else ''}"
    print(f"{run.suite}: {len(run.rows)} rows on {facts.get('gpu') or facts['processor']}, "
          f"{facts['threads']} threads of {facts['cores']} cores")  # fmt: skip
    print(f"torch {facts['torch']}, fusedrnn {facts['fusedrnn']} (commit {commit}), "
          f"CPU code {facts['cpu_code'] or facts['library']}")  # fmt: skip
    print(f"ceilings measured now: {run.peaks['gflops']:.0f} GFLOP/s (torch.mm), "
          f"{run.peaks['gb_per_s']:.0f} GB/s (copy)\n", flush=True)  # fmt: skip


def conclude(run: Run, out: Path, interrupted: bool) -> None:
    """The table, what is missing from it, the summary."""
    print(table.render(run))
    print(f"\n{table.LEGEND}\n")
    for line in table.not_timed(run):
        print(line)
    print()
    for line in table.summary(run):
        print(line)
    print(
        f"{'Interrupted: what was measured so far is' if interrupted else 'Every sample:'} in {out}"
    )
