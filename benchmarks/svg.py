"""Drawings as inline SVG, legible without colour: what the demo's page and the report share."""

import math
from collections.abc import Sequence
from html import escape

WIDTH = 420  # of every drawing's own units: about a phone's, where text is then not scaled down

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #5b6470; --grid: #dfe3e8;
  --c0: #0063a5; --c1: #b34700; --c2: #00735a; --rec: #0063a5; --out: #e8a33d; --rest: #8a94a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --paper: #14171b; --faint: #a2acb8;
  --grid: #333a43; --c0: #5db5f5; --c1: #ff9a57; --c2: #45d3a9; --rec: #3b8fd0; --out: #d2902f;
  --rest: #7a8593; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1120px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .4em; }
h2 { font-size: 1.1rem; margin: 0 0 .1em; }
p { margin: .3em 0 .8em; max-width: 75ch; }
.note { color: var(--faint); font-size: .9rem; }
.grid { display: grid; gap: 36px 48px; margin: 28px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
section { margin: 28px 0; min-width: 0; } .grid section { margin: 0; }
svg { display: block; width: 100%; height: auto; max-width: 640px;
  font: 12.5px system-ui, sans-serif; fill: var(--ink); }
ul { list-style: none; padding: 0; margin: .6em 0; columns: 260px; font-size: .85rem; }
li svg { display: inline-block; width: 28px; margin-right: 8px; vertical-align: -2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: 5px 12px 5px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { color: var(--faint); font-weight: 600; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: .93rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.axis { fill: var(--faint); } .rule { stroke: var(--grid); stroke-width: 1; }
.edge { stroke: var(--ink); stroke-width: 1.3; }
.curve { fill: none; stroke-linejoin: round; }
.halo { stroke: var(--paper); stroke-width: 3.5; stroke-linejoin: round; paint-order: stroke; }
"""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between two bounds, at most ``most`` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * k for k in (1, 2, 5, 10, 20) if (high - low) / (step * k) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two bounds; if they are fewer than three, 2 and 5 times them too."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    inside = [k * 10.0**p for p in powers for k in (1, 2, 5) if low <= k * 10.0**p <= high]
    tens = [v for v in inside if math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9)]
    return tens if len(tens) >= 3 else inside


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """A line of text."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def svg(height: float, label: str, parts: list[str]) -> str:
    """The drawing, with a label for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "\n".join(parts)
        + "</svg>"
    )


def mark(shape: int, x: float, y: float, colour: str) -> str:
    """A circle, a square, a triangle, a diamond, a cross, a triangle on its head; then hollow."""
    hollow, shape = shape % 12 >= 6, shape % 6
    paint = f'fill="{"var(--paper)" if hollow else colour}"'
    if hollow or shape == 4:
        paint += f' stroke="{colour}" stroke-width="{3 if hollow and shape == 4 else 1.8}"'
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {paint}/>'
    path = (
        "h7.4v7.4h-7.4z",
        "l4.8 8.4h-9.6z",
        "l5 5l-5 5l-5 -5z",
        "l8 8m0 -8l-8 8",
        "h9.6l-4.8 8.4z",
    )
    left, up = ((3.7, 3.7), (0, 5.2), (0, 5), (4, 4), (4.8, 3.2))[shape - 1]
    return f'<path d="M{x - left:.1f} {y - up:.1f}{path[shape - 1]}" {paint}/>'


def apart(ends: Sequence[tuple[float, float]], gap: float = 13, reach: float = 14) -> list[float]:
    """Heights for labels of points, from the lowest up: none on another within ``reach``."""
    heights = [y for _, y in ends]
    placed: list[int] = []
    for i in sorted(range(len(ends)), key=lambda i: -heights[i]):
        near = [heights[j] for j in placed if abs(ends[j][0] - ends[i][0]) < reach]
        heights[i] = min([heights[i], *(other - gap for other in near)])
        placed.append(i)
    return heights
