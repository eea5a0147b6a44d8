"""Compare a data set on disk with its card."""

import argparse
from functools import partial

from uda.cli.command_line import CommandParser
from uda.cli.lists import listing
from uda.core.errors import UserError

EXAMPLES = (
    ("is VisDA-2017 where it is looked for?", "visda2017"),
    ("is PACS in this folder?", "pacs --root ~/data/PACS"),
    ("every data set that has a card", "--all"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Compare the counts of a data set's card with what is on disk.",
        EXAMPLES,
        "The exit code is 0 when nothing is missing or too much, 1 otherwise, and 2 for a mistake in the command.",
    )
    parser.add_argument("card", nargs="?", offers=_cards, help="a card of datasets/, or the path of one")
    parser.add_argument("--all", action="store_true", help="check every card; a data set not here is missing")
    parser.add_argument("--root", help="the data set's folder (else $UDA_DATA/<folder>, else datasets/<folder>)")
    parser.add_list(["datasets"], listing)
    parser.set_defaults(run=partial(_run, parser))


def _cards() -> list[str]:
    from uda.data.cards import CARDS

    return list(CARDS)


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if options.all == (options.card is not None) or (options.all and options.root is not None):
        parser.error("name one card (and its --root, if need be), or say --all")
    if not options.all:
        return _check(options.card, options.root)
    return max([_check_or_report(name) for name in _cards()], default=0)


def _check(name: str, root: str | None) -> int:
    from uda.data.cards import load_card
    from uda.data.inventory import table, take_stock

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
