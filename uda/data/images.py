"""Numbered images, from files or from arrays in memory, and the check which of them can be read."""

import copy
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from uda.core.errors import UserError
from uda.core.progress import progress
from uda.data.checked import Checked, Stamp
from uda.data.decoding import ImageFacts, decode_content, examine_content, kept_size, open_file, read_content
from uda.data.settings import ReadingSettings
from uda.data.store import DecodedStore, file_stamp, size_on_disk

T = TypeVar("T")

#: File name endings that count as images, in lower case.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif"})


class Images(ABC):
    """Numbered images with stable names.

    `ids` holds one name per image (relative paths for files), unique and in a fixed order.
    """

    ids: Sequence[str]
    in_memory: bool = False
    """Whether reading is so cheap that loader processes are not worth their cost."""
    visible: bool = True
    """Whether `read` gives pixels, and not features."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, i: int) -> torch.Tensor:
        """Image `i` as uint8 (C, H, W), values 0..255. Raises UserError that names the image."""

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        """Image `i`, to cut a part from. It has a `shape`, (C, H, W), and `[:, top:bottom, left:right]` gives uint8.

        If possible, only the rows of the part are read. The pixels must not be changed, because the decoded store may
        not have written them yet. Raises UserError that names the image, in this call or when a part is cut.
        """
        return self.read(i)

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of image `i`. Raises UserError that names the image."""
        height, width = self.open(i).shape[1:]
        return height, width

    def together(self, indices: np.ndarray) -> torch.Tensor | None:
        """Several images at once, uint8 (B, C, H, W), if they lie in one array, else None."""
        return None

    @abstractmethod
    def take(self, indices: np.ndarray) -> "Images":
        """The images with the given numbers (n,), in that order."""

    def examine(self, i: int) -> ImageFacts:
        """Whether image `i` can be read, and other facts about it."""
        return ImageFacts()


class JoinedImages(Images):
    """The images of several domains as one sequence, domain after domain.

    If two domains have an id in common, every id is prefixed with the name of its domain.
    """

    def __init__(self, parts: Sequence[Images], names: Sequence[str]):
        self.parts = list(parts)
        self.in_memory = all(part.in_memory for part in parts)
        self.visible = all(part.visible for part in parts)
        self.ids = [name for part in parts for name in part.ids]
        if len(set(self.ids)) < len(self.ids):
            self.ids = [f"{domain}/{name}" for domain, part in zip(names, parts, strict=True) for name in part.ids]
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._place = np.concatenate([np.arange(len(part)) for part in parts])

    def read(self, i: int) -> torch.Tensor:
        return self.parts[self._part[i]].read(int(self._place[i]))

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        return self.parts[self._part[i]].open(int(self._place[i]))

    def of_parts(self, parts: Sequence[Images]) -> "JoinedImages":
        """The same images, read from other parts of the same lengths."""
        found = copy.copy(self)
        found.parts = list(parts)
        return found

    def together(self, indices: np.ndarray) -> torch.Tensor | None:
        parts, places, found = self._part[indices], self._place[indices], None
        for number in np.unique(parts):
            rows = np.flatnonzero(parts == number)
            images = self.parts[number].together(places[rows])
            if images is None:
                return None
            if found is None:
                found = images.new_empty((len(indices), *images.shape[1:]))
            elif images.shape[1:] != found.shape[1:]:
                return None
            found[torch.from_numpy(rows)] = images
        return found

    def take(self, indices: np.ndarray) -> "JoinedImages":
        taken = copy.copy(self)
        taken.ids = [self.ids[i] for i in indices]
        taken._part, taken._place = self._part[indices], self._place[indices]
        return taken


class ImageArray(Images):
    """Images that lie in memory as one uint8 array (N, C, H, W)."""

    def __init__(self, array: np.ndarray, ids: Sequence[str]):
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != len(ids):
            raise ValueError(f"need uint8 (N, C, H, W) and N ids, got {array.dtype} {array.shape} and {len(ids)} ids")
        self.ids = list(ids)
        self.in_memory = True
        self._array = torch.from_numpy(np.ascontiguousarray(array))

    def read(self, i: int) -> torch.Tensor:
        return self._array[i]

    def together(self, indices: np.ndarray) -> torch.Tensor:
        return self._array[torch.from_numpy(indices)]

    def take(self, indices: np.ndarray) -> "ImageArray":
        return ImageArray(self._array.numpy()[indices], [self.ids[i] for i in indices])


