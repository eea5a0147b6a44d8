"""From a file's content to pixels: the rules by which every image is read, and the limits of what is read at all."""

import io
import logging
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError
from torch.nn import functional as F

from uda.data.settings import ReadingSettings

try:  # decodes a JPEG nearly twice as fast as PIL, but torchvision 0.29 announces its end
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

# Once and for these alone: warnings.catch_warnings() around each call is not safe in threads.
warnings.filterwarnings(
    "ignore", "The image decoding and encoding capabilities of TorchVision are deprecated", DeprecationWarning
)
for _category in (UserWarning, Image.DecompressionBombWarning):  # an odd file is read, or named with the reason
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

#: An image of more pixels is not read. PIL's own limit; its pixels alone take 0.7 GB while it is decoded.
MAX_PIXELS = 178_956_970

#: A file of more bytes is no image of so many pixels.
MAX_BYTES = 8 * MAX_PIXELS

#: Images of more pixels than this are decoded one at a time, however many threads there are.
_LARGE_PIXELS = 1 << 24
_one_large_image = threading.Lock()

#: So many pixels are converted at a time: a second copy of a large image would double its memory.
_BAND_PIXELS = 1 << 22

Image.init()
#: What PIL may take a file for. EPS is not among them, for which PIL starts another program.
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX")
    if name in Image.OPEN
)

_PNG_START = b"\x89PNG\r\n\x1a\n"

#: First bytes of the formats whose damaged headers are told from foreign files.
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    _PNG_START: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}

#: Axes of (C, H, W) that are flipped, by EXIF orientation; from 5 on after height and width have changed places.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@dataclass(frozen=True)
class ImageFacts:
    """What looking at an image tells besides its pixels."""

    problem: str | None = None
    """Why it cannot be read, or None."""
    transparent: bool = False
    """Whether a part of it was laid on `data.background`."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    white: tuple[str, int] | None = None
    """`floats` or `integers` of more than 8 bits, and the value taken for white, where their range alone tells it."""


def decode_content(content: bytes, reading: ReadingSettings) -> torch.Tensor:
    """A file's content as an image, uint8 (3, H, W), by the rules of `uda.data.images.decode`. Raises ValueError."""
    return _read(content, reading)[0]


def examine_content(content: bytes, reading: ReadingSettings) -> ImageFacts:
    """What `decode_content` would find, without the pixels of a JPEG.

    A JPEG is decoded at 1/8 of its size. That reads all of its content and stumbles over what a whole decode stumbles
    over, in about two thirds of the time. Any other image is decoded. Raises ValueError where `decode_content` does.
    """
    return _read(content, reading, whole=False)[1]


def _read(content: bytes, reading: ReadingSettings, whole: bool = True) -> tuple[torch.Tensor | None, ImageFacts]:
    if not content:
        raise ValueError("the file is empty")
    if content.startswith(_PNG_START):
        _check_png(content)
    try:
        with open_image(io.BytesIO(content)) as image:
            height, width = image.height, image.width
            large = height * width > _LARGE_PIXELS
            with _one_large_image if large else nullcontext():
                if image.format not in ("JPEG", "MPO"):
                    pixels, transparent, white = _decode(image, reading)
                else:  # no transparency, and 8 bits
                    pixels = _decode_jpeg(image, content, reading.load_size) if whole else _decode_eighth(image)
                    transparent, white = False, None
                facts = ImageFacts(None, transparent, orientation(image), white)
                if pixels is not None:
                    pixels = resized(pixels, *kept_size(height, width, reading.load_size))
    except ValueError:
        raise
    except Exception as error:  # a decoder may stumble over broken bytes in any way
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ValueError(" ".join(f"{name}{error}".split())) from None
    if pixels is not None and reading.exif_orientation == "apply":
        pixels = _turned(pixels, facts.orientation)
    return pixels, facts


def open_image(file: BinaryIO) -> Image.Image:
    """An image of which PIL has read the header. Raises ValueError for none, or one that is too large."""
    start = file.read(8)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        kind = next((name for begin, name in _STARTS.items() if start.startswith(begin)), None)
        raise ValueError(
            "no known image format" if kind is None else f"a {kind} with a damaged header, or of a kind that PIL lacks"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels") from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        image.close()
        raise ValueError(f"it has {image.width:,} x {image.height:,} pixels; at most {MAX_PIXELS:,} are read")
    return image


def open_file(path: str | Path) -> BinaryIO:
    """A file to read from. Raises OSError for anything but a file, where a read might wait for ever."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is not a file")
    return open(number, "rb", buffering=0)


def read_content(file: BinaryIO) -> bytes:
    """All of a file. Raises ValueError for one that is too large for an image."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size:,} bytes; images of at most {MAX_BYTES:,} are read")
    return file.read()


