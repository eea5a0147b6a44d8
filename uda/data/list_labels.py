"""The labels of a list file: names of classes, or numbers where it is beyond doubt what they mean."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from uda.core.errors import UserError
from uda.data.class_names import UNKNOWN_CLASS, ClassOrder, KnownBy, alike, closest, sample, two_orders
from uda.data.images import SUFFIXES
from uda.data.list_files import ListEntry
from uda.data.text import printable, same_form


def read_labels(
    file: Path, entries: Sequence[ListEntry], order: ClassOrder | None
) -> tuple[np.ndarray, tuple[str, ...], KnownBy]:
    """Labels of a list's images, of which one at least has a label.

    Args:
        file: the list, for messages.
        entries: its N lines.
        order: the classes; None: the names found, in sorted order; for numbers the names of the images' folders where
            each class has one of its own, else the numbers.

    Returns:
        (N,) int64, NO_LABEL where there is none, UNKNOWN_CLASS for another class where that is allowed; the names of
        the classes that they index; how their order is known.

    Raises:
        UserError: naming the file and the line or class: an unknown class, numbers in doubt, fewer than two classes.
    """
    given = {entry.label: entry for entry in reversed(entries) if entry.label is not None}  # the first line of each
    first = sorted(given.values(), key=lambda entry: entry.line)
    for entry in first:
        _check_label(file, entry, order)
    if all(map(is_number, given)):
        numbers = np.array([-1 if entry.label is None else int(entry.label) for entry in entries], dtype=np.int64)
        if order is None:
            names = _names_of_numbers(file, entries, numbers)
            return numbers, names, "numbered"
        if not _are_names(file, set(given), order):
            _check_numbers(file, entries, numbers, order)
            return np.where(numbers < len(order.names), numbers, UNKNOWN_CLASS), order.names, order.known
    elif order is None and (number := next((entry for entry in first if is_number(entry.label)), None)):
        raise UserError(
            f"{file}: line {number.line}: label '{number.label}' is a number, others are names; use one of the two, "
            "or set data.classes if that is a name"
        )
    names = tuple(sorted(given)) if order is None else order.names
    if len(names) < 2 and all(entry.label is not None for entry in entries):
        raise UserError(f"{file}: all images have the label '{names[0]}'; at least two classes are needed")
    index = {name: label for label, name in enumerate(names)}
    for entry in first:
        if entry.label not in index:
            if order.may_add and alike(entry.label) not in map(alike, names):
                index[entry.label] = UNKNOWN_CLASS
                continue
            raise UserError(
                f"{file}: line {entry.line}: class '{printable(entry.label)}' is not in {order.where}"
                f"{closest(entry.label, names)} (known: {sample(names, 12)})"
            )
    indices = np.array([-1 if entry.label is None else index[entry.label] for entry in entries], dtype=np.int64)
    return indices, names, "sorted" if order is None else order.known


def is_number(label: str) -> bool:
    """Whether a label can be a class's number."""
    return re.fullmatch(r"[0-9]{1,9}", label) is not None


def _check_label(file: Path, entry: ListEntry, order: ClassOrder | None) -> None:
    """Raise UserError where a label can be neither a name nor a number."""
    label = entry.label
    if label is None or (order is not None and label in order.names):
        return
    where = f"{file}: line {entry.line}: label '{printable(label)}'"
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", label) and not is_number(label):
        whole = f"write {label.partition('.')[0]}" if re.fullmatch(r"[0-9]+\.0*", label) else "mend it"
        raise UserError(
            f"{where}: labels are class names, or whole numbers counted from 0, and -1 where unknown; {whole}"
        )
    if label[0] in ",;|":
        raise UserError(f"{where}: '{label[0]}' stands before it; write a space or a tab in its place")
    if "\t" in label or re.fullmatch(r"[-+.0-9e]+(\s+[-+.0-9e]+)+", label):
        raise UserError(f"{where}: the line has more than two columns; write `path label` alone")
    if PurePosixPath(label).suffix.lower() in SUFFIXES:
        raise UserError(f"{where}: is an image too; write a line for each")