class ImageFiles(Images):
    """Image files below a folder.

    Args:
        root: the folder.
        paths: file paths relative to `root`. They are the ids.
        cache: `memory` keeps every decoded image in memory. `check_readable` fills this cache, so that forked loader
            processes share one copy. An image that is read later is kept only by the process that read it.
        reading: the rules by which a file becomes pixels, see `decode`. None: the defaults.
        store: a decoded store of the same paths and rules. It is read and filled, and holds the same pixels as the
            files. `in_memory` stays False with it: reading is cheap then, but the transforms are not.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str],
        cache: Literal["none", "memory"] = "none",
        *,
        reading: ReadingSettings | None = None,
        store: DecodedStore | None = None,
    ):
        if store is not None and len(store) != len(paths):
            raise ValueError(f"a store of {len(store)} images for {len(paths)} paths")
        self.root = Path(root)
        self.ids = list(paths)
        self.cache = cache
        self.reading = reading or ReadingSettings()
        self.in_memory = cache == "memory"
        self._store = store
        self._places = np.arange(len(self.ids))
        self._decoded: dict[str, torch.Tensor] = {}

    def read(self, i: int) -> torch.Tensor:
        image = self._read(i)
        if self._store is not None:
            self._store.wait()  # the caller may change the image, so it must be written before
        return image

    def _read(self, i: int) -> torch.Tensor:
        name = self.ids[i]
        if name in self._decoded:
            return self._decoded[name]
        place = int(self._places[i])
        image = self._store.read(place) if self._store is not None else None
        if image is not None:
            return image
        path = self.root / name
        try:
            with open_file(path) as file:
                content, stamp = read_content(file), file_stamp(os.fstat(file.fileno()))
            image = decode_content(content, self.reading)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}; restore the file") from None
        except ValueError as error:
            raise UserError(f"{path}: cannot be read as an image: {error}; repair or remove the file") from None
        if self.cache == "memory":
            self._decoded[name] = image
        if self._store is not None:
            self._store.write(place, image, stamp)
        return image

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        place = int(self._places[i])
        if self._store is None or self.in_memory or not self._store.holds(place):
            return self._read(i)
        return StoredImage(self._store, place, lambda: self.read(i))

    def size(self, i: int) -> tuple[int, int]:
        if self._store is not None and self._store.holds(int(self._places[i])):
            return self._store.size(int(self._places[i]))
        try:
            return kept_size(*size_on_disk(self.root / self.ids[i], self.reading), self.reading.load_size)
        except Exception:  # broken bytes may raise anything; reading the image tells what is wrong
            return super().size(i)

    def take(self, indices: np.ndarray) -> "ImageFiles":
        taken = ImageFiles(self.root, [self.ids[i] for i in indices], self.cache, reading=self.reading)
        taken._store, taken._places = self._store, self._places[indices]
        taken._decoded = {name: self._decoded[name] for name in taken.ids if name in self._decoded}
        return taken

    def stamp(self, i: int) -> Stamp | None:
        """Size and time of change of image `i`'s file. None if the file is missing or the store holds the image."""
        if self._store is not None and self._store.holds(int(self._places[i])):
            return None
        try:
            return file_stamp(os.stat(os.path.join(self.root, self.ids[i])))
        except OSError:
            return None

    def examine(self, i: int) -> ImageFacts:
        """Whether image `i` can be read, and other facts about it.

        The file is read and decoded, a JPEG at 1/8 of its size. An image without a `problem` can be read. An image in
        the store was decoded before and is not examined again.
        """
        name, place = self.ids[i], int(self._places[i])
        if self._store is not None and self._store.holds(place):
            return ImageFacts()
        try:
            with open_file(self.root / name) as file:
                content = read_content(file)
            facts = examine_content(content, self.reading)
            if self.cache == "memory" and name not in self._decoded:
                self._decoded[name] = decode_content(content, self.reading)
            return facts
        except (OSError, ValueError) as error:
            if self._store is not None:
                self._store.leave_out(place)
            return ImageFacts(problem=(error.strerror if isinstance(error, OSError) else None) or str(error))


class StoredImage:
    """An image of a decoded store. Only the rows of the part that is cut out are read.

    Args:
        store: the store.
        place: the image's number in it.
        read: gives the whole image if the store fails.
    """

    def __init__(self, store: DecodedStore, place: int, read: Callable[[], torch.Tensor]):
        self.shape = (3, *store.size(place))
        self._store = store
        self._place = place
        self._read = read

    def __getitem__(self, box: tuple[slice, slice, slice]) -> torch.Tensor:
        channels, rows, columns = box
        top, bottom, _ = rows.indices(self.shape[1])
        cut = self._store.read(self._place, top, bottom - top)
        return self._read()[box] if cut is None else cut[channels, :, columns]


