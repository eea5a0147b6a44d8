"""The decoded store: each image is decoded once, and read from one flat file from then on.

A store holds the images of one listing, as uint8 (height, width, 3), one after the other:

    header (4096 bytes of JSON) | index (N, 3) int64 | marks (N + 1) uint32 | pixels

The headers of the image files tell each image's place before anything is decoded. So any number of processes and runs
can fill a store at the same time, without locks. Each process writes an image to its place and then sets the image's
mark. If a process is killed during a write, there is no mark, and the image is decoded again. Two processes that decode
the same image write the same bytes. An image that cannot be read has a special mark.

What a killed process has written is still in the system's memory. A power cut, however, may keep a mark and lose the
pixels. So a mark is a number that stands for the current boot of this machine, and marks of another boot do not count.
When all images are marked, the pixels are forced to the disk and the last mark, the seal, is set. A sealed store is
valid after every boot.
"""

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from uda.core.errors import UserError
from uda.core.progress import progress
from uda.core.settings import environment_folder
from uda.data.decoding import MAX_PIXELS, kept_size, open_file, open_image, orientation
from uda.data.settings import ReadingSettings

SUFFIX = ".decoded"
FORMAT = 1

#: Number of bytes of the disk that stay free.
SPARE_BYTES = 1 << 30

_HEADER_BYTES = 4096
_ALIGNMENT = 64
#: The last mark of a store whose images are all written and on the disk.
_SEALED = 1
#: The mark of an image that cannot be read. Marks that stand for a boot are larger.
_ABSENT = 1
#: Largest number of images that wait for a process's writing thread.
_WAITING = 2
#: Reading an image checks whether the store is complete if the image's number is a multiple of this.
_SEAL_EVERY = 1024


@dataclass(frozen=True)
class Inventory:
    """What a store is made of: image files in their current state, and the rules by which they are read.

    `stamps` (N, 2) int64 holds each file's size in bytes and time of change in ns, or -1 for a missing file.
    """

    root: Path
    paths: Sequence[str]
    reading: ReadingSettings
    stamps: np.ndarray

    @cached_property
    def images(self) -> str:
        """A digest of the images' folder and paths, not of their content."""
        return _digest([str(self.root.resolve()), *self.paths])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that determines the pixels. It does not change if the folder is moved."""
        decoders = [f"{name} {version(name)}" for name in ("torch", "torchvision", "Pillow")]
        files = (f"{path}\0{size}\0{time}" for path, (size, time) in zip(self.paths, self.stamps.tolist(), strict=True))
        return _digest([f"format {FORMAT}", *decoders, f"reading {self.reading.model_dump_json()}", *files])

    def index(self, log: Callable[[str], None]) -> np.ndarray:
        """Place, height and width of each image in a store, (N, 3) int64. Unreadable headers give 0 by 0."""
        sizes = progress(_in_threads(self._kept_size, self.paths), "reading image sizes", len(self.paths), log)
        index = np.array([(0, *size) for size in sizes], dtype=np.int64)
        padded = -(-index[:, 1:].prod(1) * 3 // _ALIGNMENT) * _ALIGNMENT
        index[1:, 0] = padded.cumsum()[:-1]
        return index

    def _kept_size(self, path: str) -> tuple[int, int]:
        try:
            size = size_on_disk(os.path.join(self.root, path), self.reading)
            return kept_size(*size, self.reading.load_size) if math.prod(size) <= MAX_PIXELS else (0, 0)
        except Exception:  # broken bytes may raise anything; reading the image will report it
            return 0, 0


def size_on_disk(path: str | Path, reading: ReadingSettings) -> tuple[int, int]:
    """Height and width of an image from its file's header, before `load_size`. Broken bytes may raise anything."""
    with open_file(path) as file:
        upright = reading.exif_orientation == "ignore"
        size = _jpeg_size(file.read(4096)) if upright else None
        if size is None:
            file.seek(0)
            with open_image(file) as image:
                size = image.height, image.width
                if not upright and orientation(image) >= 5:
                    size = size[::-1]
    return size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Height and width from a JPEG's first bytes. None if they are not in them, and for any other file.

    PIL reads the rest of the header too, and takes four times as long for a data set.
    """
    at = 2
    while head.startswith(b"\xff\xd8\xff") and at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not a table
            return int.from_bytes(head[at + 5 : at + 7], "big"), int.from_bytes(head[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def take_inventory(root: Path, paths: Sequence[str], reading: ReadingSettings) -> Inventory:
    """The state of the files below `root`."""

    def stamp(path: str) -> tuple[int, int]:
        try:
            return file_stamp(os.stat(os.path.join(root, path)))
        except OSError:
            return -1, -1

    return Inventory(Path(root), list(paths), reading, np.array(list(_in_threads(stamp, paths)), dtype=np.int64))


def _in_threads(ask: Callable[[str], tuple[int, int]], paths: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Two numbers for each file, in order. Threads help because `ask` mostly waits for the disk."""
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        yield from chain.from_iterable(pool.map(lambda chunk: list(map(ask, chunk)), chunks))


