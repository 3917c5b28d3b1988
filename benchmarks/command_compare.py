"""``compare``: two results row by row: how many times as fast the second is, with its interval.

Exit status 1 with --fail-over where a row of ours is slower by more than that, beyond the 95%
interval, or was timed in the first and is wrong or failed in the second.
"""

import argparse

from .results import Row, Run, load, ratio

FACTS = ("processor", "threads", "torch", "device", "cpu_code")


def percent(text: str) -> float:
    """``5%`` or ``0.05`` as a share."""
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= share < 10:
        raise argparse.ArgumentTypeError(f"{text}: write 5% or 0.05")
    return share


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare``."""
    parser.add_argument("before", metavar="A.json", help="the run to compare with")
    parser.add_argument("after", metavar="B.json", help="the run to judge")
    parser.add_argument("--fail-over", type=percent, metavar="5%", help="exit with 1 beyond it")


def pairs(before: Run, after: Run) -> list[tuple[Row, Row]]:
    """The rows that both have and the first has timed, twins left out."""
    known = {(r.case, r.peer): r for r in before.rows if r.status == "ok" and not r.twin}
    found = ((known.get((r.case, r.peer)), r) for r in after.rows if not r.twin)
    return [(a, b) for a, b in found if a is not None]


def verdict(a: Row, b: Row, limit: float | None) -> tuple[list[str], bool]:
    """The text of a pair, and whether it fails."""
    if b.status != "ok":
        lost = b.ours and b.status in ("wrong", "failed")
        return [f"{a.median * 1e3:.4g}", b.status, "", "", b.reason], lost
    point, low, high = ratio(a.samples, b.samples)
    word = "faster" if low > 1 else "slower" if high < 1 else "same"
    line = [f"{a.median * 1e3:.4g}", f"{b.median * 1e3:.4g}", f"{point:.3f}x"]
    fails = limit is not None and b.ours and high < 1 / (1 + limit)
    return [*line, f"{low:.3f}-{high:.3f}", f"{word}{', FAILS' * fails}"], fails


def main(options: argparse.Namespace) -> int:
    """Print a line for each pair, and what differs about the runs."""
    before, after = load(options.before), load(options.after)
    both = pairs(before, after)
    for fact in FACTS:
        one, other = before.environment.get(fact), after.environment.get(fact)
        if one != other:
            print(f"not the same {fact}: {one} and {other}")
    commits = [run.environment.get("commit") for run in (before, after)]
    print(f"A is {options.before} (commit {commits[0]}), B is {options.after} ({commits[1]})\n")
    body, failures = [["case", "peer", "A ms", "B ms", "B is", "95%", ""]], 0
    for a, b in both:
        text, fails = verdict(a, b, options.fail_over)
        body.append([a.case.name, a.peer, *text])
        failures += fails
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    for line in body:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    alone = [len({(r.case, r.peer) for r in run.rows if not r.twin}) - len(both)
             for run in (before, after)]  # fmt: skip
    print(f"\n{len(both)} rows in both, {alone[0]} of A and {alone[1]} of B have no partner")
    if not both:
        print("nothing to compare")
        return 1
    if options.fail_over is not None:
        print(f"{failures} rows of ours slower by more than {options.fail_over:.3g} of the time, "
              "or no longer right")  # fmt: skip
    return int(failures > 0)
