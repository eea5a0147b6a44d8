"""Options that the commands share which carry out runs or open them."""

import argparse
from collections.abc import Sequence
from functools import partial

from uda.cli.command_line import CommandParser
from uda.cli.lists import config_names, listing


class Once(argparse.Action):
    """A flag that may be given only once. argparse would take the last value without a word."""

    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string}: give it only once; each config needs a command of its own")
        setattr(namespace, self.dest, values)


def add_config(parser: CommandParser, command: str, several: str = "", **options) -> None:
    """Add `--cfg` and `--dry-run`.

    Args:
        parser: the command's parser.
        command: its name, by which configs are listed.
        several: what a repeated `--cfg` does; empty: only one is taken.
        options: of `--cfg`, as argparse takes them.
    """
    repeated = f"; may be repeated to {several}" if several else ""
    parser.add_argument(
        "--cfg",
        metavar="FILE",
        action="append" if several else Once,
        offers=lambda: config_names(command),
        help=f"a config: a path, or a name in configs/{repeated}",
        **options,
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check config, data and model, print plan and cost, stop"
    )


def add_run(parser: CommandParser, command: str, lists: Sequence[str], change: str, several: str = "") -> None:
    """Add `--cfg`, `--dry-run`, `--list` and the `key=value` words, whose help text is `change`."""
    add_config(parser, command, several)
    parser.add_list(lists, partial(listing, commands=[command]))
    parser.add_overrides(change)


def add_saved_run(parser: CommandParser) -> None:
    """Add the folder of a run, `run_folder`, and `--weights`."""
    parser.add_argument(
        "run_folder", metavar="RUN", help="a run folder, such as runs/digits_avh/seed0; any kind of run will do"
    )
    parser.add_argument(
        "--weights",
        default="final",
        offers=lambda: ("final", "label_free", "validation", "source"),
        help="final, label_free (the choice without target labels), source (before adaptation), or validation (the "
        "choice of domain generalisation); of an unfinished run, any that it has saved (default: final)",
    )