def file_stamp(status: os.stat_result) -> tuple[int, int]:
    """Size in bytes and time of change in ns. If the stamp differs, the content counts as changed."""
    return status.st_size, status.st_mtime_ns


class DecodedStore:
    """An open store. It can be pickled. A forked or spawned process reads and fills the same file.

    Args:
        path: the store's file.
        inventory: the images that the store must be made from.
        log: is called with a line if the store cannot be filled any further.

    Raises:
        UserError: the file is not a store, is broken, or is a store of other images.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, inventory: Inventory, log: Callable[[str], None]):
        header = read_header(path)
        if header is None or header.get("fingerprint") != inventory.fingerprint:
            raise UserError(
                f"{path}: this decoded store was made from other images or by another version: "
                "remove the file, or set data.store to another folder"
            )
        if path.stat().st_size != header["bytes"]:
            raise UserError(f"{path}: this decoded store is truncated: remove the file")
        self.path = path
        self._stamps = inventory.stamps
        self._count = len(inventory.paths)
        self._open(log)

    def _open(self, log: Callable[[str], None]) -> None:
        self._log = log
        #: 1 once an image could not be written. Shared with forked workers, so that only one of them logs it.
        self._given_up = mmap.mmap(-1, 1)
        try:
            self._file = os.open(self.path, os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._file = os.open(self.path, os.O_RDONLY)  # another user's store can still be read
            self._given_up[0] = 1
        table = mmap.mmap(self._file, _table_bytes(self._count), access=mmap.ACCESS_READ)
        self._index = np.frombuffer(table, np.int64, 3 * self._count, _HEADER_BYTES).reshape(-1, 3)
        self._marks_at = _HEADER_BYTES + self._index.nbytes
        self._marks = np.frombuffer(table, np.uint32, self._count + 1, self._marks_at)
        self._mark = np.uint32(_mark_of_this_boot())
        self._start = _pixels_at(self._count)
        self._sealed = bool(self._marks[-1] == _SEALED)
        self._writer: tuple[int, ThreadPoolExecutor] | None = None
        self._under_way: deque[tuple[int, Future]] = deque()

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in ("path", "_stamps", "_count")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open(print)

    def __del__(self):
        if hasattr(self, "_file"):
            self.wait()
            os.close(self._file)

    def __len__(self) -> int:
        return self._count

    @property
    def sealed(self) -> bool:
        """Whether the store is complete and its pixels are on the disk."""
        return self._sealed

    @property
    def held(self) -> int:
        """Number of images in the store."""
        self.wait()
        marks = self._marks[:-1]
        return int(((marks == self._mark) | (self._sealed & (marks != _ABSENT))).sum())

    def holds(self, place: int) -> bool:
        """Whether image number `place` of the listing is in the store."""
        if any(place == written for written, _ in self._under_way):
            self.wait()
        mark = self._marks[place]
        return bool(mark == self._mark or (self._sealed and mark != _ABSENT))

    def size(self, place: int) -> tuple[int, int]:
        """Height and width of image number `place` of the listing."""
        _, height, width = self._index[place].tolist()
        return height, width

    def read(self, place: int, top: int = 0, rows: int | None = None) -> torch.Tensor | None:
        """Image number `place` of the listing, uint8 (3, H, W). None if the store does not hold it.

        With `rows`, only that many rows of the image are read, from row `top` on.
        """
        if not self.holds(place):
            return None
        offset, height, width = self._index[place].tolist()
        image = torch.empty((height - top if rows is None else rows, width, 3), dtype=torch.uint8)
        # Not a memory map: reading is as fast, and a disk fault raises an error instead of ending the process.
        try:
            done = os.preadv(self._file, [image.numpy()], self._start + offset + 3 * width * top)
        except OSError:
            return None
        if not self._sealed and place % _SEAL_EVERY == 0:
            self.seal()
        return image.permute(2, 0, 1) if done == image.numel() else None

    def write(self, place: int, image: torch.Tensor, stamp: tuple[int, int]) -> None:
        """Store image number `place`, uint8 (3, H, W), which was decoded from a file with the given stamp.

        Another thread writes it, while this one decodes the next image. It must not be changed before `wait`. At most
        two images wait to be written. An image is not stored if its file has changed since the store was opened. If
        the disk is full or fails, this is logged and nothing is stored from then on.
        """
        if self._marks[-1] == _SEALED:  # later images would not be safe from a power cut
            return
        offset, height, width = self._index[place].tolist()
        if stamp != tuple(self._stamps[place].tolist()) or image.shape != (3, height, width):
            return
        pixels = image.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        if self._writer is None or self._writer[0] != os.getpid():  # a thread does not outlive a fork
            self._writer, self._under_way = (os.getpid(), ThreadPoolExecutor(1, "decoded-store")), deque()
        elif len(self._under_way) == _WAITING:
            self._under_way.popleft()[1].result()
        writes = (pixels, self._start + offset), (self._mark.tobytes(), self._marks_at + 4 * place)
        self._under_way.append((place, self._writer[1].submit(self._put, *writes)))

    def wait(self) -> None:
        """Wait until this process's thread has written all its images."""
        while self._writer is not None and self._writer[0] == os.getpid() and self._under_way:
            self._under_way.popleft()[1].result()

    def leave_out(self, place: int) -> None:
        """Mark image number `place` as unreadable. The store is complete without it."""
        self._put((np.uint32(_ABSENT).tobytes(), self._marks_at + 4 * place))

    def seal(self) -> bool:
        """Seal the store if it holds every image. It then stays valid after a reboot. Returns whether it is sealed."""
        self.wait()
        if not self._sealed and np.isin(self._marks[:-1], (self._mark, _ABSENT)).all():
            try:
                os.fsync(self._file)
                self._put((np.uint32(_SEALED).tobytes(), self._marks_at + 4 * self._count))
                os.fsync(self._file)
            except OSError:
                return False
            self._sealed = bool(self._marks[-1] == _SEALED)
        return self._sealed

    def _put(self, *writes: tuple[np.ndarray | bytes, int]) -> None:
        """Write contents to their places, one after the other. After an error nothing more is written."""
        if self._given_up[0]:
            return
        try:
            for content, at in writes:
                rest = memoryview(content)
                while rest:  # a nearly full disk may take only a part
                    done = os.pwrite(self._file, rest, at)
                    rest, at = rest[done:], at + done
        except OSError as error:
            first, self._given_up[0] = not self._given_up[0], 1
            if first:
                self._log(
                    f"decoded store: {self.path}: {error.strerror or error}: nothing more is stored; the run continues"
                )


