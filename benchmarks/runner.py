"""Runs a suite: for each case build, verify and warm up every peer, then take samples by turns."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import gpu
from .base import Base
from .case import Case
from .contender import Built, Failure, build, classify
from .peers import PEERS
from .problems import Problem, problem
from .progress import Progress
from .quiet import Quiet
from .results import Row, Run
from .suites import BASELINES, GOALS, NONE
from .timing import alternate


@dataclass
class Plan:
    """What to run.

    Attributes:
        cases: in order.
        peers: by operation.
        seconds: of samples for each contender.
        twin: whether a second copy of ours takes part.
        base: another commit of ours, or None.
        without: who is not measured, by case.
        quiet: which samples are kept.
    """

    cases: list[Case]
    peers: dict[str, tuple[str, ...]]
    seconds: float
    twin: bool
    base: Base | None = None
    without: dict[Case, tuple[str, ...]] = field(default_factory=dict)
    quiet: Quiet = field(default_factory=Quiet)

    def rows(self) -> list[Row]:
        """Every row to come, none of them measured."""
        rows = []
        for case in self.cases:
            names = [n for n in self.peers[case.op] if PEERS[n].takes_part(case)]
            names = [n for n in names if n not in self.without.get(case, ())]
            for name in names:
                goal = GOALS.get((case, name), NONE)
                row = Row(case, name, ours=PEERS[name].ours, goal=goal.least, goal_of=goal.of)
                rows.append(row)
            ours = [name for name in names if PEERS[name].ours]
            if self.twin and ours:
                rows.append(Row(case, ours[0], ours=True, twin=True))
            if self.base and ours:
                rows.append(Row(case, f"{ours[0]}@{self.base.ref}", ours=False))
        return rows


def execute(plan: Plan, run: Run, out: Path | None, progress: Progress) -> None:
    """Measure every row of ``run``, in place; the file is written after each case.

    KeyboardInterrupt ends it between two samples: what was measured stays, the rest is unmeasured.
    """
    start, before = time.perf_counter(), None
    groups = list(run.by_case())
    try:
        for number, (case, rows) in enumerate(groups):
            progress.show(f"{case.name}: verifying")
            before = measure(case, rows, plan, before)
            settle(rows)
            if out:
                run.save(out)
            spent = time.perf_counter() - start
            left = spent / (number + 1) * (len(groups) - number - 1)
            progress.advance(case.name, left)
    finally:
        progress.close()
        if out:
            run.save(out)


def measure(
    case: Case, rows: list[Row], plan: Plan, before: Problem | None = None
) -> Problem | None:
    """All rows of one case; returns its numbers, as those of the next may be the same."""
    if case.device == "cuda" and not torch.cuda.is_available():
        for row in rows:
            row.status, row.reason = "unsupported", "the case is on cuda, and torch sees no GPU"
        return None
    try:
        of = problem(case, before)
    except Exception as error:
        failure = classify(error)
        for row in rows:
            row.status, row.reason = failure.status, failure.reason
        return None
    timed: list[tuple[Row, Built]] = []
    for row in rows:
        try:
            if plan.base and row.peer.endswith(f"@{plan.base.ref}"):
                timed.append((row, plan.base.build(row.peer.split("@")[0], case, plan.seconds)))
            else:
                timed.append((row, build(row.peer, case, plan.seconds, of)))
        except Failure as failure:
            row.status, row.reason = failure.status, failure.reason
    take(timed, plan)
    del timed
    gc.collect()
    return of


def take(timed: list[tuple[Row, Built]], plan: Plan) -> None:
    """Samples by turns; a contender that fails while timed drops out, and the others start anew."""
    while timed:
        failed: list[Row] = []

        def guarded(row: Row, built: Built, failed: list[Row] = failed) -> Callable[[], float]:
            def sample() -> float:
                try:
                    return built.sample()
                except Exception as error:
                    failure = classify(error)
                    row.status, row.reason = failure.status, failure.reason
                    failed.append(row)
                    raise

            return sample

        try:
            samples = alternate(
                [guarded(*pair) for pair in timed], seconds=plan.seconds, quiet=plan.quiet
            )
        except Exception:
            if not failed:
                raise
            timed = [pair for pair in timed if pair[0] is not failed[0]]
            continue
        for (row, built), taken in zip(timed, samples, strict=True):
            row.status, row.samples = "ok", taken
            row.error, row.bound = built.verdict.error, built.verdict.bound
            row.peak, row.flops, row.loss = built.peak, built.flops, built.verdict.loss
            row.reason = PEERS[row.peer].note if row.peer in PEERS else ""
            row.device_samples = built.device_samples(plan.seconds)
            row.condition = gpu.condition() if row.case.device == "cuda" else None
        return


def settle(rows: Iterable[Row]) -> None:
    """Mark what the others of the case are compared with."""
    by_peer = {row.peer: row for row in rows if row.status == "ok" and not row.twin}
    for name in BASELINES[next(iter(rows)).case.op]:
        if name in by_peer:
            by_peer[name].baseline = True
            return
