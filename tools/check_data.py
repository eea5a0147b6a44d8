#!/usr/bin/env python3
"""Compare a data set on disk with its card: `python tools/check_data.py visda2017 [--root DIR]`."""

import sys

from uda.command_line import CommandParser, run_command
from uda.data.cards import CARDS, load_card
from uda.data.inventory import table, take_stock
from uda.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """0: all is there; 1: something is missing or too much; 2: cannot be checked."""
    parser = CommandParser(
        description="Compare the counts of a data set's card with what is on disk.",
        epilog="Ends with 0 when all is there, with 1 when something is missing or too much, with 2 on a mistake. "
        "Example: UDA_DATA=~/data python tools/check_data.py pacs",
    )
    parser.add_argument("card", nargs="?", help=f"a card of datasets/ ({', '.join(CARDS)}), or the path of one")
    parser.add_argument("--all", action="store_true", help="check every card; a data set not here is missing")
    parser.add_argument("--root", help="the data set's folder (else $UDA_DATA/<folder>, else datasets/<folder>)")
    options = parser.parse_args(arguments)
    if options.all == (options.card is not None) or (options.all and options.root is not None):
        parser.error("name one card (and its --root, if need be), or say --all")
    try:
        if not options.all:
            return _check(options.card, options.root)
        wrong = [_check_or_report(name) for name in CARDS]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return max(wrong, default=0)


def _check(name: str, root: str | None) -> int:
    card = load_card(name)
    counts = take_stock(card, root)
    odd = [count for count in counts if not count.right]
    print(f"{card.title}\n{table(counts)}")
    if odd:
        print(f"{len(odd)} of {len(counts)} counts differ from the card; get what is missing from {card.url}")
        return 1
    print("all there")
    return 0


def _check_or_report(name: str) -> int:
    try:
        return _check(name, None)
    except UserError as error:
        print(error)
        return 1
    finally:
        print()


if __name__ == "__main__":
    sys.exit(run_command(main))