def kept_size(height: int, width: int, load_size: int | None) -> tuple[int, int]:
    """Height and width at which an image is kept: its shorter side at most `load_size`, its aspect as it was."""
    shorter = min(height, width)
    if load_size is None or shorter <= load_size:
        return height, width
    return round(height * load_size / shorter), round(width * load_size / shorter)


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """An image uint8 (C, H, W) at another size, bilinear and antialiased, uint8 (C, height, width).

    An image in channels-last order, as decoders give it, stays so: that is the order for which torch is fast.
    """
    if image.shape[1:] == (height, width):
        return image
    # Not image[None]: its strides are not recognised as channels-last, and the work takes half as long again.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def orientation(image: Image.Image) -> int:
    """An opened image's EXIF orientation, 1 to 8; 1 for a TIFF, which PIL turns as its own tag says."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in _FLIPS else 1
    except Exception:  # damaged notes beside a sound picture
        return 1


def _turned(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Pixels (C, H, W) upright, channels-last as they were."""
    if orientation == 1:
        return pixels
    pixels = pixels.transpose(1, 2) if orientation >= 5 else pixels
    return pixels.flip(_FLIPS[orientation]).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _check_png(content: bytes) -> None:
    """Raise ValueError for a PNG of which any byte up to its end mark is damaged or missing."""
    start = len(_PNG_START)
    while start + 12 <= len(content):  # length, type, data, checksum of type and data
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        body = memoryview(content)[start + 4 : end - 4]
        if zlib.crc32(body) != int.from_bytes(content[end - 4 : end], "big"):
            raise ValueError(f"the PNG is damaged: wrong checksum in the chunk at byte {start}")
        if body[:4] == b"IEND":
            return
        start = end
    raise ValueError("the PNG is truncated or damaged: it has no sound end")


def _decode_eighth(image: Image.Image) -> None:
    image.draft(None, (1, 1))
    image.load()


def _decode_jpeg(image: Image.Image, content: bytes, load_size: int | None) -> torch.Tensor:
    """A JPEG's pixels, at 1/4 or 1/8 of its size where that is large enough for `load_size`: it spares much work.

    Half the size would gain next to nothing over torchvision's decoder.
    """
    height, width = kept_size(image.height, image.width, load_size)
    # A shorter file is small, or so strongly compressed that a whole decode is quick.
    long_enough = load_size is not None and len(content) >= 2 * load_size**2
    if long_enough and min(image.width // width, image.height // height) >= 4:
        image.draft(None, (width, height))  # the smallest of them that is at least so large
    # JPEG alone: one wrong byte in a PNG crashes the whole process in torchvision's decoder.
    elif decode_jpeg is not None:
        with suppress(RuntimeError, ValueError), _silence:  # perhaps PIL can, or says better what is wrong
            return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    image.load()
    return _in_bands(image, lambda band: np.asarray(band.convert("RGB")))


class _Silence:
    """Standard error goes nowhere while any thread is in here.

    libjpeg and libtiff write their warnings there from C, a line for each read of a damaged image, which names no file.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._kept = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)


_silence = _Silence()


def _decode(image: Image.Image, reading: ReadingSettings) -> tuple[torch.Tensor, bool, tuple[str, int] | None]:
    """Pixels of any format but JPEG, and of the facts `transparent` and `white`."""
    sixteen_bits = any(";16" in str(tile[3]) for tile in image.tile)
    with _silence if image.format == "TIFF" else nullcontext():
        image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _decode_grey(image, reading)
    peak, transparent, ground = 0, False, ImageColor.getrgb(reading.background)

    def convert(band: Image.Image) -> np.ndarray:
        nonlocal peak, transparent
        plain = band.convert("RGB")
        if sixteen_bits:
            peak = max(peak, *(high for _, high in plain.getextrema()))
        if image.has_transparency_data:
            clear = band.convert("RGBA")
            if clear.getextrema()[3][0] < 255:
                transparent = True
                plain = Image.alpha_composite(Image.new("RGBA", clear.size, ground), clear).convert("RGB")
        return np.asarray(plain)

    pixels = _in_bands(image, convert)
    if sixteen_bits and reading.white_level not in (None, 65535):
        raise ValueError("of 16 bits a colour PIL keeps the upper 8, which data.white_level cannot scale: convert it")
    if sixteen_bits and reading.white_level is None and peak < 16:
        raise ValueError("16 bits a colour, and no value above 4095: it would be all but black; convert it to 8 bits")
    return pixels, transparent, None


def _decode_grey(image: Image.Image, reading: ReadingSettings) -> tuple[torch.Tensor, bool, tuple[str, int] | None]:
    """The same for one number of more than 8 bits a pixel."""
    low, high = 0.0, 0.0
    for _, band in _bands(image):
        values = np.asarray(band)
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())  # a NaN stays
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds numbers that are not finite")
    if low < 0:
        raise ValueError(f"it holds negative numbers, down to {low:g}")
    white, guess = reading.white_level, None
    if image.format == "PPM" and image.mode == "I":  # PIL has scaled it by the maximum that its header names
        white = 65535
    elif white is None:
        kind, levels = ("floats", (1, 255)) if image.mode == "F" else ("integers", (255, 4095, 65535))
        white = next((level for level in levels if high <= level), None)
        if white is None:
            raise ValueError(f"it holds {kind} up to {high:g}: say by data.white_level which of them is white")
        guess = (kind, white) if high else None  # black is black in any range
    clear = image.info.get("transparency")
    ground = np.array(ImageColor.getrgb(reading.background), np.uint8)
    transparent = False

    def convert(band: Image.Image) -> np.ndarray:
        nonlocal transparent
        values = np.asarray(band)
        grey = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)[:, :, None]
        if not isinstance(clear, int) or not (values == clear).any():
            return grey
        transparent = True
        return np.where((values == clear)[:, :, None], ground, grey)

    return _in_bands(image, convert), transparent, guess


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """An image's rows, some at a time."""
    step = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    """Pixels uint8 (3, H, W) of a loaded image, which `convert` gives as (h, W, 3) or (h, W, 1) of h rows."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = convert(band)
    return torch.from_numpy(pixels).permute(2, 0, 1)
