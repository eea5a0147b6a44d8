"""Reads list files: each line has a path and, optionally, a label."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uda.core.errors import UserError
from uda.data.images import SUFFIXES
from uda.data.text import printable, read_lines, same_form

_ENDING = rf"\.(?:{'|'.join(sorted(suffix[1:] for suffix in SUFFIXES))})"
_LABELLED = re.compile(rf"{_ENDING}(?=\s)", re.IGNORECASE)
_SEPARATED = re.compile(rf".*?{_ENDING}[\"']?\s*(?P<mark>[,;|:])", re.IGNORECASE)
_QUOTED = re.compile(r"""(["'])(?P<path>[^"']+)\1(?:\s+(?P<label>\S.*))?""")
_HEADER = re.compile(r"\W*(?:image|img|file|path)[\w\s,;|\"']*", re.IGNORECASE)
_DRIVE = re.compile(r"[\"']?(?:[A-Za-z]:[\\/]|\\\\)")


@dataclass(frozen=True)
class ListEntry:
    """One line of a list file."""

    line: int
    """Its number, from 1."""
    text: str
    """The text of the line."""
    path: str
    """Path of the image relative to the root, as it is spelt on disk."""
    label: str | None
    """The label, with composed letters (NFC). None: there is no label, or it is -1."""
    exists: bool
    """Whether the image exists."""


class _Root:
    """The folder that a list's paths are relative to."""

    def __init__(self, folder: Path):
        self.folder = os.path.abspath(folder)
        self._spellings: dict[str, dict[str, list[str]]] = {}

    def below(self, path: str) -> str | None:
        """A path relative to the folder, with forward slashes. None if it leads outside."""
        joined, start = os.path.normpath(os.path.join(self.folder, path)), self.folder.rstrip(os.sep) + os.sep
        return joined[len(start) :].replace(os.sep, "/") if joined.startswith(start) else None

    def holds(self, relative: str | None) -> bool:
        """Whether the file exists."""
        return relative is not None and os.path.isfile(os.path.join(self.folder, relative))

    def spelling(self, relative: str | None) -> str | None:
        """A file's path as it is spelt on disk, if they differ by Unicode form (NFC, NFD). None if there is no file."""
        if relative is None or relative.isascii():
            return None
        found = ""
        for part in relative.split("/"):
            names = self._names(found).get(same_form(part), ())
            if len(names) != 1:
                return None
            found = f"{found}/{names[0]}" if found else names[0]
        return found if self.holds(found) else None

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._spellings:
            names = self._spellings[folder] = {}
            place = os.path.join(self.folder, folder)
            for name in os.listdir(place) if os.path.isdir(place) else ():
                names.setdefault(same_form(name), []).append(name)
        return self._spellings[folder]


def read_list_file(file: Path, root: Path) -> list[ListEntry]:
    """The lines of a list file. A label, if there is one, follows the path after spaces or a tab.

    Path and label may contain spaces and be in quotes. If a line can be read in several ways, the way whose image
    exists is used.

    Args:
        file: the list.
        root: folder that the paths are relative to. Absolute paths must lie below it.

    Raises:
        UserError: the file cannot be read, a path leads outside the root, or an image is listed twice.
    """
    place, own = _Root(root), os.path.abspath(file)
    entries: list[ListEntry] = []
    lines: dict[str, int] = {}
    for number, text in read_lines(file):
        found = next(((name, *read) for read in _readings(text) if place.holds(name := place.below(read[0]))), None)
        if found is None:
            readings = [(place.below(path), path, label) for path, label in _readings(text)]
            found = next(((on_disk, *read) for name, *read in readings if (on_disk := place.spelling(name))), None)
        relative, path, label = found or readings[0]
        if relative is None:
            if os.path.isabs(path):
                cure = "set data.root to a folder above it"
            else:
                cure = "write paths without .., and set data.root to the folder that they are relative to"
            raise UserError(f"{file}: line {number}: {printable(path)} lies outside {place.folder}; {cure}")
        if os.path.join(place.folder, relative) == own:
            raise UserError(f"{file}: line {number}: the line names the list itself; remove the line")
        first = lines.setdefault(relative, number)
        if first != number and found:
            raise UserError(
                f"{file}: line {number}: {printable(relative)} is already in line {first}; remove one of the two lines"
            )
        label = None if label in (None, "-1") else same_form(label)
        entries.append(ListEntry(number, text, relative, label, found is not None))
    return entries


def _readings(text: str) -> Iterator[tuple[str, str | None]]:
    """Every sensible way to read a line as path and label, the likeliest first."""
    if quoted := _QUOTED.fullmatch(text):
        yield quoted["path"], quoted["label"] and _unquoted(quoted["label"])
    if "\t" in text:
        path, _, label = text.partition("\t")
        yield path.strip(), _unquoted(label.strip())
    if os.path.splitext(text)[1].lower() in SUFFIXES:
        yield text, None
    for ending in _LABELLED.finditer(text):
        yield text[: ending.end()], _unquoted(text[ending.end() :].strip())
    path, _, label = text.rpartition(" ")
    if path and re.fullmatch(r"-?[0-9]+", label):
        yield path.strip(), label
    yield text, None


def _unquoted(label: str) -> str:
    return label[1:-1] if len(label) > 2 and label[0] == label[-1] and label[0] in "\"'" else label


def explain_missing(file: Path, root: Path, entries: Sequence[ListEntry]) -> str:
    """A message about a list with missing images: what is wrong, and the cure."""
    place, missing = _Root(root), [entry for entry in entries if not entry.exists]
    odd = [(entry, reason) for entry in missing[:100] if (reason := _odd(entry, place)) is not None]
    if odd:
        # Report a header only if no other line has a fault, because it has the faults of the other lines too.
        entry, reason = next((found for found in odd if not _HEADER.fullmatch(found[0].text)), odd[0])
        return f"{file}: line {entry.line}: '{printable(entry.text)}' {reason}"
    shown = [f"line {entry.line}: {printable(entry.path)}" for entry in missing[:3]]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"{file}: {len(missing)} of {len(entries)} listed images are not in {root}: {', '.join(shown)}{more}; "
        "set data.root to the folder that the paths are relative to, or correct the list"
    )


def _odd(entry: ListEntry, root: _Root) -> str | None:
    """What is wrong with a line whose image is missing, with the cure. None if nothing is known."""

    def leads_to_an_image(text: str) -> bool:
        return any(root.holds(root.below(path)) for path, _ in _readings(text))

    text, place = entry.text, os.path.join(root.folder, entry.path)
    if os.path.isdir(place):
        return "is a folder; name its images, one per line"
    if _DRIVE.match(text):
        return "is an absolute Windows path; write paths relative to data.root, with / in place of \\"
    if separated := _SEPARATED.match(text):
        return f"has '{separated['mark']}' after the path; a line is `path label`: write a space or a tab in its place"
    if "\\" in text and leads_to_an_image(text.replace("\\", "/")):
        return "has backslashes; write / in their place"
    if any(leads_to_an_image(text[gap.end() :]) for gap in re.finditer(r"[\s,;|]+", text)):
        return "has the label first; a line is `path label`: write the path first"
    if text.startswith(("#", "//")):
        return "is a comment; a list must not have comments: remove the line"
    if _HEADER.fullmatch(text) and entry.line == 1:
        return "is a header; a list must not have a header: remove the line"
    folder, name = os.path.split(place)
    twins = (
        [other for other in os.listdir(folder) if other.casefold() == name.casefold()] if os.path.isdir(folder) else []
    )
    return f"is not on disk, but {twins[0]} is in that folder; correct the name" if twins else None