def _are_names(file: Path, given: set[str], order: ClassOrder) -> bool:
    """Whether labels that are numbers are names of classes, and not their places in the order.

    Raises UserError where they may be both, and mean other classes.
    """
    named = {int(name): place for place, name in enumerate(order.names) if is_number(name)}
    differ = [int(label) for label in given if named.get(int(label), int(label)) != int(label)]
    if not differ and len(named) == sum(map(is_number, order.names)):
        return False
    differ = differ or [int(label) for label in given if int(label) in named]
    if not differ:
        return False
    if given <= set(order.names) and max(map(int, given)) >= len(order.names):
        return True
    in_range = max(map(int, given)) < len(order.names)
    if in_range and order.known != "sorted" and not given <= set(order.names):
        return False
    number = min(differ)
    at = f"class number {number}, counted from 0, is '{order.names[number]}'" if number < len(order.names) else ""
    raise UserError(
        f"{file}: label {number} may mean two classes: there is one named '{order.names[named[number]]}'"
        f"{', and ' if at else ''}{at}, in the order {sample(order.names)} or, as people count, "
        f"{sample(two_orders(order.names)[1])}: "
        + (
            "set data.classes to the names in the list's order"
            if order.known == "sorted"
            else "name the classes by words, in the list and elsewhere"
        )
    )


def _check_numbers(file: Path, entries: Sequence[ListEntry], numbers: np.ndarray, order: ClassOrder) -> None:
    """Raise UserError where numbers are no places in the order of the classes, or that order is in doubt."""
    names, count = order.names, len(order.names)
    from_one = "; these seem to be counted from 1" if numbers.max() == count and not (numbers == 0).any() else ""
    if numbers.max() >= count and (from_one or not order.may_add):
        raise UserError(
            f"{file}: line {entries[int(numbers.argmax())].line}: label {numbers.max()}, but the classes are numbered "
            f"0 to {count - 1} ({sample(names)}){from_one}; mend the list, or write names as labels"
        )
    cure = "set data.classes to the names in the list's order (a list, or a file with a name a line)"
    as_text, as_people = two_orders(names)
    orders = f"{sample(as_text)} (as text) or {sample(as_people)} (as people count)"
    # Folders that are named by the list's own numbers tell nothing.
    spoken = set() if names == tuple(map(str, range(count))) else set(names)
    folders = [_folder(entry) for entry in entries]
    told = [i for i, folder in enumerate(folders) if folder in spoken and 0 <= numbers[i] < count]
    odd = [i for i in told if names[numbers[i]] != folders[i]]
    # A given order is believed, unless all folders speak against it: a few may hold images whose labels were mended.
    if odd and (order.known != "given" or (len(odd) == len(told) and len({folders[i] for i in told}) > 1)):
        odd = odd[0]
        raise UserError(
            f"{file}: line {entries[odd].line}: label {numbers[odd]} is '{names[numbers[odd]]}' in the order of "
            f"{order.where} ({sample(names)}), but the image's folder is '{folders[odd]}': {cure}"
        )
    if order.known != "sorted" or len(told) == (numbers >= 0).sum():
        return
    if as_text != as_people:
        raise UserError(
            f"{file}: its labels are numbers, and the order of the classes of {order.where} is in doubt: "
            f"{orders}: {cure}"
        )
    if not (numbers == 0).any():
        raise UserError(
            f"{file}: its labels are numbers and none is 0, so they may be counted from 0 or from 1: {cure}"
        )


def _names_of_numbers(file: Path, entries: Sequence[ListEntry], numbers: np.ndarray) -> tuple[str, ...]:
    """Class names for numbered labels: the images' folders if they tell the classes apart, else the numbers.

    Raises UserError where a number has no image.
    """
    folders: dict[int, set[str]] = {}
    for entry, number in zip(entries, numbers.tolist(), strict=True):
        if number >= 0:
            folders.setdefault(number, set()).add(_folder(entry))
    count = max(folders) + 1
    if absent := [str(number) for number in range(min(count, len(entries) + 1)) if number not in folders]:
        raise UserError(
            f"{file}: no image has label {sample(absent, 12)}; number the classes from 0 without gaps, "
            "or set data.classes to their names"
        )
    if count < 2 and (numbers == 0).all():
        raise UserError(f"{file}: all images have the label 0; at least two classes are needed")
    alone = [next(iter(folders[number])) if len(folders[number]) == 1 else "" for number in range(count)]
    return tuple(alone) if all(alone) and len(set(alone)) == count else tuple(map(str, range(count)))


def _folder(entry: ListEntry) -> str:
    """Name of the folder that an image lies in, composed (NFC)."""
    return same_form(entry.path.rpartition("/")[0].rpartition("/")[2])
