"""Images by number: files on disk and arrays in memory, and which of them can be read at all."""

import copy
import io
import os
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from uda.data.store import DecodedStore, file_stamp, kept_size
from uda.errors import UserError
from uda.progress import progress

try:  # decodes a JPEG nearly twice as fast as PIL, but torchvision 0.29 announces its end
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

# Once and for this message alone: warnings.catch_warnings() around each call is not safe in threads.
warnings.filterwarnings(
    "ignore", "The image decoding and encoding capabilities of TorchVision are deprecated", DeprecationWarning
)

#: File name endings that count as images, in lower case.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif"})

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"

#: So much of a file's end is searched for its end mark: cameras append data of their own.
_TAIL_BYTES = 4096


class Images(ABC):
    """Numbered images with stable names.

    `ids` holds one name per image (relative paths for files), unique and in a fixed order.
    """

    ids: Sequence[str]
    in_memory: bool = False
    """Whether reading costs next to nothing, so that no loader process is worth its price."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, i: int) -> torch.Tensor:
        """Image `i` as uint8 (C, H, W), values 0..255. Raises UserError naming the image."""

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        """Image `i` to be cut from: it has a `shape`, (C, H, W), and `[:, top:bottom, left:right]` gives uint8.

        What is not asked for is not read where that can be. Raises UserError naming the image, here or in cutting.
        """
        return self.read(i)

    def together(self, indices: np.ndarray) -> torch.Tensor | None:
        """Several images at once, uint8 (B, C, H, W), where they lie in one array; else None."""
        return None

    @abstractmethod
    def take(self, indices: np.ndarray) -> "Images":
        """The images of the given numbers (n,), in that order."""

    def problem(self, i: int) -> str | None:
        """Why image `i` cannot be read, or None."""
        return None


class JoinedImages(Images):
    """The images of several domains as one: all of the first, then all of the next.

    Where two domains have an id in common, every id gets the name of its domain in front.
    """

    def __init__(self, parts: Sequence[Images], names: Sequence[str]):
        self.parts = list(parts)
        self.in_memory = all(part.in_memory for part in parts)
        self.ids = [name for part in parts for name in part.ids]
        if len(set(self.ids)) < len(self.ids):
            self.ids = [f"{domain}/{name}" for domain, part in zip(names, parts, strict=True) for name in part.ids]
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._place = np.concatenate([np.arange(len(part)) for part in parts])

    def read(self, i: int) -> torch.Tensor:
        return self.parts[self._part[i]].read(int(self._place[i]))

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        return self.parts[self._part[i]].open(int(self._place[i]))

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
        paths: file paths relative to it; they are the ids.
        cache: `memory` keeps every decoded image. `check_readable` fills it, so that forked loader workers
            share one copy; an image that is read later is kept only by the process that read it.
        load_size: an image whose shorter side is longer than this is shrunk to it in reading; None: none is.
        store: a decoded store of the same paths and size, which is read and filled; its pixels are those of the
            files. `in_memory` stays False with it: reading costs little, but the transform is still to pay.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str],
        cache: Literal["none", "memory"] = "none",
        *,
        load_size: int | None = None,
        store: DecodedStore | None = None,
    ):
        if store is not None and len(store) != len(paths):
            raise ValueError(f"a store of {len(store)} images for {len(paths)} paths")
        self.root = Path(root)
        self.ids = list(paths)
        self.cache = cache
        self.load_size = load_size
        self.in_memory = cache == "memory"
        self._store = store
        self._places = np.arange(len(self.ids))
        self._decoded: dict[str, torch.Tensor] = {}

    def read(self, i: int) -> torch.Tensor:
        name = self.ids[i]
        if name in self._decoded:
            return self._decoded[name]
        place = int(self._places[i])
        image = self._store.read(place) if self._store is not None else None
        if image is not None:
            return image
        path = os.path.join(self.root, name)
        try:
            with open(path, "rb", buffering=0) as file:
                content = file.read()
                stamp = file_stamp(os.fstat(file.fileno()))
            image = decode_content(content, self.load_size)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as an image: {error}; mend or remove the file") from None
        if self.cache == "memory":
            self._decoded[name] = image
        if self._store is not None:
            self._store.write(place, image, stamp)
        return image

    def open(self, i: int) -> "torch.Tensor | StoredImage":
        place = int(self._places[i])
        if self._store is None or self.in_memory or not self._store.holds(place):
            return self.read(i)
        return StoredImage(self._store, place, lambda: self.read(i))

    def take(self, indices: np.ndarray) -> "ImageFiles":
        taken = ImageFiles(self.root, [self.ids[i] for i in indices], self.cache, load_size=self.load_size)
        taken._store, taken._places = self._store, self._places[indices]
        taken._decoded = {name: self._decoded[name] for name in taken.ids if name in self._decoded}
        return taken

    def problem(self, i: int) -> str | None:
        """Why image `i` cannot be read, or None.

        A PNG's checksums are compared, which finds any damage without decoding it. A JPEG has none: one with
        sound first and last bytes passes at the price of two short reads, which finds empty, truncated and foreign
        files; damage between them shows, if at all, in `read`. Any other file is decoded. An image that the
        store holds has been decoded.
        """
        path = self.root / self.ids[i]
        if self._store is not None and self._store.holds(int(self._places[i])):
            return None
        try:
            if self.cache == "memory":
                if self.ids[i] not in self._decoded:
                    self._decoded[self.ids[i]] = decode(path, self.load_size)
            else:
                _check(path)
        except (OSError, ValueError) as error:
            if self._store is not None:
                self._store.leave_out(int(self._places[i]))
            return str(error)
        return None


class StoredImage:
    """An image of a decoded store, of which only the rows that are cut out are read.

    Args:
        store: the store.
        place: the image's number in it.
        read: gives the whole image, should the store fail.
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


