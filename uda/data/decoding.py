"""Decodes image files: the rules by which a file becomes pixels, and the limits on what is read."""

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

# Set once, and only for these warnings: warnings.catch_warnings() around each call is not safe in threads.
warnings.filterwarnings(
    "ignore", "The image decoding and encoding capabilities of TorchVision are deprecated", DeprecationWarning
)
for _category in (UserWarning, Image.DecompressionBombWarning):  # uda itself names the files that cannot be read
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

#: An image of more pixels is not read. This is PIL's limit. Its pixels take 0.7 GB while it is decoded.
MAX_PIXELS = 178_956_970

#: A file of more bytes cannot be an image of at most MAX_PIXELS pixels.
MAX_BYTES = 8 * MAX_PIXELS

#: Images of more pixels than this are decoded one at a time, to save memory.
_LARGE_PIXELS = 1 << 24
_one_large_image = threading.Lock()

#: Number of pixels that are converted at a time. A second copy of a whole large image would double the memory.
_BAND_PIXELS = 1 << 22

Image.init()
#: Formats that are read. EPS is not among them, because PIL starts another program for it.
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX")
    if name in Image.OPEN
)

_PNG_START = b"\x89PNG\r\n\x1a\n"

#: First bytes of formats. They tell a damaged header from a file of another kind.
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    _PNG_START: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}

#: Axes of (C, H, W) to flip, by EXIF orientation. From 5 on, height and width are swapped before that.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@dataclass(frozen=True)
class ImageFacts:
    """What is known about an image besides its pixels."""

    problem: str | None = None
    """Why it cannot be read. None if it can."""
    transparent: bool = False
    """Whether a part of it is transparent, so that `data.background` is seen there."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    white: tuple[str, int] | None = None
    """`floats` or `integers`, and white. Only for a grey image of more than 8 bits whose white was guessed."""


def decode_content(content: bytes, reading: ReadingSettings) -> torch.Tensor:
    """A file's content -> image, uint8 (3, H, W), by the rules of `uda.data.images.decode`. Raises ValueError."""
    return _read(content, reading)[0]


def examine_content(content: bytes, reading: ReadingSettings) -> ImageFacts:
    """The facts about an image, without the pixels of a JPEG.

    A JPEG is decoded at 1/8 of its size. This reads all of its content and fails where a full decode fails, in about
    two thirds of the time. Any other image is decoded fully. Raises ValueError as `decode_content` does.
    """
    return _read(content, reading, whole=False)[1]


def _read(content: bytes, reading: ReadingSettings, whole: bool = True) -> tuple[torch.Tensor | None, ImageFacts]:
    if not content:
        raise ValueError("the file is empty")
    check_png(content)
    try:
        with open_image(io.BytesIO(content)) as image:
            height, width = image.height, image.width
            large = height * width > _LARGE_PIXELS
            with _one_large_image if large else nullcontext():
                if image.format not in ("JPEG", "MPO"):
                    pixels, transparent, white = _decode(image, reading)
                else:  # a JPEG has 8 bits and no transparency
                    pixels = _decode_jpeg(image, content, reading.load_size) if whole else _decode_eighth(image)
                    transparent, white = False, None
                facts = ImageFacts(None, transparent, orientation(image), white)
                if pixels is not None:
                    pixels = resized(pixels, *kept_size(height, width, reading.load_size))
    except ValueError:
        raise
    except Exception as error:  # a decoder may raise anything for broken bytes
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ValueError(" ".join(f"{name}{error}".split())) from None
    if pixels is not None and reading.exif_orientation == "apply":
        pixels = _turned(pixels, facts.orientation)
    return pixels, facts


def open_image(file: BinaryIO) -> Image.Image:
    """An image whose header PIL has read. Raises ValueError if it is no image or is too large."""
    start = file.read(8)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        kind = next((name for begin, name in _STARTS.items() if start.startswith(begin)), None)
        raise ValueError(
            "no known image format" if kind is None else f"a {kind} with a damaged header, or of a kind unknown to PIL"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels") from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        image.close()
        raise ValueError(f"it has {image.width:,} x {image.height:,} pixels; the limit is {MAX_PIXELS:,}")
    return image


def open_file(path: str | Path) -> BinaryIO:
    """A file, opened for reading. Raises OSError for anything else, because reading from it might never end."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is not a file")
    return open(number, "rb", buffering=0)


def read_content(file: BinaryIO) -> bytes:
    """The whole content of a file. Raises ValueError if it is too large for an image."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}")
    return file.read()


