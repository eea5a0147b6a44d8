"""Print the names that a config or a command can choose."""

import argparse
from functools import partial

from uda.cli.command_line import CommandParser
from uda.cli.lists import KINDS, listing
from uda.core.registry import nearest

EXAMPLES = (
    ("print what can be listed", ""),
    ("all configs, grouped by command", "configs"),
    ("the data sets that have a card", "datasets"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain("Print the names of a kind, one per line. Without a kind, print the kinds.", EXAMPLES)
    parser.add_argument("what", nargs="?", metavar="WHAT", offers=lambda: KINDS, help=", ".join(KINDS))
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> None:
    if options.what is not None and options.what not in KINDS:
        parser.error(f"unknown '{options.what}'{nearest(options.what, list(KINDS))} (known: {', '.join(KINDS)})")
    print("\n".join(KINDS) if options.what is None else listing(options.what))
