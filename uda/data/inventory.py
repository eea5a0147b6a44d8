"""Compares the image counts of a data set's card with the files on disk."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uda.core.errors import UserError
from uda.data import digits
from uda.data.banks import BankDomain, check_one_bank
from uda.data.cards import Card
from uda.data.class_names import NO_LABEL, check_same_classes
from uda.data.folders import look_below
from uda.data.list_files import read_list_file
from uda.data.list_labels import is_number
from uda.data.listing import class_folders
from uda.data.text import same_form


@dataclass(frozen=True)
class Count:
    """Images of one class of a domain, or of all (`label` is None). `expected` is None if the card gives no count."""

    domain: str
    label: str | None
    expected: int | None
    found: int
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether the count agrees with the card."""
        return not self.note and self.expected in (None, self.found)


def take_stock(card: Card, root: str | None = None) -> list[Count]:
    """Every count of a card and the count on disk, domain by domain. The count of the whole domain comes first.

    Args:
        card: the data set.
        root: its folder. None: `Card.find_root` finds it.

    Raises:
        UserError: the data set was not found, or a list file cannot be read.
    """
    found_root = None if card.layout == "generated" else card.find_root(root)
    return [count for name in card.domains for count in _domain_counts(card, name, found_root)]


def take_stock_of_bank(domains: Mapping[str, BankDomain], card: Card | None = None) -> list[Count]:
    """The counts of a feature bank, as `take_stock` counts images on disk.

    Args:
        domains: the bank's domains by name.
        card: what the counts are compared with. None: the counts are found only.

    Raises:
        UserError: a domain is not in the card.
    """
    counts = []
    for name, bank in domains.items():
        if card is not None and name not in card.domains:
            known = ", ".join(card.domains)
            raise UserError(f"{bank.file}: the card '{card.name}' has no domain '{name}' (it has {known})")
        listing = bank.listing(None)
        names, labels = listing.classes, listing.labels
        found = Counter(names[label] if label >= 0 else "no label" for label in labels.tolist())
        if card is None:
            counts.append(Count(name, None, None, len(labels)))
            counts += [Count(name, label, found[label], found[label]) for label in sorted(found)]
        else:
            counts += _compared(card, name, found, "")
    return counts


def misfits(domains: Mapping[str, BankDomain], classes: bool = True) -> list[str]:
    """Why a run on several domains of a bank would be refused, one line each; empty if they fit together.

    Args:
        domains: the bank's domains by name.
        classes: whether their classes are compared. The first domain with labels stands for the source.
    """
    found = []
    try:
        check_one_bank(list(domains.values()))
    except UserError as error:
        found.append(str(error))
    labelled = [domain for domain in domains.values() if (domain.labels != NO_LABEL).any()] if classes else []
    for other in labelled[1:]:
        first = labelled[0]
        try:
            listing = other.listing(first.listing(None).order(str(first.file)), is_target=True)
            named = {listing.classes[label] for label in set(listing.labels.tolist()) if label >= 0}
            lenient = bool((other.labels == NO_LABEL).any())
            where = (str(other.file), str(first.file))
            check_same_classes(named, listing.classes, *where, may_lack=lenient, is_target=True)
        except UserError as error:
            found.append(str(error))
    return found


def _domain_counts(card: Card, name: str, root: Path | None) -> list[Count]:
    if root is None:
        _, labels = digits.domain(name, 1000, seed=0)
        return _compared(card, name, Counter(str(label) for label in labels), "")
    return _compared(card, name, *_on_disk(card, name, root))


def _compared(card: Card, name: str, found: Counter[str], note: str) -> list[Count]:
    """The counts of a domain by class. `note`: what is wrong with the whole domain."""
    domain = card.domains[name]
    whole = Count(name, None, domain.images, sum(found.values()), note)
    expected = domain.per_class or {}
    known = card.classes or tuple(sorted(found.keys() | expected.keys()))
    rows = [Count(name, label, expected.get(label), found[label], "" if found[label] else "missing") for label in known]
    strangers = sorted(found.keys() - set(known))
    rows += [Count(name, label, None, found[label], "not a class of the card") for label in strangers]
    if card.classes is None and len(known) != card.num_classes:
        rows.append(Count(name, "classes", card.num_classes, len(known)))
    return [whole, *rows]


def _on_disk(card: Card, name: str, root: Path) -> tuple[Counter[str], str]:
    """Number of images of each class on disk, and a note on what is wrong with the whole domain."""
    domain = card.domains[name]
    folder = next((root / path for path in domain.paths if (root / path).is_dir()), None)
    if folder is None:
        return Counter(), f"no folder {' or '.join(domain.paths)}"
    if domain.list is not None and (root / domain.list).is_file():
        entries = read_list_file(root / domain.list, folder)
        found = Counter(_class_name(card, entry.path, entry.label) for entry in entries if entry.exists)
        absent = sorted({entry.path for entry in entries if not entry.exists})
        note = f"{len(absent)} listed images missing, such as {absent[0]}" if absent else ""
        return found, note
    if card.layout == "lists":
        return Counter(), f"no list {domain.list}"
    tree = look_below(folder)
    found = Counter(dict.fromkeys(class_folders(tree), 0))
    found.update(same_form(path.partition("/")[0]) for path in tree.images if "/" in path)
    return found, ""


def _class_name(card: Card, path: str, label: str | None) -> str:
    if label is None or (is_number(label) and card.classes is None):
        return same_form(Path(path).parent.name)
    if not is_number(label):
        return label
    return card.classes[int(label)] if int(label) < len(card.classes) else f"label {label}"


def table(counts: list[Count]) -> str:
    """The counts as text: a line for each domain, and for each class that the card counts or that is wrong."""
    rows = [
        (
            count.domain if count.label is None else f"  {count.label}",
            "-" if count.expected is None else f"{count.expected:,}",
            f"{count.found:,}",
            "ok" if count.right else count.note or f"{count.found - count.expected:+,}",
        )
        for count in counts
        if count.label is None or count.expected is not None or not count.right
    ]
    rows.insert(0, ("domain / class", "expected", "found", ""))
    width = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"{a:<{width[0]}}  {b:>{width[1]}}  {c:>{width[2]}}  {d}".rstrip() for a, b, c, d in rows)