def _check(path: Path) -> None:
    """Raise OSError or ValueError for a file that is not a sound image, and decode no more than that takes."""
    with path.open("rb", buffering=0) as file:
        head = file.read(len(_PNG_START))
        if head == _PNG_START:
            _check_png(head + file.read())
            return
        if head.startswith(_JPEG_START):
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            if _JPEG_END in file.read(_TAIL_BYTES):
                return
    decode(path)


def _check_png(content: bytes) -> None:
    """Raise OSError for a PNG of which any byte up to its end mark is damaged or missing."""
    start = len(_PNG_START)
    while start + 12 <= len(content):  # length, type, data, checksum of type and data
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        body = memoryview(content)[start + 4 : end - 4]
        if zlib.crc32(body) != int.from_bytes(content[end - 4 : end], "big"):
            raise OSError(f"the PNG is damaged: wrong checksum in the chunk at byte {start}")
        if body[:4] == b"IEND":
            return
        start = end
    raise OSError("the PNG is truncated or damaged: it has no sound end")


def decode(path: str | Path, load_size: int | None = None) -> torch.Tensor:
    """An image file as RGB uint8 (3, H, W), its shorter side shrunk to `load_size` if it is longer.

    Transparency is dropped, 16 bits become 8, an animation gives its first picture and the EXIF
    orientation is ignored, as it was when the published numbers on these data sets were made.

    Raises:
        OSError: the file is missing, truncated, a PNG with a wrong checksum, or of no known format.
        ValueError: its content is broken in another way.
    """
    return decode_content(Path(path).read_bytes(), load_size)


def decode_content(content: bytes, load_size: int | None = None) -> torch.Tensor:
    """A file's content as an image, see `decode`."""
    if not content:
        raise OSError("the file is empty")
    if content.startswith(_PNG_START):
        _check_png(content)
    # JPEG alone: one wrong byte in a PNG crashes the whole process in torchvision's decoder.
    jpeg = content.startswith(_JPEG_START)
    image = _decode_reduced(content, load_size) if jpeg and load_size is not None else None
    if image is not None:
        return image
    if jpeg and decode_jpeg is not None:
        with suppress(RuntimeError, ValueError):  # perhaps PIL can, or says better what is wrong
            image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    if image is None:
        image = _decode_with_pil(content)
    return resized(image, *kept_size(*image.shape[1:], load_size))


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """An image uint8 (C, H, W) at another size, bilinear and antialiased, uint8 (C, height, width).

    An image in channels-last order, as decoders give it, stays so: that is the order for which torch is fast.
    """
    if image.shape[1:] == (height, width):
        return image
    # Not image[None]: its strides are not recognised as channels-last, and the work takes half as long again.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def _decode_reduced(content: bytes, load_size: int) -> torch.Tensor | None:
    """A JPEG by way of a decode at 1/4 or 1/8 of its size, which spares much work; None where that were too small.

    Half the size would gain next to nothing over torchvision's decoder.
    """
    if len(content) < 2 * load_size**2:  # it is small, or so strongly compressed that a whole decode is quick
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            height, width = kept_size(image.height, image.width, load_size)
            if min(image.width // width, image.height // height) < 4:
                return None
            image.draft(None, (width, height))  # the smallest of them that is at least so large
            reduced = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            return resized(reduced, height, width)
    except Exception:  # a decoder may stumble over broken bytes in any way; a whole decode says what is wrong
        return None


def _decode_with_pil(content: bytes) -> torch.Tensor:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
                grey = ((np.asarray(image).astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8)
                return torch.from_numpy(grey).expand(3, -1, -1)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except UnidentifiedImageError:
        raise OSError("no known image format") from None
    except OSError:
        raise
    except Exception as error:  # a decoder may stumble over broken bytes in any way
        raise ValueError(f"{type(error).__name__}: {error}") from None


def check_readable(images: Images, max_unreadable: float, log: Callable[[str], None]) -> np.ndarray:
    """Numbers of the images that can be read, int64 in ascending order.

    Args:
        images: looked through with their `problem` method, in threads.
        max_unreadable: share of unreadable images, 0..1, that is let pass.
        log: told every unreadable image with the reason, and without a terminal the progress.

    Raises:
        UserError: more than that share is unreadable, or everything.
    """
    if type(images).problem is Images.problem:
        return np.arange(len(images))
    chunks = np.array_split(np.arange(len(images)), max(1, len(images) // 256))
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        found = chain.from_iterable(pool.map(lambda chunk: [images.problem(i) for i in chunk], chunks))
        found = progress(found, "checking images", len(images), log)
        reasons = {i: reason for i, reason in enumerate(found) if reason is not None}
    for i, reason in reasons.items():
        log(f"unreadable image: {images.ids[i]}: {reason}")
    if len(reasons) > max_unreadable * len(images) or (reasons and len(reasons) == len(images)):
        shown = "; ".join(f"{images.ids[i]}: {reason}" for i, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        where = f" of {images.root}" if isinstance(images, ImageFiles) else ""
        raise UserError(
            f"{len(reasons)} of {len(images)} images{where} cannot be read, more than data.max_unreadable="
            f"{max_unreadable:g} lets pass ({shown}{more}): mend or remove them, or raise data.max_unreadable"
        )
    if reasons:
        log(f"{len(reasons)} of {len(images)} images cannot be read and are left out")
    return np.array([i for i in range(len(images)) if i not in reasons], dtype=np.int64)
