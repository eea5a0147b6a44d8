"""What lies on disk: class folders, flat folders and list files, as paths and labels."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from uda.data.images import SUFFIXES
from uda.errors import UserError
from uda.registry import nearest

_ENDINGS = "|".join(sorted(suffix[1:] for suffix in SUFFIXES))
_LABELLED = re.compile(rf"(?P<path>.*?\.(?:{_ENDINGS}))\s+(?P<label>\S.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, and their labels.

    `paths` (N) are relative to `root`, with forward slashes; `labels` (N,) int64 index `classes`, -1 where unknown.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels >= 0).all())


@dataclass(frozen=True)
class ListEntry:
    """One line of a list file: its number, the path relative to the root, and the label as it stands, if any."""

    line: int
    path: str
    label: str | None


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_below(folder: Path) -> list[str]:
    """Image files in a folder and its sub-folders, relative to it, sorted; hidden files do not count.

    Raises UserError for a name that no text file could hold.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        found += [
            (relative / name).as_posix()
            for name in files
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder}: a file's name is not UTF-8, rename it: {os.fsencode(name)!r}") from None
    return sorted(found)


def _sample(names: Sequence[str], shown: int = 5) -> str:
    """The first few of some names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def check_same_classes(found: Sequence[str], wanted: Sequence[str], where: str, reference: str) -> None:
    """Raise UserError naming every class that is in only one of two places."""
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    problems = []
    if missing:
        problems.append(f"classes of {reference} that are not in {where}: {_sample(missing, 12)}")
    if extra:
        close = nearest(extra[0], missing) if len(extra) == 1 else ""
        problems.append(f"classes of {where} that are not in {reference}: {_sample(extra, 12)}{close}")
    if problems:
        raise UserError(f"{'; '.join(problems)}: all domains need the same classes, rename, add or remove what is odd")


def list_folder(folder: Path, classes: Sequence[str] | None = None, reference: str = "the other domain") -> Listing:
    """Images in one folder per class.

    Args:
        folder: its sub-folders are the classes, in sorted order.
        classes: the classes that it must have, in label order; None: as found.
        reference: where those classes come from, for the error.

    Raises:
        UserError: no class folders, other classes than wanted, or a class without images.
    """
    names = subfolders(folder)
    if not names:
        raise UserError(f"{folder}: holds no class folders; the images of each class belong in a folder of their own")
    if classes is not None:
        check_same_classes(names, classes, str(folder), reference)
    order = tuple(classes) if classes is not None else tuple(names)
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(order):
        found = images_below(folder / name)
        paths += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if empty:
        raise UserError(
            f"{folder}: class folders without images: {_sample(empty, 12)}; "
            f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folders from both domains"
        )
    return Listing(folder, paths, np.array(labels, dtype=np.int64), order)


def list_flat_folder(folder: Path) -> Listing:
    """Images of a folder without classes: every label is unknown."""
    paths = images_below(folder)
    return Listing(folder, paths, np.full(len(paths), -1, dtype=np.int64), ())


def read_list_file(file: Path, root: Path) -> Iterator[ListEntry]:
    """The lines of a list file: a path, and after it a label or nothing. Both may hold spaces.

    Args:
        file: UTF-8 text.
        root: folder that the paths are relative to; absolute paths must lie below it.

    Raises:
        UserError: the file cannot be read, or a path leads outside the root.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of images: {error}") from None
    base = os.path.abspath(root)
    for number, text in enumerate(lines, start=1):
        text = text.strip()
        if not text:
            continue
        path, label = _split(text)
        joined = os.path.normpath(os.path.join(base, path))
        if not joined.startswith(base.rstrip(os.sep) + os.sep):
            raise UserError(f"{file}: line {number}: {path} lies outside {base}; set data.root to a folder above it")
        yield ListEntry(number, Path(os.path.relpath(joined, base)).as_posix(), label)


