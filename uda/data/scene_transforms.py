"""Transforms of scenes. One seed decides scale, crop and mirror of an image and its label map alike."""

import math
from random import Random

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as image_functions

from uda.data import last_changes
from uda.data.images import StoredImage
from uda.data.label_coding import VOID
from uda.data.scene_settings import SceneAugmentSettings, SceneTransformSettings
from uda.data.transforms import Normalising

#: Range of the standard deviation of a blur, in pixels, and the side of its kernel.
_SIGMA, _KERNEL = (0.15, 1.15), 7


class SceneTrain(Normalising):
    """A random part of a scene, zoomed, mirrored and changed in colour.

    A scene is resized, zoomed by a random factor, cropped at a random place, and mirrored. The image is resized
    bilinearly with antialiasing, its label map by the nearest value. If the scene is smaller than the crop, the rest of
    the image has the mean colour, and the rest of the map is void. Jitter and blur change the image only. The label map
    may have another size than the image: it is then stretched over it.

    Args:
        settings: size of the crop, and the normalisation.
        augment: the random changes.
    """

    in_place = leaves_last_changes = False

    def __init__(self, settings: SceneTransformSettings, augment: SceneAugmentSettings):
        super().__init__(settings.mean, settings.std)
        self.crop = settings.crop
        self.resize = augment.resize or settings.resize
        self.augment = augment
        self._fill = torch.tensor([min(255, round(255 * mean)) for mean in settings.mean], dtype=torch.uint8)

    def __call__(
        self,
        image: torch.Tensor | StoredImage,
        label_map: torch.Tensor | None,
        seed: int,
        centre: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A scene -> image uint8 (C, h, w) of the crop's size, and its map of train ids, uint8 (h, w).

        Args:
            image: uint8 (C, H, W).
            label_map: train ids, uint8 (H', W'). None: void everywhere.
            seed: decides everything random.
            centre: row and column in the label map around which the crop lies, as near as the scene's borders allow.
        """
        height, width = self.crop
        pixels = torch.empty(height, width, self.channels, dtype=torch.uint8).permute(2, 0, 1)
        labels = torch.empty(height, width, dtype=torch.uint8)
        self.into(pixels, labels, image, label_map, seed, centre)
        return pixels, labels

    def into(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        image: torch.Tensor | StoredImage,
        label_map: torch.Tensor | None,
        seed: int,
        centre: tuple[int, int] | None = None,
    ) -> None:
        """The same, written to `pixels` (C, h, w) and `labels` (h, w)."""
        random, augment = Random(seed), self.augment  # the fastest generator to seed
        factor = random.uniform(*augment.scale)
        frame = tuple(max(1, round(side * factor)) for side in self.resize or image.shape[1:])
        middle = None
        if centre is not None and label_map is not None:
            middle = tuple((at + 0.5) / side for at, side in zip(centre, label_map.shape, strict=True))
        inside, outside = zip(
            *(self._placed(axis, frame[axis], None if middle is None else middle[axis], random) for axis in (0, 1)),
            strict=True,
        )
        part = self._with_channels(_cut(image, frame, inside))
        changes = last_changes.draw(random, augment.flip, augment.jitter, self.channels)
        part = last_changes.made_on_one(part, changes)
        if augment.blur and random.random() < augment.blur:
            part = image_functions.gaussian_blur(part, [_KERNEL, _KERNEL], [random.uniform(*_SIGMA)] * 2)
        rows, columns = outside
        if part.shape[1:] != pixels.shape[1:]:
            pixels.copy_(self._fill.view(-1, 1, 1).expand_as(pixels))
            labels.fill_(VOID)
        pixels[:, rows, columns] = part
        if label_map is None:
            labels.fill_(VOID)
        else:
            numbers = _cut_nearest(label_map, frame, inside)
            labels[rows, columns] = numbers.flip(-1) if changes[0] else numbers

    def _placed(self, axis: int, length: int, middle: float | None, random: Random) -> tuple[slice, slice]:
        """Which part of an axis of `length` pixels is seen, and where in the crop it lies.

        `middle`: where the crop's middle should be, as a share of the axis.
        """
        size = self.crop[axis]
        if length <= size:
            start = random.randrange(size - length + 1)
            return slice(0, length), slice(start, start + length)
        start = random.randrange(length - size + 1)
        if middle is not None:
            start = min(max(round(middle * length - size / 2), 0), length - size)
        return slice(start, start + size), slice(0, size)


class ScenePredict(Normalising):
    """The whole image, resized to `resize` if that is set. Nothing is random."""

    def __init__(self, settings: SceneTransformSettings, resize: tuple[int, int] | None = None):
        super().__init__(settings.mean, settings.std)
        self.resize = resize or settings.resize

    def __call__(self, image: torch.Tensor | StoredImage) -> torch.Tensor:
        """uint8 (C, H, W) -> uint8 (channels, H, W), or of the size `resize`."""
        height, width = self.resize or image.shape[1:]
        return self._with_channels(_cut(image, (height, width), (slice(0, height), slice(0, width))))


def _cut(image: torch.Tensor | StoredImage, frame: tuple[int, int], part: tuple[slice, slice]) -> torch.Tensor:
    """A part of an image that is resized to `frame`, uint8 (C, h, w). Only the pixels that it is made of are read."""
    size = image.shape[1:]
    boxes, cuts = [], []
    for side, length, seen in zip(size, frame, part, strict=True):
        scale = side / length
        start, stop = seen.start * scale, seen.stop * scale
        margin = math.ceil(max(1.0, scale)) + 1  # what the filter reaches beyond the box
        cut = slice(max(0, math.floor(start) - margin), min(side, math.ceil(stop) + margin))
        boxes.append((start - cut.start, min(stop - cut.start, cut.stop - cut.start)))
        cuts.append(cut)
    (top, bottom), (left, right) = boxes
    pixels = image[:, cuts[0], cuts[1]]
    height, width = (seen.stop - seen.start for seen in part)
    if tuple(size) == tuple(frame):
        top, left = int(top), int(left)
        return pixels[:, top : top + height, left : left + width]
    return _resampled(pixels, (width, height), (left, top, right, bottom))


def _resampled(pixels: torch.Tensor, size: tuple[int, int], box: tuple[float, float, float, float]) -> torch.Tensor:
    """The pixels (C, H, W) in a box (left, top, right, bottom), bilinear and antialiased, uint8 (C, h, w).

    PIL, because a box need not lie on whole pixels: a part then is the same as that part of the whole image resized.
    `size` is width and height.
    """
    planes = [pixels.permute(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    images = (Image.fromarray(plane.contiguous().numpy()) for plane in planes)
    found = [np.array(image.resize(size, Image.Resampling.BILINEAR, box)) for image in images]
    return torch.from_numpy(found[0]).permute(2, 0, 1) if len(pixels) == 3 else torch.from_numpy(np.stack(found))


def _cut_nearest(numbers: torch.Tensor, frame: tuple[int, int], part: tuple[slice, slice]) -> torch.Tensor:
    """A part of a label map that is resized to `frame` by the nearest value, uint8 (h, w)."""
    if tuple(numbers.shape) == tuple(frame):
        return numbers[part]
    rows, columns = (
        np.minimum((np.arange(seen.start, seen.stop) * 2 + 1) * side // (2 * length), side - 1)
        for side, length, seen in zip(numbers.shape, frame, part, strict=True)
    )
    return torch.from_numpy(numbers.numpy()[rows][:, columns])  # NumPy takes a tenth of torch's time