def kept_size(height: int, width: int, load_size: int | None) -> tuple[int, int]:
    """Height and width of an image after reading: the shorter side is at most `load_size`, the aspect is kept."""
    shorter = min(height, width)
    if load_size is None or shorter <= load_size:
        return height, width
    return round(height * load_size / shorter), round(width * load_size / shorter)


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """An image uint8 (C, H, W) resized to uint8 (C, height, width), bilinear and antialiased.

    A channels-last image stays channels-last. Decoders return this order, and torch is fast on it.
    """
    if image.shape[1:] == (height, width):
        return image
    # Not image[None]: torch does not see its strides as channels-last, and takes half as long again.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def orientation(image: Image.Image) -> int:
    """An opened image's EXIF orientation, 1 to 8. It is 1 for a TIFF, because PIL turns a TIFF by its own tag."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in _FLIPS else 1
    except Exception:  # the metadata is damaged, but the image may be good
        return 1


def _turned(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Pixels (C, H, W), turned upright. They stay channels-last."""
    if orientation == 1:
        return pixels
    pixels = pixels.transpose(1, 2) if orientation >= 5 else pixels
    return pixels.flip(_FLIPS[orientation]).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def check_png(content: bytes) -> None:
    """Raise ValueError if a file is a PNG of which any byte up to its end mark is damaged or missing."""
    if not content.startswith(_PNG_START):
        return
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
    raise ValueError("the PNG is truncated or damaged: it has no valid end")


def _decode_eighth(image: Image.Image) -> None:
    image.draft(None, (1, 1))
    image.load()


def _decode_jpeg(image: Image.Image, content: bytes, load_size: int | None) -> torch.Tensor:
    """A JPEG's pixels. They are decoded at 1/4 or 1/8 of its size if that is large enough for `load_size`.

    That saves much work. Decoding at 1/2 is hardly faster than torchvision's decoder.
    """
    height, width = kept_size(image.height, image.width, load_size)
    # A shorter file is small or strongly compressed, so decoding all of it is quick.
    long_enough = load_size is not None and len(content) >= 2 * load_size**2
    if long_enough and min(image.width // width, image.height // height) >= 4:
        image.draft(None, (width, height))  # picks the smallest scale that is at least this large
    # Only for JPEG: one wrong byte in a PNG crashes the whole process in torchvision's decoder.
    elif decode_jpeg is not None:
        with suppress(RuntimeError, ValueError), _silence:  # PIL may decode it, or give a better error
            return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    image.load()
    return _in_bands(image, lambda band: np.asarray(band.convert("RGB")))


class _Silence:
    """Discards standard error while any thread is in this context.

    libjpeg and libtiff write a warning there for each read of a damaged image, without the file's name.
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
    """Pixels of any format except JPEG, and the facts `transparent` and `white`."""
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
        raise ValueError(
            "it has 16 bits per colour, of which PIL keeps the upper 8; data.white_level cannot scale them: convert "
            "the image to 8 bits"
        )
    if sixteen_bits and reading.white_level is None and peak < 16:
        raise ValueError(
            "it has 16 bits per colour and no value above 4095, so it would be almost black: convert it to 8 bits"
        )
    return pixels, transparent, None


def _decode_grey(image: Image.Image, reading: ReadingSettings) -> tuple[torch.Tensor, bool, tuple[str, int] | None]:
    """Pixels and facts, as `_decode` gives them, of a grey image of more than 8 bits."""
    low, high = 0.0, 0.0
    for _, band in _bands(image):
        values = np.asarray(band)
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())  # these keep a NaN
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds numbers that are not finite")
    if low < 0:
        raise ValueError(f"it holds negative numbers, down to {low:g}")
    white, guess = reading.white_level, None
    if image.format == "PPM" and image.mode == "I":  # PIL has scaled it by the maximum in its header
        white = 65535
    elif white is None:
        kind, levels = ("floats", (1, 255)) if image.mode == "F" else ("integers", (255, 4095, 65535))
        white = next((level for level in levels if high <= level), None)
        if white is None:
            raise ValueError(f"it holds {kind} up to {high:g}: set data.white_level to the value that is white")
        guess = (kind, white) if high else None  # an all-black image tells nothing about its range
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
    """Bands of an image's rows, one after the other."""
    step = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    """Pixels uint8 (3, H, W) of a loaded image. `convert` gives each band of h rows as (h, W, 3) or (h, W, 1)."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = convert(band)
    return torch.from_numpy(pixels).permute(2, 0, 1)
