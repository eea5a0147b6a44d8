"""The last changes of a training image: mirroring, then brightness, contrast and saturation in a random order.

The loader process draws them. It also makes them, or the training device makes them later for a whole batch. With
jitter, the second way halves the work of a loader process. One value in a thousand differs between the two ways, by
one or a few grey levels, because sums are rounded down and later changes enlarge the difference.
"""

from random import Random

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functions

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
_ADJUST = (image_functions.adjust_brightness, image_functions.adjust_contrast, image_functions.adjust_saturation)
#: Weights of red, green and blue in torchvision's grey.
_LUMA = (0.2989, 0.587, 0.114)

#: Whether the image is mirrored (0 or 1), then three pairs of a kind of adjustment and its factor.
LastChanges = list[float]

NONE: LastChanges = [0.0, *(_BRIGHTNESS, 1.0) * 3]


def draw(random: Random, flip: bool, jitter: float, channels: int) -> LastChanges:
    """Draw an image's changes. It is mirrored with probability 0.5. Factors are uniform in 1 - jitter to 1 + jitter."""
    changes = list(NONE)
    if flip and random.random() < 0.5:
        changes[0] = 1.0
    if jitter:
        kinds = [_BRIGHTNESS, _CONTRAST, *[_SATURATION] * (channels == 3)]
        random.shuffle(kinds)
        for place, kind in enumerate(kinds):
            changes[1 + 2 * place : 3 + 2 * place] = kind, random.uniform(1 - jitter, 1 + jitter)
    return changes


def made_on_one(image: Tensor, changes: LastChanges) -> Tensor:
    """An image, uint8 (C, H, W), with its changes made."""
    if changes[0]:
        image = image.flip(-1)
    for kind, factor in zip(changes[1::2], changes[2::2], strict=True):
        if factor != 1:
            image = _ADJUST[int(kind)](image, factor)
    return image


def table(changes: list[LastChanges]) -> Tensor:
    """The changes of a batch's images, float32 (B, 7). (B, 1) if no image is adjusted. (0,) for an empty list."""
    rows = torch.tensor(changes)
    return rows if not len(rows) or bool((rows[:, 2::2] != 1).any()) else rows[:, :1].contiguous()


def made(images: Tensor, changes: Tensor) -> Tensor:
    """A batch, uint8 (B, C, H, W) with C of 1 or 3, with the changes of its `table` made. uint8 or float32."""
    images = torch.where(_each(changes[:, 0]) > 0, images.flip(-1), images)
    for kind, factor in zip(changes[:, 1::2].unbind(1), changes[:, 2::2].unbind(1), strict=True):
        kind, factor = _each(kind), _each(factor)
        grey = _grey(images)
        towards = torch.where(kind == _CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey)
        towards = torch.where(kind == _BRIGHTNESS, 0.0, towards)
        images = (images * factor + towards * (1 - factor)).clamp_(0, 255).floor_()
    return images


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.to(torch.float32)
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, images.split(1, 1), strict=True))
    return (red + green + blue).floor()


def _each(numbers: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return numbers.view(-1, 1, 1, 1)