def _split(text: str) -> tuple[str, str | None]:
    """A line as path and label: the path ends with the first image ending that has a space after it."""
    if os.path.splitext(text)[1].lower() in SUFFIXES:
        return text, None
    match = _LABELLED.fullmatch(text)
    if match:
        return match["path"], match["label"]
    path, _, label = text.rpartition(" ")
    return (path.strip(), label) if path and re.fullmatch(r"-?\d+", label) else (text, None)


def list_file(
    file: Path,
    root: Path | None = None,
    classes: Sequence[str] | None = None,
    reference: str = "the other domain",
) -> Listing:
    """Images of a list file with lines `path label` or bare paths.

    Args:
        file: the list; labels are class names, or numbers counted from 0.
        root: folder that the paths are relative to; None: the list's own.
        classes: class names in label order; None: the names found, in sorted order; for numbers the names of the
            images' folders where each class has one of its own, else the numbers.
        reference: where those classes come from, for the error.

    Raises:
        UserError: naming the file, line and class: a missing image, one that is listed twice or lies outside the
            root, an unknown or missing class, no images at all.
    """
    root = file.parent if root is None else root
    entries = list(read_list_file(file, root))
    if not entries:
        raise UserError(f"{file}: lists no images")
    missing = [f"line {entry.line}: {entry.path}" for entry in entries if not (root / entry.path).is_file()]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(entries)} listed images are not in {root}: {_sample(missing, 3)}; "
            "set data.root to the folder that the paths are relative to, or mend the list"
        )
    seen: dict[str, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.path, entry.line)
        if first != entry.line:
            raise UserError(
                f"{file}: line {entry.line}: {entry.path} stands in line {first} already; remove one of them"
            )
    labels, names = _labels(file, entries, classes, reference)
    return Listing(root, [entry.path for entry in entries], labels, names)


def _labels(
    file: Path, entries: Sequence[ListEntry], classes: Sequence[str] | None, reference: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 labels, -1 where there is none, and the class names."""
    given = {entry.label for entry in entries} - {None}
    unknown = np.full(len(entries), -1, dtype=np.int64)
    if not given:
        return unknown, tuple(classes or ())
    if all(re.fullmatch(r"-1|\d+", label) for label in given) and not (classes and given <= set(classes)):
        labels = np.array([-1 if entry.label is None else int(entry.label) for entry in entries], dtype=np.int64)
        names = tuple(classes) if classes is not None else _names_of_numbers(entries, labels)
        if labels.max() >= len(names):
            line = entries[int(labels.argmax())].line
            raise UserError(
                f"{file}: line {line}: label {labels.max()}, but the classes are numbered 0 to {len(names) - 1}"
            )
        absent = [str(k) for k in sorted(set(range(len(names))) - set(labels.tolist()))]
        if absent and classes is None:
            raise UserError(f"{file}: no image has label {_sample(absent, 12)}; number the classes from 0 without gaps")
        return labels, names
    names = tuple(classes) if classes is not None else tuple(sorted(given))
    index = {name: k for k, name in enumerate(names)}
    for entry in entries:
        if entry.label is not None and entry.label not in index:
            raise UserError(
                f"{file}: line {entry.line}: class '{entry.label}' is not in {reference}"
                f"{nearest(entry.label, list(names))} (known: {_sample(names, 12)})"
            )
    return np.array([-1 if entry.label is None else index[entry.label] for entry in entries], dtype=np.int64), names


def _names_of_numbers(entries: Sequence[ListEntry], labels: np.ndarray) -> tuple[str, ...]:
    """Class names for numbered labels: the images' folders if they tell the classes apart, else the numbers."""
    folders: dict[int, set[str]] = {}
    for entry, label in zip(entries, labels.tolist(), strict=True):
        if label >= 0:
            folders.setdefault(label, set()).add(PurePosixPath(entry.path).parent.name)
    count = max(folders, default=-1) + 1
    alone = [next(iter(folders[k])) if len(folders.get(k, ())) == 1 else "" for k in range(count)]
    if all(alone) and len(set(alone)) == count:
        return tuple(alone)
    return tuple(str(k) for k in range(count))
