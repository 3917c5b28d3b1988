"""``tables``: brings the tables and figures of README and docs up to the recorded results."""

import argparse

from . import markdown
from .environment import ROOT


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tables``."""
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if stale")


def main(options: argparse.Namespace) -> int:
    """Write them, or say which are stale."""
    changed = markdown.stale() if options.check else markdown.update()
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {'stale' if options.check else 'written'}")
    if not changed:
        print("all up to date")
    return int(options.check and bool(changed))
