"""The page of `benchmarks.demo`: one file of HTML and inline SVG that asks the network for nothing.

Legible without colour: rows have numbers, curves have marks and end in labels, bars are hatched.
"""

from collections.abc import Sequence
from html import escape

from .lm import TORCH
from .lm_time import PARTS, Row
from .svg import STYLE, WIDTH, apart, mark, svg, text, ticks

TITLE = "fusedrnn beside torch.nn: one language model, six ways"

METHOD = (
    "Rows with the same output layer start from the same weights, and all read the same words in "
    "the same order, taking turns of ten steps. ms/step is the sum of recurrence and output layer, "
    "each forward and backward, and the rest: embedding, clipping, optimizer. Times are of "
    "the middle half of each row's turns, so that a pause of the machine counts for none; "
    "evaluation and warm-up are left out. val. ppl is the perplexity of the validation text after "
    "training; vs torch is its difference from torch's row with the same output layer, which "
    "rounding makes."
)

_STYLE = f"""{STYLE}
.torch {{ stroke-width: 6; stroke-opacity: .35; }} .fused {{ stroke-width: 1.7; }}
"""

_DEFS = """<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>
<pattern id="recurrence" width="8" height="8" patternUnits="userSpaceOnUse">
<rect width="8" height="8" fill="var(--rec)"/></pattern>
<pattern id="output" width="6" height="6" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)"><rect width="6" height="6" fill="var(--out)"/>
<path d="M0 0V6" stroke="var(--paper)" stroke-width="2"/>
</pattern>
<pattern id="rest" width="5" height="5" patternUnits="userSpaceOnUse">
<rect width="5" height="5" fill="var(--rest)"/>
<circle cx="2.5" cy="2.5" r="1.1" fill="var(--paper)"/>
</pattern></defs></svg>"""


_PART_NAMES = {
    "recurrence": "recurrence",
    "output": "output layer",
    "rest": "rest (embedding, optimizer)",
}


def bars(rows: Sequence[Row]) -> str:
    """Milliseconds per step of every row, stacked by part, with the quartiles of its turns."""
    room, tall, pitch = WIDTH - 74, 17, 47
    scale = room / max(row.quartiles[1] for row in rows)
    parts = []
    for part, x in zip(PARTS, (0, 106, 224), strict=True):
        parts.append(f'<rect x="{x:.1f}" y="2" width="14" height="12" fill="url(#{part})"/>')
        parts.append(text(x + 20, 13, _PART_NAMES[part]))
    for i, row in enumerate(rows):
        y, x = 28 + i * pitch, 0.0
        parts.append(text(0, y + 12, f"{i + 1}  {row.name}"))
        speed = f"{row.tokens_per_second:,.0f} tokens/s"
        parts.append(text(WIDTH, y + 12, speed, anchor="end", kind="axis"))
        for part in PARTS:
            ms = row.ms(part)
            wide = ms * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 18}" width="{wide:.1f}" height="{tall}" '
                f'fill="url(#{part})">'
                f"<title>{escape(row.name)}: {_PART_NAMES[part]} {ms:.2f} ms a step</title></rect>"
            )
            if wide > 34:
                middle = x + wide / 2
                parts.append(text(middle, y + 31, f"{ms:.1f}", anchor="middle", kind="halo"))
            x += wide
        low, high = (ms * scale for ms in row.quartiles)
        parts.append(
            f'<path class="edge" d="M{low:.1f} {y + 38}H{high:.1f}M{low:.1f} {y + 35.5}v5'
            f'M{high:.1f} {y + 35.5}v5"><title>middle half of the turns</title></path>'
        )
        total = sum(row.ms(part) for part in PARTS)
        parts.append(text(max(x, high) + 6, y + 31, f"{total:.1f} ms"))
    return svg(28 + len(rows) * pitch, "Milliseconds per training step, by part", parts)


def _points(row: Row, by_time: bool) -> list[tuple[float, float]]:
    """Tokens or seconds read at the middle of each turn, and the turn's mean loss."""
    points, tokens = [], 0
    unit = row.tokens_per_second if by_time else 1.0
    for turn in row.turns:
        points.append(((tokens + turn.tokens / 2) / unit, turn.loss))
        tokens += turn.tokens
    return points