def decode(path: str | Path, reading: ReadingSettings | None = None) -> torch.Tensor:
    """An image file as RGB uint8 (3, H, W), values 0..255.

    - An animation gives its first image. A grey image gives three equal channels.
    - If the shorter side is longer than `load_size`, the image is shrunk until it has that length.
    - Transparent pixels are blended with `background`. An opaque alpha channel changes nothing.
    - The EXIF orientation is ignored unless `exif_orientation` is `apply`. The published numbers on these data sets
      were made without it. A TIFF is turned by its own tag.
    - 0 is black in every image. In a grey image of more than 8 bits, `white_level` and all higher values are white. By
      default, white is the first of these levels that no value of the image exceeds: 1 or 255 for floats, 255, 4095
      (12 bits) or 65535 for integers. `check_readable` refuses a data set whose images have different levels. A PGM
      names its own white.
    - Of 16 bits per colour, the upper 8 are kept.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the file is no image, is damaged, has more than `decoding.MAX_PIXELS` pixels, or holds numbers that
            are negative, not finite, or above all levels of white.
    """
    with open_file(path) as file:
        return decode_content(read_content(file), reading or ReadingSettings())


def check_readable(images: Images, max_unreadable: float, log: Callable[[str], None]) -> np.ndarray:
    """Numbers of the images that can be read, int64 in ascending order.

    Args:
        images: their `examine` method is called, in threads.
        max_unreadable: share of unreadable images, 0..1, that is allowed.
        log: is called with every unreadable image and the reason, with what is done to images that are transparent,
            turned or of more than 8 bits, and with the progress if there is no terminal.

    Raises:
        UserError: a larger share or all images are unreadable, or images disagree on which value is white.
    """
    if type(images).examine is Images.examine:
        return np.arange(len(images))
    where = f" of {images.root}" if isinstance(images, ImageFiles) else ""
    facts = {i: fact for i, fact in enumerate(_examine_all(images, log)) if fact != ImageFacts()}
    reasons = {i: fact.problem for i, fact in facts.items() if fact.problem is not None}
    for i, reason in reasons.items():
        log(f"unreadable image: {images.ids[i]}: {reason}")
    if len(reasons) > max_unreadable * len(images) or (reasons and len(reasons) == len(images)):
        shown = "; ".join(f"{images.ids[i]}: {reason}" for i, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise UserError(
            f"{len(reasons)} of {len(images)} images{where} cannot be read, more than data.max_unreadable="
            f"{max_unreadable:g} allows ({shown}{more}): repair or remove them, or raise data.max_unreadable"
        )
    if reasons:
        log(f"{len(reasons)} of {len(images)} images cannot be read and are left out")
    if isinstance(images, ImageFiles):
        _report_rules(images, facts, f"of {len(images)} images{where}", log)
    return np.array([i for i in range(len(images)) if i not in reasons], dtype=np.int64)


def _examine_all(images: Images, log: Callable[[str], None]) -> list[ImageFacts]:
    """The facts about every image. An image that an earlier start could read is not decoded again until it changes.

    Images that are kept in memory are always read.
    """
    checked = Checked(images.root, images.reading) if isinstance(images, ImageFiles) and not images.in_memory else None
    looks: dict[str, tuple[Stamp, ImageFacts]] = {}

    def examine(i: int) -> ImageFacts:
        if checked is None or (stamp := images.stamp(i)) is None:
            return images.examine(i)
        name = images.ids[i]
        facts = checked.facts(name, stamp)
        if facts is None:
            facts = images.examine(i)
            if facts.problem is None:
                looks[name] = stamp, facts
        return facts

    facts = asked_in_threads(examine, len(images), "checking images", log)
    if checked is not None:
        checked.keep(looks)
    return facts


def asked_in_threads(ask: Callable[[int], T], count: int, what: str, log: Callable[[str], None]) -> list[T]:
    """`ask` of every number below `count`, in order. `what` is done is shown with its progress."""
    chunks = np.array_split(np.arange(count), max(1, count // 256))
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        found = chain.from_iterable(pool.map(lambda chunk: [ask(i) for i in chunk], chunks))
        return list(progress(found, what, count, log))


def _report_rules(images: ImageFiles, facts: Mapping[int, ImageFacts], of_all: str, log: Callable[[str], None]) -> None:
    """Log how many images are affected by rules of reading that a user may not expect."""
    if transparent := sum(fact.transparent for fact in facts.values()):
        log(f"{transparent} {of_all} are partly transparent; data.background={images.reading.background} is put there")
    turned = sum(fact.orientation != 1 for fact in facts.values())
    if turned and images.reading.exif_orientation == "ignore":
        log(f"{turned} {of_all} have an EXIF orientation, which is ignored; data.exif_orientation=apply turns them")
    examples = {fact.white: images.ids[i] for i, fact in facts.items() if fact.white is not None}
    for kind in ("floats", "integers"):
        levels = sorted(white for of_kind, white in examples if of_kind == kind)
        if len(levels) > 1:
            shown = "; ".join(f"{examples[kind, white]} has none above {white}" for white in levels)
            raise UserError(
                f"{images.root}: images of {kind} disagree on which value is white ({shown}): set it, for example "
                f"data.white_level={levels[-1]}"
            )
    for (kind, white), count in Counter(fact.white for fact in facts.values() if fact.white).items():
        if white != 65535:
            log(f"{count} {of_all} hold {kind} up to {white}, which is read as white; data.white_level sets another")
