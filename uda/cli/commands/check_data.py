"""Compare a data set on disk with its card."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from uda.cli.command_line import CommandParser
from uda.cli.lists import listing
from uda.core.errors import UserError

if TYPE_CHECKING:
    from uda.data.banks import BankDomain
    from uda.data.inventory import Count

EXAMPLES = (
    ("check VisDA-2017 in its default folder", "visda2017"),
    ("check PACS in another folder", "pacs --root ~/data/PACS"),
    ("check the scenes of CamVid: pairs, sizes and the values in label maps", "camvid"),
    ("check a folder of your own with images/ and labels/", "./photos"),
    ("check every data set that has a card", "--all"),
    ("compare a feature bank with the card", "pacs --features banks/pacs_tf_efficientnet_lite0"),
    ("check features of your own", "--features clip"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Compare the counts of files on disk, or of a feature bank, with the counts in the data set's card. All files "
        "of a bank are read, and a file that cannot be used is an error. All label maps of scenes are read too: each "
        "image needs one of its size, with no value that the card does not name.",
        EXAMPLES,
        "The exit code is 0 if all counts match and the domains of a bank fit together, 1 if not, and 2 for a "
        "mistake in the command.",
    )
    parser.add_argument(
        "card",
        nargs="?",
        offers=_cards,
        help="a card: a name in datasets/, or a path; or a folder with images/ and labels/",
    )
    parser.add_argument("--all", action="store_true", help="check every card; an absent data set is reported")
    parser.add_argument(
        "--root", help="the data set's folder (default: $UDA_DATA/<folder>, or datasets/<folder> if it is not there)"
    )
    parser.add_argument(
        "--features", type=Path, metavar="BANK", help="a feature bank in place of images; a card is then optional"
    )
    parser.add_list(["datasets"], listing)
    parser.set_defaults(run=partial(_run, parser))


def _cards() -> list[str]:
    from uda.data.cards import CARDS

    return list(CARDS)


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if options.features is not None:
        if options.all or options.root is not None:
            parser.error("--features: give a bank alone, or with a card")
        return _check_bank(options.features, options.card)
    if options.all == (options.card is not None) or (options.all and options.root is not None):
        parser.error("name one card (with --root if needed), or give --all, or a bank with --features")
    if not options.all:
        return _check(options.card, options.root)
    return max([_check_or_report(name) for name in _cards()], default=0)


def _check(name: str, root: str | None) -> int:
    from uda.data.cards import load_card
    from uda.data.inventory import take_stock

    if (Path(name) / "images").is_dir():
        from uda.data.scene_inventory import take_stock_of_folder

        stock = take_stock_of_folder(Path(name), print)
        return _tell(name, stock.counts, "repair or remove these scenes", stock.notes, "what is expected")
    card, cure = load_card(name), "get what is missing from {url}"
    if card.task == "segmentation":
        from uda.data.scene_inventory import take_stock_of_scenes

        stock = take_stock_of_scenes(card, root, print)
        return _tell(card.title, stock.counts, cure.format(url=card.url), stock.notes)
    return _tell(card.title, take_stock(card, root), cure.format(url=card.url))


def _check_bank(folder: Path, card_name: str | None) -> int:
    from uda.data.banks import ENDINGS, passed_over, read_domains
    from uda.data.cards import load_card
    from uda.data.inventory import misfits, table, take_stock_of_bank
    from uda.models.feature_maker import told_of

    card = None if card_name is None else load_card(card_name)
    domains = read_domains(folder)
    counts = take_stock_of_bank(domains, card)
    told = sorted({f"{told_of(domain.width, domain.made_by)}, {_views(domain)}" for domain in domains.values()})
    title = f"{folder}: {'; '.join(told)}"
    code = 0
    if card is None:
        print(f"{title}\n{table(counts)}")
    else:
        code = _tell(title, counts, "make the bank again")
    for note in (note for domain in domains.values() for note in domain.notes):
        print(note)
    if others := passed_over(folder):
        print(f"passed over: {', '.join(others)}; files of a bank end in {', '.join(ENDINGS)}")
    if problems := misfits(domains, classes=card is None):
        print("\n".join(f"does not fit: {problem}" for problem in problems))
        return 1
    if card is None:
        print(f"{len(domains)} domain{'s' * (len(domains) > 1)} can be used")
    return code


def _views(domain: "BankDomain") -> str:
    count = 0 if domain.views is None else domain.views.shape[1]
    return f"{count} augmented view{'s' * (count != 1)}" if count else "no augmented views"


def _tell(title: str, counts: "list[Count]", cure: str, notes: Sequence[str] = (), reference: str = "the card") -> int:
    from uda.data.inventory import table

    odd = [count for count in counts if not count.right]
    print(f"{title}\n{table(counts)}")
    for note in notes:
        print(note)
    if odd:
        print(f"{len(odd)} of {len(counts)} counts differ from {reference}; {cure}")
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
