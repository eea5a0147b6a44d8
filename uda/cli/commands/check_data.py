"""Compare a data set on disk with its card."""

import argparse
from functools import partial

from uda.cli.command_line import CommandParser
from uda.cli.lists import listing
from uda.core.errors import UserError

EXAMPLES = (
    ("check VisDA-2017 in its default folder", "visda2017"),
    ("check PACS in another folder", "pacs --root ~/data/PACS"),
    ("check every data set that has a card", "--all"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Compare the counts of files on disk with the counts in the data set's card.",
        EXAMPLES,
        "The exit code is 0 if all counts match, 1 if not, and 2 for a mistake in the command.",
    )
    parser.add_argument("card", nargs="?", offers=_cards, help="a card: a name in datasets/, or a path")
    parser.add_argument("--all", action="store_true", help="check every card; an absent data set is reported")
    parser.add_argument(
        "--root", help="the data set's folder (default: $UDA_DATA/<folder>, or datasets/<folder> if it is not there)"
    )
    parser.add_list(["datasets"], listing)
    parser.set_defaults(run=partial(_run, parser))


def _cards() -> list[str]:
    from uda.data.cards import CARDS

    return list(CARDS)


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if options.all == (options.card is not None) or (options.all and options.root is not None):
        parser.error("name one card (with --root if needed), or give --all")
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
    print("all counts match")
    return 0


def _check_or_report(name: str) -> int:
    try:
        return _check(name, None)
    except UserError as error:
        print(error)
        return 1
    finally:
        print()
