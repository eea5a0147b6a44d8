"""Reads the labels of a list file: class names, or numbers if their meaning is certain."""

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
    """Labels of a list's images. At least one image must have a label.

    Args:
        file: the list, for messages.
        entries: its N lines.
        order: the classes. None: the names in the list, sorted. If the labels are numbers and each class has its own
            folder, the names of these folders, else the numbers.

    Returns:
        The labels, (N,) int64, with NO_LABEL for images without a label and UNKNOWN_CLASS for other classes if they
        are allowed. The class names that the labels index. How the order of the classes is known.

    Raises:
        UserError: an unknown class, numbers of uncertain meaning, or fewer than two classes. The message names the
            file and the line or class.
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
            f"{file}: line {number.line}: label '{number.label}' is a number, but others are names; use only names or "
            "only numbers, or set data.classes if the number is a name"
        )
    names = tuple(sorted(given)) if order is None else order.names
    if len(names) < 2 and all(entry.label is not None for entry in entries):
        raise UserError(f"{file}: all images have the label '{names[0]}', but at least two classes are needed")
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
    """Whether a label can be a class number."""
    return re.fullmatch(r"[0-9]{1,9}", label) is not None


def _check_label(file: Path, entry: ListEntry, order: ClassOrder | None) -> None:
    """Raise UserError if a label can be neither a class name nor a class number."""
    label = entry.label
    if label is None or (order is not None and label in order.names):
        return
    where = f"{file}: line {entry.line}: label '{printable(label)}'"
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", label) and not is_number(label):
        whole = f"write {label.partition('.')[0]}" if re.fullmatch(r"[0-9]+\.0*", label) else "correct it"
        raise UserError(
            f"{where}: a label is a class name, or a whole number counted from 0, or -1 if it is unknown; {whole}"
        )
    if label[0] in ",;|":
        raise UserError(f"{where}: it begins with '{label[0]}'; write a space or a tab in its place")
    if "\t" in label or re.fullmatch(r"[-+.0-9e]+(\s+[-+.0-9e]+)+", label):
        raise UserError(f"{where}: the line has more than two columns; write only `path label`")
    if PurePosixPath(label).suffix.lower() in SUFFIXES:
        raise UserError(f"{where}: it is an image too; write one image per line")


def _are_names(file: Path, given: set[str], order: ClassOrder) -> bool:
    """Whether labels that are numbers are class names, and not places in the order of the classes.

    Raises UserError if they may be both and the two readings mean different classes.
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
            else "give the classes names that are not numbers, in the list and elsewhere"
        )
    )


def _check_numbers(file: Path, entries: Sequence[ListEntry], numbers: np.ndarray, order: ClassOrder) -> None:
    """Raise UserError if numbers are not places in the order of the classes, or if that order is uncertain."""
    names, count = order.names, len(order.names)
    from_one = "; these seem to be counted from 1" if numbers.max() == count and not (numbers == 0).any() else ""
    if numbers.max() >= count and (from_one or not order.may_add):
        raise UserError(
            f"{file}: line {entries[int(numbers.argmax())].line}: label {numbers.max()}, but the classes are numbered "
            f"0 to {count - 1} ({sample(names)}){from_one}; correct the list, or write names as labels"
        )
    cure = "set data.classes to the names in the list's order (a list, or a file with one name per line)"
    as_text, as_people = two_orders(names)
    orders = f"{sample(as_text)} (as text) or {sample(as_people)} (as people count)"
    # Folders that are named by the list's own numbers give no information.
    spoken = set() if names == tuple(map(str, range(count))) else set(names)
    folders = [_folder(entry) for entry in entries]
    told = [i for i, folder in enumerate(folders) if folder in spoken and 0 <= numbers[i] < count]
    odd = [i for i in told if names[numbers[i]] != folders[i]]
    # A given order is trusted unless all folders contradict it: a few images may have corrected labels.
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
            f"{file}: its labels are numbers, but the order of the classes of {order.where} is uncertain: "
            f"{orders}: {cure}"
        )
    if not (numbers == 0).any():
        raise UserError(f"{file}: its labels are numbers and none is 0, so they may count from 0 or from 1: {cure}")


def _names_of_numbers(file: Path, entries: Sequence[ListEntry], numbers: np.ndarray) -> tuple[str, ...]:
    """Class names for labels that are numbers: the images' folders if each class has its own, else the numbers.

    Raises UserError if a number has no image.
    """
    folders: dict[int, set[str]] = {}
    for entry, number in zip(entries, numbers.tolist(), strict=True):
        if number >= 0:
            folders.setdefault(number, set()).add(_folder(entry))
    count = max(folders) + 1
    if absent := [str(number) for number in range(min(count, len(entries) + 1)) if number not in folders]:
        raise UserError(
            f"{file}: no image has the label {sample(absent, 12)}; number the classes from 0 without gaps, "
            "or set data.classes to their names"
        )
    if count < 2 and (numbers == 0).all():
        raise UserError(f"{file}: all images have the label 0, but at least two classes are needed")
    alone = [next(iter(folders[number])) if len(folders[number]) == 1 else "" for number in range(count)]
    return tuple(alone) if all(alone) and len(set(alone)) == count else tuple(map(str, range(count)))


def _folder(entry: ListEntry) -> str:
    """Name of the image's folder, composed (NFC)."""
    return same_form(entry.path.rpartition("/")[0].rpartition("/")[2])
