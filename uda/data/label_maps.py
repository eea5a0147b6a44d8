"""Label maps: images of class numbers. How their files are read and written, and numbered maps."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from uda.core.errors import UserError
from uda.core.files import atomic_path
from uda.data.decoding import check_png, open_file, open_image, read_content
from uda.data.label_coding import LabelCoding as LabelCoding

_ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_CHANNELS = {"LA": 2, "PA": 2, "RGB": 3, "RGBA": 4}
#: PIL scales grey values of few bits to 0..255, by these factors.
_SCALED = {"L;2": 85, "L;4": 17}


def read_label_map(path: str | Path, coding: LabelCoding) -> torch.Tensor:
    """A label map's file as train ids, uint8 (H, W), 0..K-1 or VOID.

    It is read without any conversion of colours: grey values of 1 to 16 bits, the indices of a palette, or one channel
    of 8 or 16 bits.

    Raises:
        UserError: the file cannot be read, is a JPEG, holds fractions, has several channels and `coding` names none, or
            holds values that `coding` does not know.
    """
    return torch.from_numpy(coding.train_ids(read_values(path, coding.channel), path))


def read_values(path: str | Path, channel: int | None = None) -> np.ndarray:
    """The values in a label map's file, as integers (H, W). Raises UserError, as `read_label_map` does."""
    try:
        with open_file(path) as file:
            content = read_content(file)
        return _values(content, channel)
    except OSError as error:
        reason, cure = error.strerror or error, "restore the file"
    except ValueError as error:
        reason, cure = str(error), "" if ";" in str(error) else "repair or replace the file"
    raise UserError(f"{path}: cannot be read as a label map: {reason}{'; ' if cure else ''}{cure}")


def _values(content: bytes, channel: int | None) -> np.ndarray:
    if not content:
        raise ValueError("the file is empty")
    check_png(content)
    try:
        with open_image(io.BytesIO(content)) as image:
            return _of_image(image, content, channel)
    except ValueError:
        raise
    except Exception as error:  # a decoder may raise anything for broken bytes
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ValueError(" ".join(f"{name}{error}".split())) from None


def _of_image(image: Image.Image, content: bytes, channel: int | None) -> np.ndarray:
    if image.format in ("JPEG", "MPO"):
        raise ValueError("it is a JPEG, whose compression changes class numbers; save it as a PNG")
    raw = _raw_mode(image)
    if image.mode in _ONE_CHANNEL:
        if channel not in (None, 0):
            raise ValueError(f"it has one channel, but channel {channel} should hold the class; set `channel` to null")
        values = np.asarray(image)
        if image.mode == "1":
            return values.astype(np.uint8)
        return values // np.uint8(_SCALED[raw]) if raw in _SCALED else values
    if image.mode not in _CHANNELS or raw.startswith("LA;16"):
        kind = "two channels of 16 bits" if raw.startswith("LA;16") else f"the kind '{image.mode}'"
        raise ValueError(f"it is of {kind}; save the class numbers as a grey PNG")
    count = _CHANNELS[image.mode]
    deep = ";16" in raw
    if deep and image.format != "PNG":
        raise ValueError(
            f"it is a {image.format} of 16 bits a channel, of which the lower 8 are lost; save it as a PNG"
        )
    if channel is None:
        values = np.asarray(image)
        equal = count > 2 and bool((values[:, :, :3] == values[:, :, :1]).all())
        hint = ", and here all colours are equal" if equal else "; a map of colours must be converted to class numbers"
        raise ValueError(
            f"it has {count} channels; set `channel` of the card to the one that holds the class (0 is red){hint}"
        )
    if channel >= count:
        raise ValueError(f"it has {count} channels, but `channel` is {channel}; the first one is 0")
    upper = np.asarray(image)[:, :, channel]
    if not deep:
        return upper
    # PIL keeps the upper 8 of 16 bits. Read as if the bytes were swapped, it keeps the lower 8.
    with Image.open(io.BytesIO(content), formats=("PNG",)) as swapped:
        swapped.tile = [(*swapped.tile[0][:3], raw.replace("16B", "16L"))]
        lower = np.asarray(swapped)[:, :, channel]
    return upper.astype(np.uint16) << 8 | lower


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in PIL's words."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


class LabelMaps(ABC):
    """Numbered label maps, in the order of the images that they belong to."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of maps."""

    @abstractmethod
    def read(self, i: int) -> torch.Tensor:
        """Map `i` as train ids, uint8 (H, W), 0..K-1 or VOID. It must not be changed. Raises UserError."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> "LabelMaps":
        """The maps with the given numbers (n,), in that order."""


class MapFiles(LabelMaps):
    """Label maps in files.

    Args:
        paths: the files.
        coding: how their values become train ids.
        cache: `memory` keeps every map that was read in memory.
    """

    def __init__(self, paths: Sequence[str | Path], coding: LabelCoding, cache: Literal["none", "memory"] = "none"):
        self.paths = [os.fspath(path) for path in paths]
        self.coding = coding
        self.cache = cache
        self._read: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> torch.Tensor:
        path = self.paths[i]
        found = self._read.get(path)
        if found is None:
            found = read_label_map(path, self.coding)
            if self.cache == "memory":
                self._read[path] = found
        return found

    def take(self, indices: np.ndarray) -> "MapFiles":
        taken = MapFiles([self.paths[i] for i in indices], self.coding, self.cache)
        taken._read = {path: self._read[path] for path in taken.paths if path in self._read}
        return taken


class MapArray(LabelMaps):
    """Label maps of one size in memory, uint8 (N, H, W)."""

    def __init__(self, array: np.ndarray):
        if array.dtype != np.uint8 or array.ndim != 3:
            raise ValueError(f"need uint8 (N, H, W), got {array.dtype} {array.shape}")
        self._array = torch.from_numpy(np.ascontiguousarray(array))

    def __len__(self) -> int:
        return len(self._array)

    def read(self, i: int) -> torch.Tensor:
        return self._array[i]

    def take(self, indices: np.ndarray) -> "MapArray":
        return MapArray(self._array.numpy()[indices])


def write_label_map(
    path: str | Path, numbers: torch.Tensor | np.ndarray, palette: np.ndarray, durable: bool = True
) -> None:
    """Write a label map as a PNG with a palette, in one atomic step. Any viewer shows it in the classes' colours.

    Args:
        path: the file.
        numbers: train ids, uint8 (H, W), 0..K-1 or VOID, which is black.
        palette: the classes' colours, uint8 (K, 3).
        durable: whether to wait until the file is on the disk, so that it survives a power cut.
    """
    image = Image.fromarray(np.ascontiguousarray(numbers, dtype=np.uint8))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    image.putpalette(colours.tobytes())
    with atomic_path(Path(path), durable=durable) as temporary:
        image.save(temporary, "PNG", compress_level=6)


def class_palette(classes: Sequence[str], colors: Mapping[str, Sequence[int]] | None = None) -> np.ndarray:
    """The classes' colours, uint8 (K, 3). A class that `colors` lacks gets the colour of its number in PASCAL VOC."""
    given = colors or {}
    return np.array([given.get(name) or _voc_colour(number + 1) for number, name in enumerate(classes)], np.uint8)


def _voc_colour(number: int) -> list[int]:
    """The bits of a number, dealt to red, green and blue, the lowest first and each to the highest free place."""
    return [sum((number >> (3 * step + channel) & 1) << (7 - step) for step in range(8)) for channel in range(3)]