def curves(rows: Sequence[Row], *, by_time: bool) -> str:
    """Training loss over tokens, or over the seconds they take at each row's speed."""
    layers = list(dict.fromkeys(row.output for row in rows))
    lines = [_points(row, by_time) for row in rows]
    left, right, top, bottom = 34, (26 if by_time else 112), 22, 280
    far = max(x for line in lines for x, _ in line)
    losses = [y for line in lines for _, y in line]
    low, high = min(losses), max(losses)
    pad = 0.06 * (high - low) or 0.5
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (WIDTH - left - right) * x / far
        return across, bottom - (bottom - top) * (y - low) / (high - low)

    parts = [text(0, 11, "training loss, nats a word", kind="axis")]
    for value in ticks(low, high):
        _, y = place(0, value)
        parts.append(f'<path class="rule" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(text(left - 6, y + 4, f"{value:g}", anchor="end", kind="axis"))
    for value in ticks(0, far, 5):
        x, _ = place(value, low)
        label = f"{value:g}" if by_time else f"{value / 1000:g}k" if value else "0"
        parts.append(f'<path class="rule" d="M{x:.1f} {bottom}v5"/>')
        parts.append(text(x, bottom + 18, label, anchor="middle", kind="axis"))
    unit = "seconds of training" if by_time else "words read"
    middle = (left + WIDTH - right) / 2
    parts.append(text(middle, bottom + 35, unit, anchor="middle", kind="axis"))
    placed = [[place(*point) for point in line] for line in lines]
    parts += _lines(rows, placed, layers)
    parts += _labels(rows, placed, layers, by_time)
    return svg(bottom + 42, f"Training loss over {unit}", parts)


def _lines(rows: Sequence[Row], placed: list[list[tuple[float, float]]], layers: list) -> list[str]:
    """Those of torch wide and pale, below; ours thin, above: both show where they agree."""
    parts = []
    for row, line in sorted(zip(rows, placed, strict=True), key=lambda x: x[0].recurrence != TORCH):
        layer = layers.index(row.output)
        colour, kind = f"var(--c{layer})", "torch" if row.recurrence == TORCH else "fused"
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
        parts.append(
            f'<path class="curve {kind}" d="{path}" stroke="{colour}">'
            f"<title>{escape(row.name)}</title></path>"
        )
        if kind == "fused":
            every = max(1, len(line) // 5)
            parts += [mark(layer, *point, colour) for point in line[every // 2 :: every]]
    return parts


def _labels(
    rows: Sequence[Row], placed: list[list[tuple[float, float]]], layers: list, by_time: bool
) -> list[str]:
    """What stands at the end of each curve: over tokens one label for the rows that coincide."""
    ends = [line[-1] for line in placed]
    if by_time:
        names = [str(i + 1) for i in range(len(rows))]
        kinds = [layers.index(row.output) for row in rows]
    else:
        names, kinds, chosen = [], [], []
        for layer in layers:
            numbers = [i for i, row in enumerate(rows) if row.output == layer]
            names.append(f"{', '.join(str(i + 1) for i in numbers)} {layer}")
            kinds.append(layers.index(layer))
            chosen.append(ends[numbers[-1]])
        ends = chosen
    heights = apart(ends)
    return [
        f'<g style="fill:var(--c{kind})">{text(x + 6, y + 4, name, kind="halo")}</g>'
        for (x, _), y, name, kind in zip(ends, heights, names, kinds, strict=True)
    ]


def _legend(rows: Sequence[Row]) -> str:
    """Each row's number and its line, drawn as in the curves."""
    layers = list(dict.fromkeys(row.output for row in rows))
    items = []
    for i, row in enumerate(rows):
        layer = layers.index(row.output)
        kind = "torch" if row.recurrence == TORCH else "fused"
        line = f'<path class="curve {kind}" d="M0 7h28" stroke="var(--c{layer})"/>'
        line += mark(layer, 14, 7, f"var(--c{layer})") if kind == "fused" else ""
        items.append(f'<li><svg viewBox="0 0 28 14">{line}</svg>{i + 1}  {escape(row.name)}</li>')
    return f"<ul>{''.join(items)}</ul>"


def _table(heads: list[str], cells: list[list[str]]) -> str:
    lines = ["<tr><th>#</th>" + "".join(f"<th>{escape(h)}</th>" for h in heads) + "</tr>"]
    for i, line in enumerate(cells):
        body = "".join(f"<td>{escape(cell)}</td>" for cell in line)
        lines.append(f"<tr><td>{i + 1}</td>{body}</tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def render(
    rows: Sequence[Row],
    heads: list[str],
    cells: list[list[str]],
    facts: dict[str, str],
    summary: str,
) -> str:
    """The whole page.

    Args:
        rows: what was measured; each has been trained.
        heads: the columns' names, without the number.
        cells: the table's text, one list a row.
        facts: what the figures depend on, by name.
        summary: what came out, in a sentence or two.
    """
    facts_html = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(TITLE)}</title><style>{_STYLE}</style></head><body>
{_DEFS}
<h1>{escape(TITLE)}</h1>
<p>{escape(summary)}</p>
<section>{_table(heads, cells)}
<p class="note">{escape(METHOD)}</p></section>
<div class="grid">
<section><h2>Milliseconds per training step</h2>
<p class="note">The line under each bar spans the middle half of the row's turns.</p>
{bars(rows)}</section>
<section><h2>Loss over words read</h2>
<p class="note">Wide and pale: torch.nn.LSTM. Thin: fusedrnn.LSTM, which lies on it.</p>
{curves(rows, by_time=False)}</section>
<section><h2>Loss over time</h2>
<p class="note">The same curves at each row's own speed: the shorter, the faster.</p>
{curves(rows, by_time=True)}{_legend(rows)}</section>
<section><h2>What was run</h2><dl>{facts_html}</dl></section>
</div>
</body></html>
"""
