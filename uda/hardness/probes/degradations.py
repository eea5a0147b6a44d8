"""Image degradations by levels of contrast, blur and noise.

Source: Angular Visual Hardness (Chen et al., ICML 2020), which uses image degradation as a measure of hardness for
people.

A degradation is applied after resize and crop and before normalisation. The result is clipped to 0..1. Level 0 is the
image itself. At level 1 almost nothing of the image is visible. Equal steps of the level look equally large. They are
not equal steps of the physical quantity:

    contrast  differences to the mean grey times 0.01 ^ level: 1, .40, .16, .063, .025, .01 at six levels
    blur      Gaussian, sigma = level^1.5 / 8 of the image's side: 0, .011, .032, .058, .089, .125 of the side
    noise     Gaussian, standard deviation = level^2 in units of the 0..1 image: 0, .04, .16, .36, .64, 1
"""

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functions

from uda.core.registry import Registry

Degradation = Callable[[Tensor, float, Sequence[int]], Tensor]
#: Functions of images (B, C, S, S) in 0..1, a level in 0..1 and one seed per image. Level 0 changes nothing.
DEGRADATIONS: Registry[Degradation] = Registry("degradation")


@DEGRADATIONS.register("contrast")
def contrast(images: Tensor, level: float, seeds: Sequence[int]) -> Tensor:
    """Contrast lowered to 0.01 ^ level around the image's mean grey."""
    return image_functions.adjust_contrast(images, 0.01**level)


@DEGRADATIONS.register("blur")
def blur(images: Tensor, level: float, seeds: Sequence[int]) -> Tensor:
    """Gaussian blur of sigma = level^1.5 / 8 of the image's side."""
    sigma = level**1.5 / 8 * images.shape[-1]
    if sigma == 0:
        return images
    width = 2 * math.ceil(3 * sigma) + 1
    # First along rows, then along columns: the result is the same, and a wide blur costs a hundredth.
    for kernel in ([width, 1], [1, width]):
        images = image_functions.gaussian_blur(images, kernel, [sigma, sigma])
    return images


@DEGRADATIONS.register("noise")
def noise(images: Tensor, level: float, seeds: Sequence[int]) -> Tensor:
    """Gaussian noise of standard deviation level^2, drawn for every pixel of the network's input.

    Each image has one noise pattern, which grows with the level. A network with a larger input can average out more
    of the noise.
    """
    generator = torch.Generator()
    pattern = [torch.randn(images.shape[1:], generator=generator.manual_seed(seed)) for seed in seeds]
    return images + level**2 * torch.stack(pattern).to(images)


def degraded(images: Tensor, kind: str, level: float, seeds: Sequence[int]) -> Tensor:
    """Degrade images (B, C, S, S) in 0..1. The result has the same shape and range.

    Args:
        images: the images; they are not changed.
        kind: one of DEGRADATIONS.
        level: 0..1.
        seeds: one seed per image.
    """
    return DEGRADATIONS[kind](images, level, seeds).clamp(0, 1)


def seed_of(name: str, seed: int) -> int:
    """An image's seed. It depends only on the image's name and `seed`, not on other images."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
