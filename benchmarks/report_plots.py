"""The report's drawings: speed-ups, growth with T, B and H, roofline, error and memory."""

import math
from collections.abc import Callable, Sequence
from html import escape

from .case import WORD_OPS, Case
from .results import Row, Run, ratio
from .svg import WIDTH, apart, log_ticks, mark, svg, text, ticks

Point = tuple[float, float]


class Axes:
    """A frame with its scales: logarithmic where asked, labels at round values."""

    def __init__(
        self, x: Point, y: Point, *, log_x: bool = True, log_y: bool = True, right: int = 20
    ) -> None:
        self.left, self.right, self.top, self.bottom = 46, right, 22, 270
        self._x, self._y = self._scale(x, log_x), self._scale(y, log_y)
        self._logs = log_x, log_y

    @staticmethod
    def _scale(bounds: Point, log: bool) -> Point:
        low, high = bounds
        if not log:
            return low, high if high > low else low + 1
        low, high = math.log10(low), math.log10(high)
        pad = max(0.05 * (high - low), 0.05)
        return low - pad, high + pad

    def at(self, x: float, y: float) -> Point:
        """Where a pair of values lies in the drawing."""
        (x0, x1), (y0, y1) = self._x, self._y
        x = math.log10(x) if self._logs[0] else x
        y = math.log10(y) if self._logs[1] else y
        across = self.left + (WIDTH - self.left - self.right) * (x - x0) / (x1 - x0)
        return across, self.bottom - (self.bottom - self.top) * (y - y0) / (y1 - y0)

    def frame(self, x_name: str, y_name: str, x_values: Sequence[float] = ()) -> list[str]:
        """Grid and labels; ``x_values`` are marked instead of round ones."""
        parts = [text(0, 11, y_name, kind="axis")]
        bounds = [
            tuple(10**v for v in scale) if log else scale
            for scale, log in zip((self._x, self._y), self._logs, strict=True)
        ]
        for value in log_ticks(*bounds[1]) if self._logs[1] else ticks(*bounds[1]):
            _, y = self.at(bounds[0][0], value)
            parts.append(f'<path class="rule" d="M{self.left} {y:.1f}H{WIDTH - self.right}"/>')
            parts.append(text(self.left - 6, y + 4, number(value), anchor="end", kind="axis"))
        for value in x_values or (log_ticks(*bounds[0]) if self._logs[0] else ticks(*bounds[0])):
            x, _ = self.at(value, bounds[1][0])
            parts.append(f'<path class="rule" d="M{x:.1f} {self.bottom}v5"/>')
            label = text(x, self.bottom + 18, number(value), anchor="middle", kind="axis")
            parts.append(label)
        middle = (self.left + WIDTH - self.right) / 2
        parts.append(text(middle, self.bottom + 35, x_name, anchor="middle", kind="axis"))
        return parts


def number(value: float) -> str:
    """A short form: 0.01, 5, 1k."""
    return f"{value:g}" if value % 1000 or not value else f"{value / 1000:g}k"


def titled(shape: str, title: str) -> str:
    """A shape that tells what it is when pointed at."""
    return f"<g>{shape}<title>{escape(title)}</title></g>"


def speedups(groups: list[tuple[Case, list[Row]]]) -> str:
    """A bar for each of ours, from 1x on a logarithmic scale, the interval as a whisker."""
    bars = []
    for case, rows in groups:
        baseline = next((r for r in rows if r.baseline), None)
        for row in rows:
            if baseline and row.status == "ok" and row.ours and not row.twin:
                bars.append((case, row, ratio(baseline.samples, row.samples), baseline))
    if not bars:
        return ""
    low = min(1.0, *(b[2][1] for b in bars)) * 0.9
    high = max(1.0, *(b[2][2] for b in bars), *(_goal(b[1]) or 1 for b in bars)) * 1.05
    room = WIDTH - 62

    def at(value: float) -> float:
        return room * math.log(value / low) / math.log(high / low)

    pitch, parts = 36, []
    tall = len(bars) * pitch
    shown = log_ticks(low, high)
    for value in shown:
        parts.append(text(at(value), tall + 14, f"{value:g}x", anchor="middle", kind="axis"))
    for i, (case, row, (point, lower, upper), baseline) in enumerate(bars):
        y = i * pitch
        name = f"{row.peer} {case.name}" if case.op in WORD_OPS else case.name
        start, end = sorted((at(1), at(point)))
        kind = "ours" if point >= 1 else "lost"
        bar = f'<rect x="{start:.1f}" y="{y + 16}" width="{max(end - start, 0.5):.1f}" height="12" '
        bar += f'fill="url(#{kind})"/>'
        parts.append(text(0, y + 12, name))
        parts += [f'<path class="rule" d="M{at(value):.1f} {y + 15}v15"/>' for value in shown]
        parts.append(f'<path class="edge" d="M{at(1):.1f} {y + 15}v15"/>')
        parts.append(titled(bar, f"{name}: {point:.2f} times as fast as {baseline.peer}"))
        parts.append(
            f'<path class="edge" d="M{at(lower):.1f} {y + 22}H{at(upper):.1f}'
            f'M{at(lower):.1f} {y + 19}v6M{at(upper):.1f} {y + 19}v6"/>'
        )
        if goal := _goal(row):
            parts.append(f'<path class="goal" d="M{at(goal):.1f} {y + 13}v18"/>')
        parts.append(text(WIDTH, y + 26, f"{point:.2f}x", anchor="end"))
    return svg(tall + 18, "Speed-up of each row over the baseline", parts)


