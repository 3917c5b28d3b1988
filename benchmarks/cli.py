"""The command line: list, run, compare, report, tables, lm, gpu-check, gpu-status."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from . import (
    command_compare,
    command_gpu_check,
    command_gpu_status,
    command_list,
    command_lm,
    command_report,
    command_run,
    command_tables,
)
from .base import BaseError
from .case import CaseError
from .results import ResultsError

COMMANDS = {
    "list": command_list,
    "run": command_run,
    "compare": command_compare,
    "report": command_report,
    "tables": command_tables,
    "lm": command_lm,
    "gpu-check": command_gpu_check,
    "gpu-status": command_gpu_status,
}

DESCRIPTION = """\
Measures recurrent layers and output layers beside their peers. Every row is verified against
float64 before it is timed; docs/benchmarks.md says how, and how to add a peer or a suite."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = cli.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = module.__doc__.splitlines()[0].partition(": ")[2]
        sub = commands.add_parser(name, help=about, description=module.__doc__.partition(": ")[2])
        module.arguments(sub)
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 good, 1 a finding, 2 a usage error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(argv)
    options.typed = shlex.join(["python", "-m", "benchmarks", *argv])
    try:
        return COMMANDS[options.command].main(options)
    except (BaseError, CaseError, ResultsError) as error:
        print(f"benchmarks {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`
        return 0
