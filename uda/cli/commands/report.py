"""Build the page of a run again, and check its records."""

import argparse
import sys
from functools import partial
from pathlib import Path

from uda.cli.command_line import CommandParser

EXAMPLES = (("build the page of a run again, finished or not", "runs/digits_avh/seed0"),)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Build report.html of a run folder again from its records, and check them. The images are not needed. "
        "What is missing, broken or contradictory is printed, and the page says it too.",
        EXAMPLES,
        "The exit code is 0 if nothing is wrong, 1 if something is, and 2 for a mistake in the command.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    from uda.run_pages import rebuild

    wrong = 0
    for folder in options.runs:
        record = rebuild(folder)
        for problem in record.problems:
            print(f"{folder}: {problem}", file=sys.stderr)
        print(f"report: {folder / 'report.html'}")
        wrong += bool(record.problems)
    return 1 if wrong else 0
