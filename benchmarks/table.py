"""The table that a run prints, and the sentences under it."""

from collections.abc import Callable, Iterable

from .case import Case
from .results import FULL, Row, Run, ratio

FULL_PEERS = (
    "linear+cross_entropy", "compiled linear+cross_entropy", "F.linear_cross_entropy",
    "Cut Cross-Entropy", "Liger", "quack",
)  # fmt: skip
"""Losses of all words by others."""

HEADS = ("case", "peer", "ms", "IQR", "noise", "GFLOP/s", "peak", "speed-up", "95%", "goal")
HEADS += ("loss", "memory", "error")

LEGEND = """\
ms        median time of one call; IQR: its interquartile range as a share of it
noise     how much slower the slower of two copies of ours is, both measured like any peer
GFLOP/s   of the products alone; peak: as a share of the ceiling measured at the start
speed-up  how many times faster than the baseline (marked =), with a 95% bootstrap interval;
          ~ within the noise: the interval holds 1, or two copies of ours differ as much
goal      the speed-up that was set as a goal: met or missed
loss      of the model on these inputs; weights are random: what is computed, not learned
memory    most bytes in use during a call, of the baseline's
error     largest relative error against float64, of what the error rule allows"""


def noise(rows: Iterable[Row]) -> float | None:
    """How far apart two copies of ours came out on one case: the slower by the faster, or None."""
    rows = [row for row in rows if row.status == "ok"]
    twins = [row for row in rows if row.twin]
    first = [row for row in rows if twins and row.peer == twins[0].peer and not row.twin]
    if not first:
        return None
    one, other = first[0].median, twins[0].median
    return max(one, other) / min(one, other)


def within_noise(point: float, low: float, high: float, floor: float | None) -> bool:
    """Whether a ratio says nothing."""
    return low <= 1 <= high or (floor is not None and 1 / floor <= point <= floor)


def _time(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.3g}" if ms >= 0.1 else f"{ms:.2g}"


def cells(rows: list[Row], row: Row, peaks: dict[str, float]) -> list[str]:
    """One line of the table, beside the other rows of its case."""
    baseline = next((r for r in rows if r.baseline), None)
    speed = row.flops / row.median / 1e9 if row.flops else None
    line = [row.label, _time(row.median), f"{row.spread:.0%}"]
    twinned = any(other.twin and other.peer == row.peer for other in rows)
    line.append(f"{noise(rows) - 1:.0%}" if twinned and not row.twin and noise(rows) else "")
    line.append("" if speed is None else f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}")
    line.append(
        f"{speed / peaks['gflops']:.0%}" if speed and peaks and row.case.dtype == "float32" else ""
    )
    if row is baseline:
        line += ["=", "", ""]
    elif baseline is None:
        line += ["", "", ""]
    else:
        point, low, high = ratio(baseline.samples, row.samples)
        mark = "~" if within_noise(point, low, high, noise(rows)) else ""
        line += [f"{mark}{point:.2f}x", f"{low:.2f}-{high:.2f}", ""]
    if row.goal and (reached := attained(rows, row)):
        line[-1] = f">={row.goal:g} {'met' if reached >= row.goal else 'MISSED'}"
    line.append("" if row.loss is None else f"{row.loss:.2f}")
    line.append(_memory(row, baseline))
    line.append("" if row.error is None else _error(row))
    return line


def attained(rows: list[Row], row: Row) -> float | None:
    """The ratio that a row's goal is about; None: who it is compared with was not timed."""
    timed = [other for other in rows if other.status == "ok" and not other.twin]
    if row.goal_of == FULL:
        of = [r for r in timed if r.peer in FULL_PEERS]
    else:
        of = [r for r in timed if r.peer == row.goal_of or (not row.goal_of and r.baseline)]
    return ratio(min(of, key=lambda r: r.median).samples, row.samples)[0] if of else None


def goal_text(row: Row) -> str:
    """A goal in words."""
    return f"goal {row.goal:g}x{f' of {row.goal_of}' if row.goal_of else ''}"


def _memory(row: Row, baseline: Row | None) -> str:
    """MiB, or the share of the baseline's; nothing below 1 MiB, where pages hide it."""
    if row.peak is None or row.peak < 2**20:
        return ""
    if baseline is None or row is baseline or not baseline.peak or baseline.peak < 2**20:
        return f"{row.peak / 2**20:.0f} MiB"
    return f"{row.peak / baseline.peak:.2f}"


def _error(row: Row) -> str:
    return f"{row.error:.1e}" + (f" {row.error / row.bound:.0%}" if row.bound else "")


def lines(run: Run) -> list[tuple[Case, Row, list[str]]]:
    """Every row that was timed, with its text; twins show as the noise of the other."""
    return [
        (case, row, cells(rows, row, run.peaks))
        for case, rows in run.by_case()
        for row in rows
        if row.status == "ok" and not row.twin
    ]


def render(run: Run) -> str:
    """The whole table as text."""
    body, last = [list(HEADS)], None
    for case, _, line in lines(run):
        body.append([case.name if case != last else "", *line])
        last = case
    widths = [max(len(line[i]) for line in body) for i in range(len(HEADS))]
    text = []
    for line in body:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(left + right).rstrip())
    return "\n".join(text)


