"""Images that a caller passes: a folder, files, PIL images, an array or a tensor."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from uda.core.errors import UserError
from uda.data.decoding import decode_content
from uda.data.folders import look_below
from uda.data.images import ImageArray, ImageFiles, Images
from uda.data.settings import ReadingSettings

#: Modes of PIL that a PNG can store without conversion.
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})

GivenImages = str | os.PathLike[str] | Image.Image | Sequence[Any] | NDArray | torch.Tensor


class PilImages(Images):
    """PIL images of any size. They become pixels by the same rules as files."""

    in_memory = True

    def __init__(self, images: Sequence[Image.Image], reading: ReadingSettings, ids: Sequence[str] | None = None):
        self.ids = [str(number) for number in range(len(images))] if ids is None else list(ids)
        self._images = list(images)
        self._reading = reading

    def read(self, i: int) -> torch.Tensor:
        image, content = self._images[i], io.BytesIO()
        try:
            if self._reading.exif_orientation == "apply":
                image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                image.save(content, "TIFF")
            else:
                image = image if image.mode in _PNG_MODES else image.convert("RGB")
                image.save(content, "PNG", compress_level=1)
            return decode_content(content.getvalue(), self._reading)
        except (OSError, ValueError) as error:
            raise UserError(f"image {self.ids[i]}: cannot be read: {error}") from None

    def take(self, indices: np.ndarray) -> "PilImages":
        return PilImages([self._images[i] for i in indices], self._reading, [self.ids[i] for i in indices])


def given_images(given: GivenImages, reading: ReadingSettings) -> Images:
    """The images that a caller passes, as `Images`.

    Args:
        given: a folder (all image files below it, in sorted order), an image file, a list of files, a PIL image, a
            list of PIL images, an array (N, H, W, C) or a tensor (N, C, H, W). Arrays and tensors are uint8 in 0..255
            or floating in 0..1. Floating values are rounded to the nearest of the 256 levels.
        reading: the rules by which files and PIL images become pixels.

    Returns:
        The images. The `ids` of files are their paths, relative to the folder if one is given. Other images have
        numbers as `ids`.

    Raises:
        UserError: no such file or folder, no images, floating values outside of 0..1.
        TypeError: `given` is of another type.
        ValueError: an array or a tensor of another shape.
    """
    if isinstance(given, torch.Tensor):
        images = _array(given.detach().cpu(), "(N, C, H, W)")
    elif isinstance(given, np.ndarray):
        images = _array(torch.from_numpy(np.require(given, requirements=["C", "W"])), "(N, H, W, C)")
    elif isinstance(given, str | os.PathLike):
        images = _files(Path(os.path.expanduser(given)), reading)
    elif isinstance(given, Image.Image):
        images = PilImages([given], reading)
    elif all(isinstance(one, Image.Image) for one in given):
        images = PilImages(given, reading)
    elif all(isinstance(one, str | os.PathLike) for one in given):
        images = ImageFiles(Path(), [os.path.expanduser(one) for one in given], reading=reading)
    else:
        kinds = ", ".join(sorted({type(one).__name__ for one in given}))
        raise TypeError(f"images: a list must hold paths or PIL images, not {kinds}; stack arrays or tensors into one")
    if not len(images):
        where = f" in {given}" if isinstance(given, str | os.PathLike) else ""
        raise UserError(f"images: there are none{where}")
    return images


def _files(path: Path, reading: ReadingSettings) -> ImageFiles:
    if not path.exists():
        raise UserError(f"images: no such file or folder: {path}")
    if path.is_dir():
        return ImageFiles(path, look_below(path).images, reading=reading)
    return ImageFiles(Path(), [str(path)], reading=reading)


def _array(values: torch.Tensor, shape: str) -> ImageArray:
    if values.ndim != 4:
        raise ValueError(f"images: must be {shape}, got {tuple(values.shape)}")
    if values.is_floating_point():
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            raise UserError(
                f"images: floating values must lie in 0..1, got {values.min():g} to {values.max():g}; pass images that "
                "are already normalised to the network directly"
            )
        values = (values.float() * 255).round().to(torch.uint8)
    elif values.dtype != torch.uint8:
        raise ValueError(f"images: must be uint8 or floating, got {values.dtype}")
    if shape.endswith("C)"):
        values = values.permute(0, 3, 1, 2)
    return ImageArray(values.numpy(), [str(number) for number in range(len(values))])
