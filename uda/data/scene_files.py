"""Finds images and label maps on disk that belong together: by the name they share, or by a list."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.data.class_names import NO_LABEL, sample
from uda.data.folders import look_below
from uda.data.images import SUFFIXES
from uda.data.listing import Listing
from uda.data.text import printable, read_lines


@dataclass(frozen=True)
class SceneFolders:
    """Where the images and label maps of a domain are, and which of their names belong together.

    The name that an image and its map share is the path below their folders without the ending. An ending is None if it
    is the file's suffix.
    """

    images: Path
    maps: Path | None
    """None: there are no label maps."""
    image_ending: str | None = None
    map_ending: str | None = None
    bases: tuple[Path, ...] = ()
    """Further folders that the paths in a list may be relative to."""
    looked_through: bool = True
    """Whether the folders are looked through. If not, a list must name every path."""


@dataclass(frozen=True)
class ScenePairs:
    """The images of a domain on disk, without labels, and the label map of each."""

    listing: Listing
    maps: list[Path | None] | None
    """(N) the label map of each image; None for an image whose map is missing. None if the domain has no maps."""
    expected: list[str] = field(default_factory=list)
    """(N) where the label map of each image was looked for."""
    spare: list[str] = field(default_factory=list)
    """Label maps that belong to no image."""

    @property
    def missing(self) -> list[int]:
        """Numbers of the images whose label map is missing."""
        return [] if self.maps is None else [i for i, path in enumerate(self.maps) if path is None]

    def check(self, key: str, name: str, cure: str = "") -> None:
        """Raise UserError if label maps are missing, with their number and the first ones."""
        if not self.missing:
            return
        images, none = len(self.listing.paths), len(self.missing) == len(self.listing.paths)
        shown = sample([f"{self.listing.paths[i]} (no {self.expected[i]})" for i in self.missing], 3)
        what = f"none of its {images:,} images has" if none else f"{len(self.missing):,} of its {images:,} images lack"
        if none and self.spare:
            cure = (
                f"; there is {printable(self.spare[0])}, which has another name: give image_ending and map_ending in a "
                f"card, or name the pairs in a list{cure}"
            )
        raise UserError(f"{key}: {name}: {what} a label map: {shown}; add the maps or remove the images{cure}")


def pair_scenes(folders: SceneFolders, file: Path | None = None) -> ScenePairs:
    """The images of a domain and their label maps.

    Args:
        folders: where they are.
        file: a list. Its lines are `image map`, `image`, or the name that image and map share. Paths are relative to
            the folders, or to `folders.bases`. None: all images of the folder.

    Raises:
        UserError: no such folder, no images, two files with one name, or a line of a list that names no image.
    """
    if folders.looked_through:
        images = _named(folders.images, folders.image_ending, "images")
        maps = None if folders.maps is None else _named(folders.maps, folders.map_ending, "label maps")
    else:
        images, maps = _Named({}, ()), None
    if file is not None:
        return _listed(file, folders, images, maps)
    if not images.paths:
        ending = folders.image_ending or ", ".join(sorted(SUFFIXES))
        raise UserError(f"{folders.images} holds no images; images end in {ending}")
    names = list(images.paths)
    listing = _listing(folders.images, [images.paths[name] for name in names], images.notes)
    if maps is None:
        return ScenePairs(listing, None)
    found = [folders.maps / maps.paths[name] if name in maps.paths else None for name in names]
    spare = [path for name, path in maps.paths.items() if name not in images.paths]
    return ScenePairs(listing, found, [_expected(folders, name) for name in names], spare)


@dataclass(frozen=True)
class _Named:
    """Files below a folder by the name that they share with others."""

    paths: dict[str, str]
    notes: tuple[str, ...]


def _named(folder: Path, ending: str | None, what: str) -> _Named:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold the {what}")
    tree = look_below(folder)
    paths: dict[str, str] = {}
    for path in tree.images:
        if ending is not None and not path.endswith(ending):
            continue
        name = _stem(path, ending)
        if name in paths:
            raise UserError(
                f"{folder}: {sample([paths[name], path])} have the same name without the ending; remove one of them"
            )
        paths[name] = path
    return _Named(paths, tuple(tree.notes()))


def _stem(path: str, ending: str | None) -> str:
    if ending is None:
        return os.path.splitext(path)[0]
    return path.removesuffix(ending)


def _expected(folders: SceneFolders, name: str) -> str:
    return str(folders.maps / f"{name}{folders.map_ending or '.png'}")


def _listing(root: Path, paths: list[str], notes: Sequence[str] = ()) -> Listing:
    return Listing(root, paths, np.full(len(paths), NO_LABEL, dtype=np.int64), (), notes=tuple(notes))


def _listed(file: Path, folders: SceneFolders, images: _Named, maps: _Named | None) -> ScenePairs:
    """The scenes of a list, in its order."""
    by_path = {path: name for name, path in images.paths.items()}
    paths: list[str] = []
    found: list[Path | None] = []
    expected: list[str] = []
    lines: dict[str, int] = {}
    for number, text in read_lines(file):
        image, map_path = _read_line(file, number, text, folders, images.paths, by_path)
        if image in lines:
            raise UserError(f"{file}: line {number}: {printable(image)} is already in line {lines[image]}; remove one")
        lines[image] = number
        name = by_path.get(image, _stem(image, folders.image_ending))
        if map_path is None and maps is not None and name in maps.paths:
            map_path = folders.maps / maps.paths[name]
        paths.append(image)
        found.append(map_path)
        expected.append(_expected(folders, name) if folders.maps is not None else "map in the list")
    if not paths:
        raise UserError(f"{file}: the list has no images; write a line `image map` for each scene")
    listing = _listing(folders.images, paths)
    has_maps = maps is not None or any(path is not None for path in found)
    return ScenePairs(listing, found if has_maps else None, expected if has_maps else [])


def _read_line(
    file: Path, number: int, text: str, folders: SceneFolders, names: Mapping[str, str], by_path: Mapping[str, str]
) -> tuple[str, Path | None]:
    """The image of a line, relative to the images' folder, and its label map if the line names one."""
    if text in names:
        return names[text], None
    readings = [(text, "")]
    readings += [(text[: gap.start()], text[gap.end() :]) for gap in re.finditer(r"\s+", text)]
    for image, map_path in readings:
        place = _place(image, folders.images, folders.bases)
        if place is None:
            continue
        relative = os.path.relpath(place, folders.images).replace(os.sep, "/") if image not in by_path else image
        if relative.startswith("../"):
            raise UserError(
                f"{file}: line {number}: {printable(image)} lies outside {folders.images}; move the list, or set "
                "data.root to a folder above all images"
            )
        if not map_path:
            return relative, None
        label_map = _place(map_path, folders.maps, folders.bases)
        if label_map is None:
            raise UserError(
                f"{file}: line {number}: no such label map: {printable(map_path)}; paths are relative to "
                f"{_told([folders.maps, *folders.bases])}"
            )
        return relative, label_map
    raise UserError(
        f"{file}: line {number}: no such image: {printable(text)}; a line is `image map`, `image`, or the name that "
        f"both share without endings, and paths are relative to {_told([folders.images, *folders.bases])}"
    )


def _place(path: str, folder: Path | None, bases: Sequence[Path]) -> Path | None:
    """The file that a path in a list means. A path that begins with / may be relative too, as in published lists."""
    options = [Path(base, path.lstrip("/")) for base in ([] if folder is None else [folder]) + list(bases)]
    options += [Path(path)] if os.path.isabs(path) else []
    return next((option for option in options if option.is_file()), None)


def _told(places: Sequence[Path | None]) -> str:
    return " or ".join(dict.fromkeys(str(place) for place in places if place is not None))
