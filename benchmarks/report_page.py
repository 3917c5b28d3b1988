"""The report's page around its drawings: style, script, the table that sorts and filters."""

from html import escape

from .case import Case
from .results import Row, Run
from .svg import STYLE
from .table import HEADS, lines

PAGE_STYLE = f"""{STYLE}
.goal {{ stroke: var(--ink); stroke-width: 2.5; }}
.bad {{ font-weight: 600; }}
.tools {{ display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin: .4em 0; }}
input, select {{ font: inherit; color: inherit; background: var(--paper); padding: 4px 8px;
  border: 1px solid var(--faint); border-radius: 4px; max-width: 100%; }}
.rows th {{ padding: 0; }}
.rows th button {{ all: unset; cursor: pointer; padding: 5px 12px 5px 0; white-space: nowrap; }}
.rows th button:focus-visible {{ outline: 2px solid var(--c0); }}
.rows th[aria-sort=ascending] button::after {{ content: " \\2191"; }}
.rows th[aria-sort=descending] button::after {{ content: " \\2193"; }}
.rows td:first-child, .rows th:first-child {{ position: sticky; left: 0;
  background: var(--paper); }}
@media (max-width: 640px) {{ .rows td:first-child {{ white-space: normal; min-width: 9em; }} }}
.rows th:nth-child(3), .rows td:nth-child(3) {{ text-align: right; }}
.rows tr.ours td:nth-child(2) {{ font-weight: 600; }}
code {{ font: .85rem ui-monospace, monospace; user-select: all; }}
.plots {{ display: grid; gap: 32px 48px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }}
.losses {{ columns: 24rem; margin: 0 0 .8em; }}
.losses li {{ break-inside: avoid; padding-left: 1em; text-indent: -1em; }}
.losses li::before {{ content: "\\2013  "; }}
h2 {{ font-size: 1.3rem; margin-top: 1.6em; }} h3 {{ font-size: 1rem; margin: 0 0 .3em; }}
"""

DEFS = """<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>
<pattern id="ours" width="8" height="8" patternUnits="userSpaceOnUse">
<rect width="8" height="8" fill="var(--rec)"/></pattern>
<pattern id="lost" width="6" height="6" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)"><rect width="6" height="6" fill="var(--out)"/>
<path d="M0 0V6" stroke="var(--paper)" stroke-width="2"/></pattern></defs></svg>"""

# Sorting reads data-v where a cell has one, else its text; empty cells always come last.
SCRIPT = """
for (const box of document.querySelectorAll('.rows')) {
  const body = box.querySelector('tbody'), heads = [...box.querySelectorAll('th')];
  const search = box.querySelector('input'), count = box.querySelector('output');
  const choices = [...box.querySelectorAll('select')];
  const key = (row, i) => {
    const cell = row.cells[i], v = cell.dataset.v ?? cell.textContent.trim();
    return v === '' ? null : isNaN(v) ? v.toLowerCase() : Number(v);
  };
  heads.forEach((head, i) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach(h => h.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const rows = [...body.rows].map(row => [key(row, i), row]);
    rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1
      : (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
    body.append(...rows.map(pair => pair[1]));
  }));
  const filter = () => {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every(w => text.includes(w))
        && choices.every(c => !c.value || row.dataset[c.name] === c.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown + ' of ' + body.rows.length + ' rows';
  };
  search.addEventListener('input', filter);
  choices.forEach(c => c.addEventListener('change', filter));
  filter();
}
"""