def not_timed(run: Run) -> list[str]:
    """Rows of another status than ok, those with the same reason together."""
    groups: dict[tuple[str, str, str], int] = {}
    for row in run.rows:
        if row.status != "ok":
            key = row.label, row.status, row.reason
            groups[key] = groups.get(key, 0) + 1
    return [
        f"{peer}: {status} in {count} row{'s' * (count > 1)}" + (f": {reason}" if reason else "")
        for (peer, status, reason), count in groups.items()
    ]


def losses(run: Run) -> list[str]:
    """Cases in which the fastest of ours is slower than the fastest of the others, beyond noise."""
    found = []
    for case, rows in run.by_case():
        timed = [row for row in rows if row.status == "ok" and not row.twin and "@" not in row.peer]
        ours = [row for row in timed if row.ours]
        others = [
            row for row in timed if not row.ours and not row.reason.startswith("another model")
        ]
        if not ours or not others:
            continue
        mine, theirs = (min(group, key=lambda r: r.median) for group in (ours, others))
        point, low, high = ratio(theirs.samples, mine.samples)
        if point < 1 and not within_noise(point, low, high, noise(rows)):
            found.append((point, f"{case.name}: {mine.peer} {point:.2f}x of {theirs.peer}"))
    return [text for _, text in sorted(found)]


def summary(run: Run) -> list[str]:
    """What came out, what we lose first."""
    timed = [(case, rows) for case, rows in run.by_case() if any(r.status == "ok" for r in rows)]
    lost = losses(run)
    text = [f"Slower than the fastest peer in {len(lost)} of {len(timed)} cases."]
    text += [f"  {line}" for line in lost]
    missed = [
        f"  {case.name}: {row.peer} {point:.2f}x, {goal_text(row)}"
        for case, rows in timed
        for row in rows
        if row.goal and row.status == "ok"
        if (point := attained(rows, row)) and point < row.goal
    ]
    goals = sum(row.goal is not None for row in run.rows)
    if goals:
        text += [f"Goals met: {goals - len(missed)} of {goals}."] + missed
    floors = sorted(f for _, rows in timed if (f := noise(rows)) is not None)
    if floors:
        middle, high = floors[len(floors) // 2], floors[round(0.9 * (len(floors) - 1))]
        text.append(
            f"Noise: two copies of ours differ by {middle - 1:.1%} (median), {high - 1:.1%} (90%)."
        )
    text += commits(run) + layouts(run) + decoding(run) + adaptive(run)
    text += variants(run) + recording(run)
    bad = [row for row in run.rows if row.ours and row.status in ("wrong", "failed")]
    text.append(f"Rows of ours that are wrong or failed: {len(bad)}.")
    return text


def decoding(run: Run) -> list[str]:
    """Microseconds a step of the step-by-step loops."""
    text = []
    for case, rows in run.by_case():
        if case.op == "decode" and (timed := [r for r in rows if r.status == "ok" and not r.twin]):
            steps = case.sizes["T"] * 1e-6
            each = (f"{row.peer} {row.median / steps:.1f}" for row in timed)
            text.append(f"  {case.name}: {', '.join(each)}")
    return ["Step by step, microseconds a step:", *text] if text else []


def _beside(
    run: Run, head: str, form: str, pick: Callable[[list[Row]], tuple[Row | None, Row | None]]
) -> list[str]:
    """A head, and for each case with both rows that ``pick`` chooses, their ratio with interval."""
    text = []
    for case, rows in run.by_case():
        first, second = pick([row for row in rows if row.status == "ok" and not row.twin])
        if first and second:
            point, low, high = ratio(first.samples, second.samples)
            text.append(f"  {case.name}: {point:.2f}{form} ({low:.2f}-{high:.2f})")
    return [head, *text] if text else []


def _named(rows: list[Row], *names: str) -> tuple[Row | None, ...]:
    return tuple(next((row for row in rows if row.peer == name), None) for name in names)


def adaptive(run: Run) -> list[str]:
    """Our adaptive softmax beside torch.nn's, which has the same parameters."""
    head = "Adaptive softmax, how many times as fast as torch.nn's:"
    names = "AdaptiveLogSoftmax", "fusedrnn adaptive"
    return _beside(run, head, "x", lambda rows: _named(rows, *names))


def layouts(run: Run) -> list[str]:
    """What lengths and packed input cost us, against rows that are all T long."""
    head = "Rows of T/2 to T steps, of our time with all T long:"
    names = "fusedrnn", "fusedrnn padded"
    return _beside(run, head, "", lambda rows: _named(rows, *names))


def variants(run: Run) -> list[str]:
    """What a variant costs, beside the plain cell."""
    head = "Variants, of the plain cell's time (1.15 is the goal):"
    return _beside(run, head, "", lambda rows: _named(rows, "fusedrnn", "fusedrnn plain"))


def recording(run: Run) -> list[str]:
    """What recording all gates and states costs."""
    head = "With all gates and states recorded, of the time without (1.2 is the goal):"
    return _beside(run, head, "", lambda rows: _named(rows, "fusedrnn recorded", "fusedrnn"))


def commits(run: Run) -> list[str]:
    """Ours beside another commit of ours."""
    based = next((row.peer for row in run.rows if "@" in row.peer), "")
    head = f"This commit, how many times as fast as {based.rpartition('@')[2]}:"

    def pick(rows: list[Row]) -> tuple[Row | None, Row | None]:
        before = next((row for row in rows if "@" in row.peer), None)
        return before, before and _named(rows, before.peer.partition("@")[0])[0]

    return _beside(run, head, "x", pick)