def open_stores(
    inventories: Sequence[Inventory], folder: str | Path | None, limit_gb: float, log: Callable[[str], None]
) -> list[DecodedStore | None]:
    """A store for each inventory: an existing one, or a new, empty one.

    Args:
        inventories: what to store.
        folder: folder of the stores. None: `default_folder()`.
        limit_gb: largest size of all of them together, in GB of 10^9 bytes.
        log: is called with lines about what is found and made, and why there is no store.

    Returns:
        The stores. All are None if the disk has too little room or the folder cannot be written.

    Raises:
        UserError: the stores would be larger than the limit, or a store is broken or of other images.
    """
    folder = default_folder() if folder is None else Path(folder)
    paths = [folder / f"{entry.root.name or 'images'}-{entry.fingerprint[:16]}{SUFFIX}" for entry in inventories]
    try:
        stores = [
            DecodedStore(path, entry, log) if path.exists() else None
            for path, entry in zip(paths, inventories, strict=True)
        ]
        indices = [
            entry.index(log) if store is None else None for store, entry in zip(stores, inventories, strict=True)
        ]
        sizes = [
            path.stat().st_size if index is None else _store_bytes(index)
            for path, index in zip(paths, indices, strict=True)
        ]
        images = sum(len(entry.paths) for entry in inventories)
        _check_limit(sum(sizes), limit_gb, inventories[0].reading.load_size)
        log(f"decoded store: {images:,} images, {gigabytes(sum(sizes))} in {folder}")
        _name_older(folder, paths, inventories, log)
        missing = sum(
            0 if store is not None and store.sealed else size - _on_disk(path)
            for store, size, path in zip(stores, sizes, paths, strict=True)
        )
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if missing and missing > free - SPARE_BYTES:
            log(
                f"decoded store: the disk has {gigabytes(free)} free, but the store needs {gigabytes(missing)} more, "
                f"and {gigabytes(SPARE_BYTES)} must stay free: the run continues without it; free some space, or set "
                "data.load_size or data.store"
            )
            return [None] * len(inventories)
        for number, (path, index, entry) in enumerate(zip(paths, indices, inventories, strict=True)):
            if index is not None:
                _create(path, index, entry)
                stores[number] = DecodedStore(path, entry, log)
    except OSError as error:
        log(
            f"warning: decoded store: {folder}: {error.strerror or error}: the run continues without it; set "
            "data.store to another folder"
        )
        return [None] * len(inventories)
    for store in stores:
        if store.held:
            whole = "complete" if store.seal() else f"{store.held:,} of {len(store):,} images are already stored"
            log(f"decoded store: {store.path.name}: {whole}")
    return stores


