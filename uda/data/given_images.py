"""Images that a caller passes: folders, lists, files, PIL images, an array or a tensor."""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from uda.core.errors import UserError
from uda.data.banks import ENDINGS, read_domain
from uda.data.decoding import decode_content
from uda.data.features import FeatureArray
from uda.data.folders import look_below
from uda.data.images import SUFFIXES, ImageArray, ImageFiles, Images
from uda.data.listing import Listing, list_file, list_unlabelled
from uda.data.settings import ReadingSettings
from uda.data.text import printable

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
        given: a folder (all image files below it, in sorted order), an image file, a list of files, a file of a feature
            bank, a PIL image, a list of PIL images, an array (N, H, W, C) or a tensor (N, C, H, W). Arrays and tensors
            are uint8 in 0..255 or floating in 0..1. Floating values are rounded to the nearest of the 256 levels.
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
        path = Path(os.path.expanduser(given))
        images = read_domain(path).array() if path.suffix in ENDINGS else _files(path, reading)
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


def given_features(given: NDArray | torch.Tensor) -> FeatureArray:
    """Features (N, D) of a run on a feature bank, as they are in place of images. Their `ids` are numbers.

    Raises:
        UserError: there are none, or a value is not finite.
        ValueError: another shape, or whole numbers.
    """
    features = given.detach().cpu() if isinstance(given, torch.Tensor) else torch.from_numpy(np.array(given))
    if features.ndim != 2 or not features.shape[1]:
        shape = tuple(features.shape)
        raise ValueError(f"images: must be features (N, D), or images of four dimensions, got {shape}")
    if not features.is_floating_point():
        raise ValueError(f"images: features must be floating numbers, got {features.dtype}")
    if not len(features):
        raise UserError("images: there are none")
    if not features.isfinite().all():
        raise UserError("images: features are not finite (NaN or infinite)")
    return FeatureArray(features.float(), [str(number) for number in range(len(features))])


def named_images(
    places: Sequence[str | Path],
    reading: ReadingSettings,
    root: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> Images:
    """The image files of folders and lists, which are not opened; or the features in a file of a feature bank.

    Args:
        places: folders (all image files below them, in sorted order), .txt lists (labels are ignored) or image files;
            or one file of a feature bank.
        reading: the rules by which files become pixels.
        root: folder that the paths of lists are relative to. None: the folder of each list.
        log: gets a line about what is passed over in a folder.

    Returns:
        The images. The `ids` are paths from the current folder: they begin with the place, or with the root, as it is
        given. An image that is named twice has its first place.

    Raises:
        UserError: a place does not exist, is of another kind or holds no images, a listed image is missing, or a path
            is not UTF-8.
    """
    paths: dict[str, None] = {}
    if banks := [place for place in places if Path(place).suffix in ENDINGS]:
        if len(places) > 1:
            raise UserError(f"images: {banks[0]} is a file of a feature bank; give it alone")
        return read_domain(Path(os.path.expanduser(banks[0]))).array()
    if root is not None and not root.is_dir():
        raise UserError(f"`root`: no such folder: {root}")
    for place in places:
        path = Path(os.path.expanduser(place))
        _check_text(path)
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            paths[str(path)] = None
            continue
        listing = _listing(path, root)
        for line in listing.notes if log else ():
            log(line)
        start = "" if listing.root == Path() else listing.root
        paths.update(dict.fromkeys(os.path.join(start, name) for name in listing.paths))
    if not paths:
        raise UserError("images: there are none; name a folder, a .txt list or an image file")
    return ImageFiles(Path(), list(paths), reading=reading)


def _check_no_bank(folder: Path) -> None:
    """Raise UserError for a folder that holds files of a feature bank and no image."""
    with suppress(OSError):  # listing the folder's images will tell
        files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and not path.name.startswith("."))
        if files and not look_below(folder).images:
            raise UserError(f"images: {folder} is a feature bank; give one of its files, such as {files[0]}")


def _listing(path: Path, root: Path | None) -> Listing:
    if path.is_dir():
        _check_no_bank(path)
        return list_unlabelled(path)
    if not path.is_file():
        raise UserError(f"images: no such file or folder: {path}")
    if path.suffix.lower() != ".txt":
        raise UserError(
            f"images: {path} is neither an image nor a list; a list ends in .txt, images in "
            f"{', '.join(sorted(SUFFIXES))}, a feature bank in {', '.join(ENDINGS)}"
        )
    try:
        return list_file(path, root, labels=False)
    except UserError as error:
        raise UserError(str(error).replace("data.root", "`root`")) from None


def _check_text(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"images: a path is not UTF-8, rename it: {printable(repr(os.fsencode(path)))}") from None


def _files(path: Path, reading: ReadingSettings) -> ImageFiles:
    if not path.exists():
        raise UserError(f"images: no such file or folder: {path}")
    if path.is_dir():
        _check_no_bank(path)
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