def table(run: Run) -> str:
    """Every row of a run, timed or not, with the command that measures it alone."""
    text = {id(row): line for _, row, line in lines(run)}
    heads = [*HEADS, "command"]
    body = [_row(row, text.get(id(row))) for row in run.rows if not row.twin]
    options = {
        "op": sorted({row.case.op for row in run.rows}),
        "mode": sorted({row.case.mode for row in run.rows}),
        "peer": list(dict.fromkeys(row.peer for row in run.rows)),
        "status": sorted({row.status for row in run.rows}),
    }
    selects = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for name, values in options.items()
    )
    buttons = "".join(f'<th scope="col"><button>{escape(h)}</button></th>' for h in heads)
    return (
        '<div class="rows"><div class="tools"><label>find <input type="search" '
        f'placeholder="gru 35,20"></label>{selects}<output></output></div>'
        f'<div class="scroll"><table><thead><tr>{buttons}</tr></thead><tbody>'
        + "\n".join(body)
        + "</tbody></table></div></div>"
    )


def _row(row: Row, line: list[str] | None) -> str:
    case: Case = row.case
    attributes = {"op": case.op, "mode": case.mode, "peer": row.peer, "status": row.status}
    data = " ".join(f'data-{k}="{escape(v)}"' for k, v in attributes.items())
    kind = ' class="ours"' if row.ours else ""
    cells = [f"<td>{escape(case.name)}</td>"]
    if line is None:
        reason = f"{row.status}: {row.reason}" if row.reason else row.status
        cells.append(f"<td>{escape(row.label)}</td>")
        cells.append(f'<td data-v="">{escape(row.status)}</td>')
        cells += ["<td></td>"] * (len(HEADS) - 4) + [f'<td class="note">{escape(reason)}</td>']
    else:
        values: list[float | None] = [None, row.median * 1e3, row.spread]
        numbers = [*values, *map(_number, line[3:])]
        for word, value in zip(line, numbers, strict=True):
            v = "" if value is None else f' data-v="{value:.6g}"'
            cells.append(f"<td{v}>{escape(word)}</td>")
    peers = "" if row.twin or "@" in row.peer else f'"{row.peer}"' if " " in row.peer else row.peer
    cells.append(f"<td><code>{escape(case.command(peers))}</code></td>")
    return f"<tr{kind} {data}>{''.join(cells)}</tr>"


def _number(word: str) -> float | None:
    """What a cell sorts by: its leading number."""
    digits = word.lstrip("~>=").split("x")[0].split("%")[0].split(" ")[0]
    try:
        return float(digits)
    except ValueError:
        return None


def facts(run: Run) -> str:
    """What the figures depend on."""
    e = run.environment
    at_start, at_end = e.get("clock_at_start") or {}, e.get("clock_at_end") or {}
    clocks = "; ".join(
        f"{when}: " + ", ".join(f"{k} {v}" for k, v in clock.items() if v is not None)
        for when, clock in (("start", at_start), ("end", at_end))
        if clock
    )
    entries = {
        "measured": f"{run.created}, suite {run.suite}",
        "device": str(e.get("gpu") or e.get("processor")),
        "threads": f"{e.get('threads')} of torch and fusedrnn, {e.get('cores')} cores",
        "software": f"torch {e.get('torch')}, fusedrnn {e.get('fusedrnn')}, "
        f"Python {e.get('python')}, {e.get('system')}",
        "commit": f"{e.get('commit')}" + (", with changes" if e.get("dirty") else ""),
        "native code": f"{e.get('cpu_code')}; {e.get('library')}",
        "ceilings": f"{run.peaks['gflops']} GFLOP/s (torch.mm), {run.peaks['gb_per_s']} GB/s "
        "(copy), measured at the start"
        if run.peaks
        else "",
        "clock": clocks,
        "others": f"{e['others']:.0%} of the processors' time" if e.get("others") else "",
        "thrown away": f"{e['seconds_thrown_away']} s of samples that others disturbed"
        if e.get("seconds_thrown_away")
        else "",
        "command": run.command,
    }
    pairs = "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in entries.items() if v)
    return f"<dl>{pairs}</dl>"


def page(title: str, body: str) -> str:
    """The whole file."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body>
{DEFS}
<h1>{escape(title)}</h1>
{body}
<script>{SCRIPT}</script>
</body></html>
"""
