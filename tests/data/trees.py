"""Small data sets in the layouts of the real ones, made of drawn shapes that a network can tell apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uda.data.cards import CARDS


def write_image(path: Path, label: int, random: np.random.Generator, size: tuple[int, int] = (40, 32)) -> None:
    """One image: its class decides colour and stripes, the rest is random. `size` is width and height."""
    width, height = size
    colour = np.array([(label * 67) % 256, (label * 131 + 80) % 256, (label * 29 + 160) % 256])
    stripes = (np.arange(width) // (2 + label % 5) % 2).astype(float)
    pixels = colour * (0.5 + 0.5 * stripes[None, :, None]) * random.uniform(0.7, 1) + random.normal(
        0, 12, (height, width, 3)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def make_folders(root: Path, classes: Sequence[str], per_class: int = 2, suffix: str = ".jpg", seed: int = 0) -> Path:
    """root/<class>/<class>_<n>.jpg; gives back `root`."""
    random = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        for i in range(per_class):
            write_image(root / name / f"{name}_{i}{suffix}", label, random)
    return root


def make_visda(root: str | Path, per_class: int = 3, lists: bool = True, seed: int = 0) -> Path:
    """VisDA-2017's layout below `root`; gives back its folder, `root/visda2017`.

    train/<class>/*.png and validation/<class>/*.jpg, each with its image_list.txt unless `lists` is False.
    """
    folder = Path(root) / "visda2017"
    card = CARDS["visda2017"]
    random = np.random.default_rng(seed)
    for domain, name in (("train", "{}/src_1_{:05d}.png"), ("validation", "{}/truck_{:05d}.jpg")):
        lines = []
        for label, cls in enumerate(card.classes):
            for i in range(per_class):
                path = name.format(cls, label * per_class + i)
                write_image(folder / domain / path, label, random)
                lines.append(f"{path} {label}\n")
        if lists:
            (folder / domain / "image_list.txt").write_text("".join(lines))
    return folder
