"""``list``: suites, operations and peers: what is here, what is missing, and how to get it."""

import argparse
import textwrap

from fusedrnn.cells import CELLS

from .case import COUNTS, INPUTS, LAYOUTS, MODES, OPS
from .peers import PEERS
from .suites import SUITES


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def _section(title: str, entries: dict[str, str]) -> None:
    print(f"\n{title}")
    width = max(map(len, entries)) + 2
    for name, text in entries.items():
        print(textwrap.fill(text, 100, initial_indent=f"  {name:<{width}}",
                            subsequent_indent=" " * (width + 2)))  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Print them all."""
    suites = {n: f"{s.about} ({len(s.cases)} cases)" for n, s in SUITES.items()}
    suites["custom"] = "what --op, --cell, --shape and the like say, without --suite"
    print("Suites: python -m benchmarks run --suite NAME", end="")
    _section("", suites)
    _section("Operations (--op) and their sizes (--shape)", {
        op: ",".join(f"{n}=..." for n in names) for op, names in OPS.items()
    })  # fmt: skip
    _section("Cells (--cell)", {name: f"gates {', '.join(c.gates)}" for name, c in CELLS.items()})
    _section("Modes (--mode)", MODES)
    _section("Layouts (--layout)", LAYOUTS)
    _section("Counts of words (--counts)", COUNTS)
    _section("Inputs of output layers (--inputs)", INPUTS)
    for title, here in (("Peers that can run here (--peer)", True), ("Peers that cannot", False)):
        entries = {}
        for name, peer in PEERS.items():
            missing = peer.missing()
            if (missing is None) == here:
                text = f"{'/'.join(peer.ops)}: {peer.what}" if here else f"{missing}"
                entries[name] = text + (f"; {peer.note}" if peer.note else "")
        if entries:
            _section(title, entries)
    return 0