def default_folder() -> Path:
    """$UDA_STORE, else uda/ in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    return environment_folder("UDA_STORE") or (environment_folder("XDG_CACHE_HOME") or Path.home() / ".cache") / "uda"


def gigabytes(count: int) -> str:
    """A number of bytes as text, in GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _table_bytes(count: int) -> int:
    """Size in bytes of header, index and marks of a store of `count` images."""
    return _HEADER_BYTES + 24 * count + 4 * (count + 1)


def _pixels_at(count: int) -> int:
    """Offset of the pixels in bytes. They begin at a memory page."""
    return -(-_table_bytes(count) // 4096) * 4096


def _store_bytes(index: np.ndarray) -> int:
    """Size in bytes of a complete store."""
    return _pixels_at(len(index)) + int((index[:, 0] + 3 * index[:, 1] * index[:, 2]).max(initial=0))


def _on_disk(path: Path) -> int:
    """Number of bytes that a file takes on the disk. It is less than its size while images are missing."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def _check_limit(size: int, limit_gb: float, load_size: int | None) -> None:
    if size > limit_gb * 1e9:
        cure = "set data.load_size" if load_size is None else f"lower data.load_size (now {load_size})"
        raise UserError(
            f"data.cache: the decoded store would take {gigabytes(size)}, more than data.store_gb={limit_gb:g} "
            f"allows: {cure}, raise data.store_gb, or set data.cache=none"
        )


def _create(path: Path, index: np.ndarray, inventory: Inventory) -> None:
    """Create an empty store in one atomic step, unless another process has created it first."""
    size = _store_bytes(index)
    header = {
        "format": FORMAT,
        "fingerprint": inventory.fingerprint,
        "images": inventory.images,
        "root": str(inventory.root.resolve())[-300:],
        "count": len(inventory.paths),
        "load_size": inventory.reading.load_size,
        "bytes": size,
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(json.dumps(header).encode().ljust(_HEADER_BYTES - 1) + b"\n")
            file.write(index.tobytes())
            file.write(bytes(4 * (len(index) + 1)))
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # os.replace could replace a full store by an empty one
        except FileExistsError:
            pass
        except OSError:  # the file system has no links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict | None:
    """The header of a store. None if the file is not a store."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES))
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _name_older(
    folder: Path, files: Sequence[Path], inventories: Sequence[Inventory], log: Callable[[str], None]
) -> None:
    """Log the stores of the same images that were made before the images changed, or by other rules."""
    images = {entry.images for entry in inventories}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        header = None if path in files else read_header(path)
        if header is not None and header.get("images") in images:
            size = "full size" if header["load_size"] is None else f"load_size {header['load_size']}"
            log(
                f"decoded store: {path} ({size}, {gigabytes(_on_disk(path))}) was made from an earlier state of these "
                "images, at another size or by other rules; this run does not use it: remove it if no other run does"
            )


def _digest(lines: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _mark_of_this_boot() -> int:
    """A number for the current boot of this machine, 2 to 2^32 - 1. If the boot id is unknown, one for this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = _PROCESS
    return max(2, zlib.crc32(boot.encode()))


_PROCESS = uuid.uuid4().hex
