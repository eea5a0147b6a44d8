"""Transforms from decoded images to the network's input. They are random in training and fixed in predicting."""

import math
import random as global_random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from random import Random

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as image_functions

from uda.core.errors import UserError
from uda.data import last_changes
from uda.data.decoding import resized
from uda.data.images import Images
from uda.data.settings import AugmentSettings, TransformSettings

_LUMA = (0.299, 0.587, 0.114)


class Normalising:
    """Normalises pixels on any device, and gives images the number of channels that the network wants."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.channels = len(mean)
        self.normalisation = (tuple(mean), tuple(std))
        # (x / 255 - mean) / std as one multiplication and one addition, for speed.
        divisor = torch.tensor(std)
        self._factor = 1 / (255 * divisor)
        self._offset = -torch.tensor(mean) / divisor
        self._on_devices: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getstate__(self) -> dict:
        # A loader process that is not forked gets a pickled copy. MPS tensors cannot be pickled, and CUDA tensors would
        # start CUDA there.
        return {**self.__dict__, "_on_devices": {}}

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or float in 0..255, (B, C, H, W) -> float32, normalised. Channels-last order is kept."""
        on_cpu = pixels.device.type == "cpu"
        if on_cpu and self.channels > 1 and pixels.is_contiguous(memory_format=torch.channels_last):
            # Over rows of width * channels numbers, because a loop over three channels costs more to start than to run.
            # Image by image, so that the second pass finds the results of the first in the processor's cache.
            width = pixels.shape[-1]
            rows = pixels.permute(0, 2, 3, 1).flatten(2)
            factor, offset = self._factor.repeat(width), self._offset.repeat(width)
            values = torch.empty(rows.shape)
            for image, raw in zip(values.unbind(), rows.unbind(), strict=True):
                torch.addcmul(offset, image.copy_(raw), factor, out=image)
            return values.unflatten(2, (width, self.channels)).permute(0, 3, 1, 2)
        if pixels.device not in self._on_devices:
            columns = (values.view(-1, 1, 1).to(pixels.device) for values in (self._factor, self._offset))
            self._on_devices[pixels.device] = tuple(columns)
        factor, offset = self._on_devices[pixels.device]
        return torch.addcmul(offset, pixels.to(torch.float32), factor)

    def _with_channels(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the channel of a grey image for a colour network. Turn a colour image grey for a grey network."""
        if images.shape[-3] == self.channels:
            return images
        if images.shape[-3] == 1:
            return images.expand(*images.shape[:-3], self.channels, *images.shape[-2:])
        if images.shape[-3] == 3 and self.channels == 1:
            return image_functions.rgb_to_grayscale(images)
        raise UserError(
            f"images have {images.shape[-3]} channels, but transforms.mean has {self.channels} values; give one mean "
            "for each channel"
        )


class Transform(Normalising, ABC):
    """Images to a batch, (B) uint8 (C, H, W) -> float32 (B, channels, size, size), normalised.

    All randomness comes from `seeds`, one seed for each image. So the result for an image is the same in any batch and
    on any worker. A call is `normalise(pixels(images, seeds))`. Loader processes return `pixels`, which are a quarter
    of the bytes, and the device normalises them. Colour images are returned in channels-last order. Decoders use this
    order and convolutions are fast on it.
    """

    cuts: bool = False
    """Whether it first cuts a part out of each image. `Images.open` then need not read the rest."""
    draws: bool = True
    """Whether the result depends on the seeds. Else they need not be made."""
    leaves_last_changes: bool = False
    """Whether `pixels` can leave out each image's last changes, so that `last_changes.made` makes them later."""

    in_place: bool = False
    """Whether `read` of a batch's parts writes to the batch's `memory`. They then need not be joined afterwards."""

    def __init__(self, settings: TransformSettings):
        super().__init__(settings.mean, settings.std)
        self.size = settings.size

    def __call__(self, images: Iterable[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        return self.normalise(self.pixels(images, seeds))

    def read(
        self,
        images: Images,
        indices: np.ndarray,
        seeds: Sequence[int],
        memory: torch.Tensor | None = None,
        changes: list[last_changes.LastChanges] | None = None,
    ) -> torch.Tensor:
        """`pixels` of images by number. Those of an array are read at once, all others one by one."""
        found = images.together(indices)
        if found is None:
            found = map(images.open if self.cuts else images.read, indices.tolist())
        if changes is None:
            return self.pixels(found, seeds, memory)
        return self.pixels(found, seeds, memory, changes)

    def memory(self, count: int) -> torch.Tensor:
        """Memory for a batch of `count` images. Only transforms that work `in_place` have it."""
        raise NotImplementedError

    @abstractmethod
    def pixels(
        self,
        images: Iterable[torch.Tensor],
        seeds: Sequence[int],
        memory: torch.Tensor | None = None,
        changes: list[last_changes.LastChanges] | None = None,
    ) -> torch.Tensor:
        """All steps except normalisation: uint8 or float32 in 0..255, (B, channels, size, size).

        `images` may be one tensor (B, C, H, W). If the transform allows it, images are read and changed one by one,
        while they are in the processor's cache. They are then written to `memory`, uint8 (B, channels, size, size), if
        it is given, and `memory` is returned. If `changes` is given, a transform that `leaves_last_changes` appends the
        last changes of each image to it and does not make them.
        """

    def _one_by_one(self, changed: Iterable[torch.Tensor], count: int, memory: torch.Tensor | None) -> torch.Tensor:
        """Images (channels, size, size) -> a channels-last batch, uint8 (B, channels, size, size)."""
        if memory is None:
            memory = torch.empty(count, self.size, self.size, self.channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for row, image in zip(memory.unbind(), changed, strict=True):
            row.copy_(image)
        return memory


class _CropTrain(Transform):
    """Crop, flip and colour jitter of each image, with the distributions of torchvision's transforms."""

    def __init__(self, settings: TransformSettings, augment: AugmentSettings):
        super().__init__(settings)
        self.augment = augment
        self.resize, self.squash = settings.resize, settings.squash
        self.cuts = augment.crop == "resized"
        if not self.cuts:
            _check_resize(settings)
        self._policy = None
        if isinstance(augment.rand_augment, str):
            if self.channels != 3:
                raise UserError(
                    f"transforms: rand_augment: '{augment.rand_augment}' is for colour images; give a number"
                )
            from timm.data.auto_augment import rand_augment_transform  # takes half a second to import

            # Empty corners get the mean colour, as in tllib.
            colour = tuple(min(255, round(255 * mean)) for mean in settings.mean)
            looks = {"img_mean": colour, "interpolation": Image.Resampling.BILINEAR}
            self._policy = rand_augment_transform(augment.rand_augment, looks)

    def pixels(
        self,
        images: Iterable[torch.Tensor],
        seeds: Sequence[int],
        memory: torch.Tensor | None = None,
        changes: list[last_changes.LastChanges] | None = None,
    ) -> torch.Tensor:
        changed = (self._change(image, int(seed), changes) for image, seed in zip(images, seeds, strict=True))
        return self._one_by_one(changed, len(seeds), memory)

    @property
    def leaves_last_changes(self) -> bool:
        augment = self.augment
        return (augment.flip or augment.jitter > 0) and not augment.rand_augment  # which comes after them

    def _change(self, image: torch.Tensor, seed: int, changes: list[last_changes.LastChanges] | None) -> torch.Tensor:
        augment = self.augment
        random = Random(seed)  # the fastest generator to seed
        image = self._resized_crop(image, random) if self.cuts else self._crop(image, random)
        last = last_changes.draw(random, augment.flip, augment.jitter, self.channels)
        if changes is None:
            image = last_changes.made_on_one(image, last)
        else:
            changes.append(last)
        if self._policy is not None:
            return self._policy_augment(image, random)
        return self._rand_augment(image, seed) if augment.rand_augment else image

    def _resized_crop(self, image: torch.Tensor, random: Random) -> torch.Tensor:
        """A random part of the image, resized to the network's size. It is cut before it is resized.

        With `squash`, the box is drawn on the square and mapped to the nearest pixels of the image.
        """
        height, width = image.shape[-2:]
        frame = (self.resize, self.resize) if self.squash else (height, width)
        top, left, rows, columns = random_box(*frame, self.augment, random)
        if self.squash:
            top, rows = _scaled(top, rows, height / self.resize, height)
            left, columns = _scaled(left, columns, width / self.resize, width)
        part = self._with_channels(image[:, top : top + rows, left : left + columns])
        return resized(part, self.size, self.size)

    def _crop(self, image: torch.Tensor, random: Random) -> torch.Tensor:
        """A part of the network's size, after the image is resized as for predicting."""
        image = resized_whole(self._with_channels(image), self.resize, self.squash)
        if self.augment.crop == "centre":
            return image_functions.center_crop(image, [self.size, self.size])
        top, left = (random.randrange(side - self.size + 1) for side in image.shape[-2:])
        return image[:, top : top + self.size, left : left + self.size]

    def _rand_augment(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):  # RandAugment draws from the global generator
            torch.default_generator.manual_seed(seed)
            return RandAugment(num_ops=2, magnitude=self.augment.rand_augment)(image)

    def _policy_augment(self, image: torch.Tensor, random: Random) -> torch.Tensor:
        """timm's policy. It draws from Python's and NumPy's global generators, so these get the image's own state."""
        kept = global_random.getstate(), np.random.get_state()  # noqa: NPY002 (what timm draws from)
        try:
            np.random.seed(random.getrandbits(32))  # noqa: NPY002
            global_random.setstate(random.getstate())
            changed = self._policy(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        finally:
            global_random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def random_box(height: int, width: int, augment: AugmentSettings, random: Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, distributed as in torchvision's RandomResizedCrop.

    Its area, as a share of the image's, is uniform in `augment.scale`. The logarithm of its aspect is uniform between
    those of `augment.ratio`. Its place is uniform among all places that fit. After ten boxes that do not fit, it is the
    largest box of an allowed aspect in the middle.
    """
    low, high = map(math.log, augment.ratio)
    for _ in range(10):
        area = height * width * random.uniform(*augment.scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randrange(height - h + 1), random.randrange(width - w + 1), h, w
    aspect = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def _scaled(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """A box's start and length on one axis after scaling, in whole pixels below `limit`. The length is at least 1."""
    first = min(round(start * scale), limit - 1)
    return first, max(1, round((start + length) * scale) - first)


def _check_resize(settings: TransformSettings) -> None:
    if settings.resize < settings.size:
        raise UserError(
            f"transforms.resize: {settings.resize} is smaller than transforms.size, {settings.size}, so "
            "the centre crop would have black borders; make it at least as large"
        )


class _CropPredict(Transform):
    """Resizes and then crops the centre."""

    def __init__(self, settings: TransformSettings):
        super().__init__(settings)
        _check_resize(settings)
        self.resize, self.squash = settings.resize, settings.squash

    def pixels(
        self, images: Iterable[torch.Tensor], seeds: Sequence[int], memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._one_by_one(map(self._change, images), len(seeds), memory)

    def _change(self, image: torch.Tensor) -> torch.Tensor:
        image = resized_whole(self._with_channels(image), self.resize, self.squash)
        return image_functions.center_crop(image, [self.size, self.size])


def resized_whole(image: torch.Tensor, resize: int, squash: bool) -> torch.Tensor:
    """An image (C, H, W) resized to a shorter side of `resize` pixels, or to `resize` x `resize` with `squash`."""
    if squash:
        return resized(image, resize, resize)
    image = _middle(image)
    height, width = image.shape[-2:]
    shorter = min(height, width)
    return resized(image, int(resize * height / shorter), int(resize * width / shorter))


def _middle(image: torch.Tensor) -> torch.Tensor:
    """The middle of an image (C, H, W), at most 32 times as long as wide.

    The centre crop would remove the rest anyway. With the rest, an image of 10,000 x 1 would be enlarged to gigabytes.
    """
    longest = 32 * min(image.shape[-2:])
    for axis in (1, 2):
        beyond = max(0, image.shape[axis] - longest) // 2  # cut at each end, so that the centre stays the same
        image = image.narrow(axis, beyond, image.shape[axis] - 2 * beyond)
    return image


class _Whole(Transform):
    """Images that already have the network's size, a whole batch at a time."""

    def _stack(self, images: Iterable[torch.Tensor]) -> torch.Tensor:
        together = isinstance(images, torch.Tensor)
        images = images if together else list(images)
        for image in images[:1] if together else images:
            if image.shape[-2:] != (self.size, self.size):
                raise UserError(
                    f"transforms.kind 'affine' needs images of {self.size} x {self.size} pixels, but one has "
                    f"{image.shape[-2]} x {image.shape[-1]}; resize the images, or train with transforms.kind=crop"
                )
        return self._with_channels(images if together else torch.stack(images))

    def pixels(
        self, images: Iterable[torch.Tensor], seeds: Sequence[int], memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._stack(images)


class _AffineTrain(_Whole):
    """A random affine map, jitter and noise for each image. A few operations change all images of a batch."""

    def __init__(self, settings: TransformSettings, augment: AugmentSettings):
        super().__init__(settings)
        self.augment = augment

    def pixels(
        self, images: Iterable[torch.Tensor], seeds: Sequence[int], memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        augment = self.augment
        stacked = self._stack(images).to(torch.float32)
        # For speed, one call of the generator for each image. The normal distribution function makes the first nine
        # draws uniform. The rest are the noise.
        draws = torch.empty(len(stacked), 9 + (stacked[0].numel() if augment.noise else 0))
        generator = torch.Generator()
        for row, seed in zip(draws.unbind(0), seeds, strict=True):
            row.normal_(generator=generator.manual_seed(int(seed)))
        uniform = torch.special.ndtr(draws[:, :9])
        changed = warp(stacked, inverse_maps(uniform[:, :6], augment, self.size), self.size)
        if augment.jitter:
            changed = _jitter(changed, 1 + augment.jitter * (2 * uniform[:, 6:] - 1))
        if augment.noise:
            changed = changed.add_(draws[:, 9:].view(stacked.shape), alpha=255 * augment.noise)
        if augment.jitter or augment.noise:
            changed = changed.clamp_(0, 255)
        return changed


def warp(images: torch.Tensor, maps: torch.Tensor, size: int) -> torch.Tensor:
    """Images (B, C, H, W) warped by affine maps (B, 2, 3), float32 (B, C, size, size). Pixels from outside are zero.

    The maps lead from the new image's coordinates to the old image's. Both are -1..1 from edge to edge.
    """
    # One plain matrix product: affine_grid's batched product takes several times as long as the sampling.
    grid = (maps.reshape(-1, 3) @ _pixel_centres(size)).view(len(maps), 2, size, size)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


@cache
def _pixel_centres(size: int) -> torch.Tensor:
    """Coordinates of the pixel centres, (3, size * size): x, y and 1. The pixels are in row order."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1)


def inverse_maps(uniform: torch.Tensor, augment: AugmentSettings, size: int) -> torch.Tensor:
    """Maps for `warp`, (B, 2, 3), from a changed image's coordinates (-1..1) to the original's.

    The image is mirrored, sheared along x, turned, zoomed and then shifted. The inverse is
    `M S^-1 R^-1 (x - t) / zoom`.

    Args:
        uniform: (B, 6) draws in 0..1 for mirror, shear, angle, zoom, shift along x, shift along y.
        augment: the ranges.
        size: side of the image in pixels.
    """
    signed = 2 * uniform - 1
    mirror = torch.where(uniform[:, 0] < 0.5, -1.0, 1.0) if augment.flip else torch.ones(len(uniform))
    shear = torch.tan(torch.deg2rad(signed[:, 1] * augment.shear))
    angle = torch.deg2rad(signed[:, 2] * augment.degrees)
    low, high = augment.scale
    zoom = low + (high - low) * uniform[:, 3]
    shift = signed[:, 4:6] * 2 * augment.translate  # the image is 2 wide in these coordinates
    if augment.whole_pixels:
        shift = (shift * size / 2).round() * 2 / size
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    linear = torch.stack(
        [torch.stack([mirror * (cos + shear * sin), mirror * (sin - shear * cos)], 1), torch.stack([-sin, cos], 1)], 1
    )
    return torch.cat([linear, -linear @ shift[:, :, None]], 2)


def _jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in 0..255 with brightness, contrast and (in colour) saturation changed by factors (B, 3)."""
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    if images.shape[1] == 3:
        grey = (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        images = (images - grey) * saturation + grey
    return images


def make_train(settings: TransformSettings, augment: AugmentSettings) -> Transform:
    """The training transform of one domain. Raises UserError for settings that its kind does not have."""
    low, high = augment.scale
    if not 0 < low <= high or (settings.kind == "crop" and high > 1):
        limit = ", at most 1" if settings.kind == "crop" else ""
        raise UserError(f"transforms: scale {list(augment.scale)}: give two positive numbers in rising order{limit}")
    if settings.kind == "affine":
        crops = {"rand_augment": augment.rand_augment, "crop": augment.crop != "resized"}
        if idle := [key for key, given in crops.items() if given]:
            raise UserError(f"transforms: {', '.join(idle)}: only for transforms.kind=crop, but the kind is 'affine'")
        return _AffineTrain(settings, augment)
    if not 0 < augment.ratio[0] <= augment.ratio[1]:
        raise UserError(f"transforms: ratio {list(augment.ratio)}: give two positive numbers in rising order")
    idle = [key for key in ("degrees", "shear", "translate", "whole_pixels", "noise") if getattr(augment, key)]
    if idle:
        raise UserError(f"transforms: {', '.join(idle)}: only for transforms.kind=affine, but the kind is 'crop'")
    plain = AugmentSettings()
    if augment.crop != "resized" and (augment.scale, augment.ratio) != (plain.scale, plain.ratio):
        raise UserError(
            f"transforms: scale, ratio: only for crop 'resized', but the crop is '{augment.crop}'; remove them"
        )
    return _CropTrain(settings, augment)


def make_predict(settings: TransformSettings) -> Transform:
    """The transform for predicting. Nothing is random and `seeds` are ignored.

    Raises UserError for settings that its kind does not have.
    """
    if settings.kind == "affine" and settings.squash:
        raise UserError("transforms.squash: only transforms.kind=crop resizes, but the kind is 'affine'")
    return _Whole(settings) if settings.kind == "affine" else _CropPredict(settings)