def _goal(row: Row) -> float | None:
    """Where the goal's mark is, if it is one beside the baseline."""
    return None if row.goal_of else row.goal


def series(run: Run, axis: str) -> list[tuple[str, list[Case]]]:
    """Cases that differ in one size alone (I goes with H), at least three of them."""
    families: dict[Case, list[Case]] = {}
    for case, rows in run.by_case():
        if case.op != "sequence" or not any(r.status == "ok" for r in rows):
            continue
        sizes = case.sizes | ({"I": 0, "H": 0} if axis == "H" else {axis: 0})
        if axis == "H" and case.sizes["I"] != case.sizes["H"]:
            continue
        key = (case.on(shape=(1, 1, 1, 1)), tuple(sizes.values()))
        families.setdefault(key, []).append(case)
    found = []
    for (case, _), cases in families.items():
        if len({c.sizes[axis] for c in cases}) >= 3:
            cases.sort(key=lambda c: c.sizes[axis])
            fixed = cases[0].sizes.items()
            rest = ", ".join(f"{k} = {v}" for k, v in fixed if k not in (axis, "I"))
            found.append((f"{case.cell} {case.mode} against {axis} ({rest})", cases))
    return found


def growth(run: Run, axis: str, cases: list[Case]) -> str:
    """Milliseconds against one size, both logarithmic, a line for each peer."""
    lines: dict[str, list[Point]] = {}
    for case in cases:
        for row in run.rows:
            if row.case == case and row.status == "ok" and not row.twin:
                lines.setdefault(row.peer, []).append((case.sizes[axis], row.median * 1e3))
    points = [p for line in lines.values() for p in line]
    xs, ys = zip(*points, strict=True)
    axes = Axes((min(xs), max(xs)), (min(ys), max(ys)), right=92)
    parts = axes.frame(axis, "milliseconds", sorted(set(xs)))
    ends = []
    for peer, line in lines.items():
        i = shapes(run)[peer]
        placed = [axes.at(*p) for p in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        dash = "" if i == 0 else f' stroke-dasharray="{3 + 3 * i} 3"'
        parts.append(
            f'<path class="curve" stroke-width="1.7" d="{path}" stroke="var(--c{i % 3})"{dash}/>'
        )
        parts += [mark(i, *p, f"var(--c{i % 3})") for p in placed]
        ends.append(placed[-1])
    for name, (x, _), y in zip(lines, ends, apart(ends), strict=True):
        parts.append(text(x + 8, y + 4, name, kind="halo"))
    return svg(axes.bottom + 42, f"Milliseconds against {axis}", parts)


def scatter(
    run: Run, rows: list[Row], axes: Axes, place: Callable[[Row], Point], x: str, y: str, label: str
) -> str:
    """A point for each row, its shape by peer, with a legend above."""
    known = shapes(run)
    peers = {row.peer: known[row.peer] for row in rows}
    parts = axes.frame(x, y)
    for row in rows:
        i = known[row.peer]
        parts.append(
            titled(
                mark(i, *axes.at(*place(row)), f"var(--c{i % 3})"), f"{row.peer}: {row.case.name}"
            )
        )
    return legend(peers) + svg(axes.bottom + 42, label, parts)


def shapes(run: Run) -> dict[str, int]:
    """Each peer's mark and colour, the same in all drawings of a run."""
    return {peer: i for i, peer in enumerate(dict.fromkeys(row.peer for row in run.rows))}


def legend(peers: dict[str, int]) -> str:
    """Each peer's mark."""
    items = [
        f'<li><svg viewBox="0 0 14 14" style="width:14px">{mark(i, 7, 7, f"var(--c{i % 3})")}</svg>'
        f"{escape(peer)}</li>"
        for peer, i in peers.items()
    ]
    return f"<ul>{''.join(items)}</ul>"


def roofline(run: Run) -> str:
    """GFLOP/s against operations per byte, below the two ceilings measured at the run's start."""
    timed = [r for r in run.rows if r.status == "ok" and not r.twin]
    rows = [r for r in timed if r.case.op == "sequence"]
    if not rows or not run.peaks:
        return ""
    top, width = run.peaks["gflops"], run.peaks["gb_per_s"]

    def place(row: Row) -> Point:
        return row.flops / row.case.traffic(), row.flops / row.median / 1e9

    xs, ys = zip(*map(place, rows), strict=True)
    knee = top / width
    low, high = min(*xs, knee / 4), max(*xs, knee * 4)
    axes = Axes((low, high), (min(ys), top))
    roof = [axes.at(low, min(top, low * width)), axes.at(knee, top), axes.at(high, top)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in roof)
    picture = scatter(
        run, rows, axes, place, "operations per byte that must move", "GFLOP/s", "Roofline"
    )
    line = f'<path class="edge" fill="none" d="{path}"/>'
    x, y = roof[1]
    words = text(x, y - 6, f"{top:.0f} GFLOP/s, {width:.0f} GB/s", anchor="middle", kind="halo")
    return picture.removesuffix("</svg>") + line + words + "</svg>"


def errors(run: Run) -> str:
    """Each row's error, as a share of what the rule allows, beside its speed."""
    rows, speed = [], {}
    for _, group in run.by_case():
        baseline = next((r for r in group if r.baseline), None)
        for row in group:
            if baseline and row.status == "ok" and row.bound and not row.twin:
                rows.append(row)
                speed[id(row)] = baseline.median / row.median
    if not rows:
        return ""
    xs = list(speed.values())
    axes = Axes((min(xs), max(max(xs), 1.1)), (0, 100), log_y=False)

    def place(row: Row) -> Point:
        return speed[id(row)], 100 * row.error / row.bound

    y = "error, % of what is allowed"
    return scatter(run, rows, axes, place, "speed-up over the baseline", y, "Error beside speed")


def memory(run: Run) -> str:
    """The most memory a call has in use, beside the baseline's."""
    rows, base = [], {}
    for _, group in run.by_case():
        baseline = next((r for r in group if r.baseline and r.peak), None)
        for row in group:
            if (
                baseline
                and row.status == "ok"
                and row.peak
                and not row.twin
                and row is not baseline
            ):
                if min(row.peak, baseline.peak) >= 2**20:  # below, pages hide it
                    rows.append(row)
                    base[id(row)] = baseline.peak / 2**20
    if not rows:
        return ""
    xs, ys = list(base.values()), [row.peak / 2**20 for row in rows]
    low, high = min(xs + ys), max(xs + ys)
    axes = Axes((low, high), (low, high))
    (x0, y0), (x1, y1) = axes.at(low, low), axes.at(high, high)

    def place(row: Row) -> Point:
        return base[id(row)], row.peak / 2**20

    picture = scatter(run, rows, axes, place, "MiB, the baseline", "MiB at the peak", "Memory")
    line = f'<path class="edge" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'
    return picture.removesuffix("</svg>") + line + "</svg>"


def trade_off(run: Run) -> str:
    """Perplexity against tokens per second, a point for each row of a language-model run."""
    rows = run.lm.get("rows", [])
    if not rows:
        return ""
    points = [(row["tokens_per_second"], row["perplexity"]) for row in rows]
    xs, ys = zip(*points, strict=True)
    pad = 0.08 * (max(ys) - min(ys)) or 1
    axes = Axes((min(xs), max(xs)), (min(ys) - pad, max(ys) + pad), log_y=False)
    parts = axes.frame("tokens per second", "validation perplexity")
    kinds = list(dict.fromkeys(row["recurrence"] for row in rows))
    placed = [axes.at(*point) for point in points]
    marks = []
    for row, (x, y), height in zip(rows, placed, apart(placed, reach=90), strict=True):
        i = kinds.index(row["recurrence"])
        marks.append(
            titled(mark(i, x, y, f"var(--c{i % 3})"), f"{row['recurrence']}, {row['output']}")
        )
        anchor, aside = ("end", -8) if x > WIDTH / 2 else ("start", 8)  # inwards
        parts.append(text(x + aside, height + 4, row["output"], anchor=anchor, kind="halo"))
    parts += marks  # above all labels
    tall = axes.bottom + 42
    if len(kinds) > 1:
        for i, name in enumerate(kinds):
            x, y = axes.left + 130 * (i % 3), tall + 14 + 20 * (i // 3)
            parts += [mark(i, x, y, f"var(--c{i % 3})"), text(x + 10, y + 4, name)]
        tall += 20 * (1 + (len(kinds) - 1) // 3) + 8
    return svg(tall, "Perplexity against speed", parts)
