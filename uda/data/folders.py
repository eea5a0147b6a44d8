"""Finds the images and folders below a folder. Every real folder counts once."""

import heapq
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from uda.core.errors import UserError
from uda.data.images import SUFFIXES
from uda.data.text import printable

#: Files that operating systems put beside images, in lower case. No message names them.
_COMPANIONS = frozenset({"thumbs.db", "desktop.ini", "icon\r"})

#: A message names at most this many kinds of files.
_MOST_KINDS = 6


@dataclass(frozen=True)
class Tree:
    """The content of a folder. Paths are relative to it, with forward slashes, and sorted."""

    root: Path
    images: list[str] = field(default_factory=list)
    """Files with an image's ending."""
    links: list[str] = field(default_factory=list)
    """The images that are symbolic links."""
    folders: list[str] = field(default_factory=list)
    """All folders, except hidden ones and those left out."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of files that are not images, by ending."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Folders that were reached a second time, mostly by a link, and the place where their images are counted."""

    def below(self, level: int) -> list[str]:
        """The folders at a level. Level 1 is directly below the root."""
        return [name for name in self.folders if name.count("/") == level - 1]

    def notes(self) -> list[str]:
        """Lines about what is left out."""
        lines = []
        if self.others:
            lines.append(f"{self.root}: {self.passed_over()}")
        if self.left_out:
            link, place = next(iter(self.left_out.items()))
            more = f" and {len(self.left_out) - 1} more" if len(self.left_out) > 1 else ""
            lines.append(
                f"{self.root}: left out {printable(link)}{more}: a link to {'this folder' if place == '.' else place}; "
                "every folder counts once, at its real place"
            )
        return lines

    def passed_over(self) -> str:
        """`passed over 12 files that are not images: 10 .txt, 2 .heic`. Empty if there are none."""
        count = self.others.total()
        if not count:
            return ""
        kinds = sorted(self.others.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = ", ".join(f"{number} {ending}" for ending, number in kinds[:_MOST_KINDS])
        more = f" and {len(kinds) - _MOST_KINDS} more endings" if len(kinds) > _MOST_KINDS else ""
        what = "1 file that is not an image" if count == 1 else f"{count} files that are not images"
        return f"passed over {what}: {shown}{more}"


def look_below(folder: Path) -> Tree:
    """Everything below a folder. A folder that links reach again counts once, at its real place.

    Hidden files and folders are left out. Hidden images are counted in `others`.

    Raises:
        UserError: a folder cannot be opened, or the name of an image or folder is not UTF-8.
    """
    tree = Tree(folder)
    try:
        counted = {_identity(place): str(place) for place in folder.resolve().parents}
    except OSError as error:
        raise UserError(f"{folder}: cannot be opened: {error.strerror}") from None
    real, links = [""], []
    while real or links:  # links come last, so that a folder counts at its real place
        relative = real.pop() if real else heapq.heappop(links)
        place = folder / relative
        try:
            identity = _identity(place)
            if identity in counted:
                tree.left_out[relative] = counted[identity]
                continue
            counted[identity] = relative or "."
            with os.scandir(place) as entries:
                for entry in entries:
                    _sort_in(entry, f"{relative}/{entry.name}" if relative else entry.name, tree, real, links)
        except OSError as error:
            raise UserError(f"{place}: cannot be opened: {error.strerror}; its images would be missing") from None
        if relative:
            tree.folders.append(relative)
    for names in (tree.images, tree.links, tree.folders):
        names.sort()
    for name in (*tree.images, *tree.folders):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder}: a file's name is not UTF-8, rename it: {os.fsencode(name)!r}") from None
    return tree


def _identity(place: Path) -> tuple[int, int] | str:
    """A key of a folder, the same for all paths to it."""
    found = place.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(place)


def _sort_in(entry: os.DirEntry, relative: str, tree: Tree, real: list[str], links: list[str]) -> None:
    """Add one entry of a folder to the tree or to the folders to visit."""
    ending = os.path.splitext(entry.name)[1].lower()
    is_image = ending in SUFFIXES
    if entry.name.startswith("."):
        if is_image and not entry.name.startswith("._"):  # macOS keeps metadata of a file `name` in `._name`
            tree.others["hidden"] += 1
    elif _is_folder(entry):
        if entry.is_symlink():
            heapq.heappush(links, relative)
        else:
            real.append(relative)
    elif is_image and (entry.is_file() or not os.path.exists(entry.path)):  # a broken link is an unreadable image
        tree.images.append(relative)
        if entry.is_symlink():
            tree.links.append(relative)
    elif is_image:
        tree.others["special (a pipe or a device)"] += 1
    elif entry.name.lower() not in _COMPANIONS:
        known = ending[1:].isascii() and ending[1:].isalnum() and len(ending) <= 12
        tree.others[ending if known else "with another ending" if ending else "without an ending"] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
