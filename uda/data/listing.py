"""Lists a domain's images on disk as paths and labels, from class folders, other folders or list files."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.class_names import (
    NO_LABEL,
    UNKNOWN_CLASS,
    ClassOrder,
    KnownBy,
    alike,
    check_same_classes,
    sample,
    unknown_note,
)
from uda.data.folders import Tree, look_below
from uda.data.images import SUFFIXES
from uda.data.list_files import explain_missing, read_list_file
from uda.data.list_labels import read_labels
from uda.data.text import printable, same_form

#: Folders with these names are parts of a data set, not classes, if they hold class folders.
_PARTS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev"}
    | {"image", "images", "img", "imgs", "data", "unlabeled", "unlabelled"}
)

#: Another way to give a target without labels, for the end of a message.
_NO_LABELS = "; or set data.target_labels=none if the target's folders are not its classes"


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, and their labels.

    `paths` (N) are relative to `root`, with forward slashes. `labels` (N,) int64 index `classes`, or are NO_LABEL or
    UNKNOWN_CLASS.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    known: KnownBy = "sorted"
    """How the order of the classes is known, as in `ClassOrder`."""
    notes: tuple[str, ...] = ()
    """Lines for the log: what was passed over or left out."""

    def check_labelled(self, where: str, more: str = "") -> None:
        """Raise UserError for the first image without a label. The message begins with `where` and ends with `more`."""
        without = np.flatnonzero(self.labels == NO_LABEL)
        if len(without):
            name = printable(self.paths[without[0]])
            raise UserError(f"{where}: {name} has no label, but every image needs one{more}")

    def order(self, where: str) -> ClassOrder:
        """The classes, for the other domains. `where` names this domain in messages."""
        return ClassOrder(self.classes, where, self.known)


def list_folder(folder: Path, order: ClassOrder | None = None) -> Listing:
    """Images in one folder per class.

    Args:
        folder: its sub-folders are the classes.
        order: the classes that it must have. None: as found, sorted.

    Raises:
        UserError: fewer than two class folders, folders that are not classes but hold them, other classes than in
            `order`, a class without images, or an image of two classes.
    """
    tree = look_below(folder)
    if not tree.folders:
        raise UserError(
            f"{folder}: holds no class folders; each class needs a folder with its images" + _told(tree.passed_over())
        )
    return _labelled(tree, order)


def _labelled(tree: Tree, order: ClassOrder | None, otherwise: str = "", is_target: bool = False) -> Listing:
    """The images of class folders. `otherwise`: another cure, for the end of messages about the classes."""
    folder, names = tree.root, class_folders(tree)
    wanted = () if order is None else order.names
    _check_links(tree, wanted)
    if order is None or not set(wanted) <= set(names):
        _check_level(tree, names, wanted, otherwise)
    if order is not None:
        lenience = {"may_lack": order.may_lack, "may_add": order.may_add}
        check_same_classes(names, wanted, str(folder), order.where, otherwise, is_target=is_target, **lenience)
    classes = tuple(sorted(names)) if order is None else order.names
    held = [(name, label) for label, name in enumerate(classes) if name in names]
    held += [(name, UNKNOWN_CLASS) for name in sorted(set(names) - set(classes))]
    by_folder: dict[str, list[str]] = {name: [] for name in names.values()}
    loose = []
    for path in tree.images:
        first, inside, _ = path.partition("/")
        (by_folder[first] if inside else loose).append(path)
    empty = [name for name, label in held if label >= 0 and not by_folder[names[name]]]
    if empty and not (order is not None and order.may_lack and any(by_folder.values())):
        raise UserError(
            f"{folder}: class folders without images: {sample(empty, 12)}; "
            f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folders from both domains"
            + _told(tree.passed_over())
        )
    notes = tree.notes()
    if loose:
        notes.append(f"{folder}: passed over {len(loose)} images that are in no class folder: {sample(loose, 3)}")
    below = list(_below(tree, names).values())
    if len(below[0]) > 1 and all(inside == below[0] for inside in below) and all(p.count("/") > 1 for p in tree.images):
        notes.append(
            f"{folder}: the classes are {sample(sorted(names))}, but each of these folders holds "
            f"{sample(sorted(below[0]))}; if those are the classes, name one of the outer folders instead, as in "
            f"{folder / min(names.values())}"
        )
    paths = [path for name, _ in held for path in by_folder[names[name]]]
    labels = np.repeat([label for _, label in held], [len(by_folder[names[name]]) for name, _ in held])
    unknown = {name: len(by_folder[names[name]]) for name, label in held if label == UNKNOWN_CLASS}
    if any(unknown.values()):
        notes.append(unknown_note(str(folder), unknown))
    return Listing(folder, paths, labels, classes, "sorted" if order is None else order.known, tuple(notes))


def class_folders(tree: Tree) -> dict[str, str]:
    """Names of the folders directly below the root: composed (NFC) -> as they are spelt on disk.

    Raises UserError if two folders have the same name in two Unicode forms.
    """
    names: dict[str, str] = {}
    for name in tree.below(1):
        if same_form(name) in names:
            raise UserError(
                f"{tree.root}: two folders are named '{same_form(name)}', in two Unicode forms (NFC and NFD): "
                "move the images of one into the other"
            )
        names[same_form(name)] = name
    return names


def _told(passed_over: str) -> str:
    return f" ({passed_over})" if passed_over else ""


def _below(tree: Tree, names: Iterable[str]) -> dict[str, set[str]]:
    """Names of the folders in each class folder."""
    below: dict[str, set[str]] = {name: set() for name in names}
    for path in tree.below(2):
        first, _, second = path.partition("/")
        below[same_form(first)].add(same_form(second))
    return below


def _check_level(tree: Tree, names: dict[str, str], wanted: Sequence[str], otherwise: str) -> None:
    """Raise UserError if the folders are not the classes, but the folders below them may be."""
    below = _below(tree, names)
    parts = [name for name in names if name.casefold() in _PARTS]
    repeated = set.intersection(*(below[part] for part in parts)) if len(parts) > 1 else set()
    holding = [name for name in names if len(below[name]) > 1]
    if len(repeated) > 1 or (holding and len(parts) == len(names) > 1):
        inside = sample(sorted(repeated or below[holding[0]]), 8)
        meant = sample([str(tree.root / names[name]) for name in parts if len(below[name]) > 1])
        raise UserError(
            f"{tree.root}: its folders {sample(parts)} are parts of a data set, not classes; "
            f"they hold the class folders {inside}: name one of them ({meant}), or list the images of several in a "
            f".txt file{otherwise}"
        )
    if len(names) == 1 and not set(names) & set(wanted):
        (name,) = names
        inside = sample(sorted(below[name]), 8)
        hint = f", which itself holds {inside}: did you mean {tree.root / names[name]}?" if holding else ""
        hint = hint or "; at least two classes are needed, each with its own folder"
        raise UserError(f"{tree.root}: holds one class folder, '{printable(name)}'{hint}{otherwise}")


def _check_links(tree: Tree, wanted: Sequence[str]) -> None:
    """Raise UserError if links put an image into two classes."""
    root = tree.root.resolve()
    for link, place in tree.left_out.items():
        first, other = link.partition("/")[0], place.partition("/")[0]
        lies_here = (root / place).resolve() == root / place
        if os.path.isabs(place) or first == other or (lies_here and same_form(link) not in wanted):
            continue  # a folder above, or one whose real place tells its class
        raise UserError(
            f"{tree.root}: {sample([link, place])} are the same folder, in two classes by a link; remove one"
        )
    if not tree.links:
        return
    where: dict[tuple[int, int], str] = {}
    for path in (path for path in tree.images if "/" in path):
        try:
            found = (tree.root / path).stat()
        except OSError:  # a broken link, reported later as an unreadable image
            continue
        first = where.setdefault((found.st_dev, found.st_ino), path)
        if first.partition("/")[0] != path.partition("/")[0]:
            raise UserError(
                f"{tree.root}: {sample([first, path])} are the same file, in two classes by a link; remove one"
            )


def list_unlabelled(folder: Path) -> Listing:
    """Images of any tree of folders, without labels. Raises UserError if there are none."""
    return _unlabelled(look_below(folder))


def _unlabelled(tree: Tree, note: str | None = None) -> Listing:
    if not tree.images:
        raise UserError(
            f"{tree.root} holds no images{_told(tree.passed_over())}; images end in {', '.join(sorted(SUFFIXES))}"
        )
    notes = (*([note] if note else []), *tree.notes())
    unknown = np.full(len(tree.images), -1, dtype=np.int64)
    return Listing(tree.root, tree.images, unknown, (), notes=notes)


def list_target(folder: Path, order: ClassOrder) -> Listing:
    """Images of a target. They have labels if its folders are the classes, and none if no folder is like a class.

    Args:
        folder: one folder per class, or any other tree of images.
        order: the classes of the source.

    Raises:
        UserError: only some folders are classes, folders are nearly classes, or the classes lie a level below.
    """
    tree = look_below(folder)
    names, classes = class_folders(tree), set(order.names)
    if not names:
        return _unlabelled(tree)
    if classes & set(names):
        loose = [path for path in tree.images if "/" not in path]
        if loose:
            raise UserError(
                f"data.target: {folder} holds images ({printable(loose[0])}...) beside class folders: move them into "
                f"class folders, or name all images in a .txt list of paths without labels{_NO_LABELS}"
            )
        return _labelled(tree, order, _NO_LABELS, is_target=True)
    if any(same_form(path.partition("/")[2]) in classes for path in tree.below(2)):
        _check_level(tree, names, order.names, _NO_LABELS)
        inside = sorted({path for path in tree.below(2) if same_form(path.partition("/")[2]) in classes})
        meant = sorted({str(folder / path.partition("/")[0]) for path in inside})
        raise UserError(
            f"{folder}: the classes of {order.where} are one level below, as in {sample(inside, 3)}: "
            f"name a folder that holds them ({sample(meant, 3)}) as the target{_NO_LABELS}"
        )
    almost = {alike(name) for name in classes} - {""}
    close = [name for name in names if alike(name) in almost] or [
        name for name in list(names)[:50] if nearest(name, list(order.names), cutoff=0.75)
    ]
    nameless = order.known == "numbered" and all(name.isdecimal() for name in classes) and len(names) == len(classes)
    if close or nameless:
        check_same_classes(names, classes, str(folder), order.where, _NO_LABELS)
    note = (
        f"{folder}: none of its folders ({sample(sorted(names), 3)}) is a class of {order.where} "
        f"({sample(order.names, 3)}), so its images are treated as unlabelled"
    )
    return _unlabelled(tree, note)


def list_file(file: Path, root: Path | None = None, order: ClassOrder | None = None, labels: bool = True) -> Listing:
    """Images of a list file. Its lines are `path label`, or only paths.

    Args:
        file: the list. Labels are class names, or numbers counted from 0 if their meaning is certain.
        root: folder that the paths are relative to. None: the folder of the list.
        order: the classes. None: the names in the list, sorted. If the labels are numbers and each class has its own
            folder, the names of these folders, else the numbers.
        labels: whether to read labels.

    Raises:
        UserError: an image that is missing, listed twice or outside the root, lines of another form, an unknown
            class, numbers of uncertain meaning, or no images at all. The message names the file, and the line or
            class.
    """
    root = file.parent if root is None else root
    entries = read_list_file(file, root)
    if not entries:
        raise UserError(f"{file}: the list has no images; write a line `path label` for each image")
    if not all(entry.exists for entry in entries):
        raise UserError(explain_missing(file, root, entries))
    paths = [entry.path for entry in entries]
    if not labels or all(entry.label is None for entry in entries):
        return Listing(root, paths, np.full(len(paths), -1, dtype=np.int64), ())
    found, names, known = read_labels(file, entries, order)
    unknown = Counter(entry.label for entry, label in zip(entries, found, strict=True) if label == UNKNOWN_CLASS)
    return Listing(root, paths, found, names, known, (unknown_note(str(file), unknown),) if unknown else ())
