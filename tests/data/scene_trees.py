"""Small scenes: images whose red channel tells the class of each pixel, with their label maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

#: Red of class k is 20 + 40 k. Void is red too, 220.
RED = 20 + 40 * np.arange(5)


def scene(
    seed: int, size: tuple[int, int] = (24, 32), classes: Sequence[int] = (0, 1, 2)
) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, 3), and its map of train ids, uint8 (H, W): blocks of 4 pixels, each of one class."""
    random = np.random.default_rng(seed)
    height, width = size
    blocks = random.choice(classes, (-(-height // 4), -(-width // 4)))
    blocks.flat[: len(classes)] = classes  # every class occurs
    numbers = blocks.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8)
    other = random.integers(0, 256, (height, width, 2), dtype=np.uint8)
    red = np.where(numbers == 255, 220, RED[np.minimum(numbers, 4)]).astype(np.uint8)
    return np.dstack([red, other]), numbers


def write_scene(
    image: Path, label_map: Path | None, seed: int, values: Mapping[int, int] | None = None, **options: object
) -> None:
    """Write a scene. `values`: what stands in the map's file for each train id."""
    pixels, numbers = scene(seed, **options)
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    if label_map is not None:
        label_map.parent.mkdir(parents=True, exist_ok=True)
        written = numbers if values is None else np.vectorize(values.__getitem__)(numbers).astype(np.uint8)
        Image.fromarray(written).save(label_map)


def make_scenes(root: Path, count: int = 4, first: int = 0, maps: bool = True, **options: object) -> Path:
    """root/images/<n>.png and root/labels/<n>.png; gives back `root`."""
    for number in range(first, first + count):
        label_map = root / "labels" / f"{number:03d}.png" if maps else None
        write_scene(root / "images" / f"{number:03d}.png", label_map, number, **options)
    return root


def make_cityscapes(root: Path, count: int = 4) -> Path:
    """Cityscapes' layout below `root`, with two towns and images of road, sidewalk and building; gives its folder."""
    values = {0: 7, 1: 8, 2: 11}
    for part, first in (("train", 0), ("val", 100)):
        for number in range(first, first + count):
            town = ("aachen", "bonn")[number % 2]
            name = f"{town}/{town}_{number:06d}"
            write_scene(
                root / "cityscapes" / "leftImg8bit" / part / f"{name}_leftImg8bit.png",
                root / "cityscapes" / "gtFine" / part / f"{name}_gtFine_labelIds.png",
                number,
                values,
            )
            colour = root / "cityscapes" / "gtFine" / part / f"{name}_gtFine_color.png"
            colour.write_bytes(b"not looked at")
    return root / "cityscapes"
