"""Training batches from JPEG files against torchvision's ImageFolder with PIL transforms, both with two workers.

The files are drawn here: 500 x 375 pixels, smooth random fields of colour at three scales and a little noise, saved at
quality 90, which makes them about 60 KB each, like photos of that size. There are 64 pictures, each under many names.
A batch holds 32 images of 224 pixels: a random resized crop, mirrored in half of all cases, normalised.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from uda.benchmarks.contest import BENCHMARKS, Contest
from uda.config import AugmentSettings, TransformSettings


@BENCHMARKS.register("files_first_epoch")
def first_epoch(scale: float) -> Contest:
    """An image's share of the first epoch over JPEG files, which fills the decoded store, against ImageFolder."""
    return _from_files(scale, filled=False, load_size=None, bar=2.0)


@BENCHMARKS.register("files_from_store")
def from_store(scale: float) -> Contest:
    """An image's share of a later epoch, from the decoded store, against ImageFolder on the files."""
    return _from_files(scale, filled=True, load_size=None, bar=8.0)


@BENCHMARKS.register("files_from_store_256")
def from_small_store(scale: float) -> Contest:
    """The same with data.load_size=256."""
    return _from_files(scale, filled=True, load_size=256, bar=None)


WORKERS = 2
BATCH_SIZE = 32
CLASSES = 4
SETTINGS = TransformSettings()
AUGMENT = AugmentSettings(scale=(0.08, 1), flip=True)


def _from_files(scale: float, filled: bool, load_size: int | None, bar: float | None) -> Contest:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from uda.data.images import ImageFiles
    from uda.data.loaders import Part, training_batches
    from uda.data.store import open_stores, take_inventory
    from uda.data.transforms import make_train

    folder = tempfile.TemporaryDirectory(prefix="uda-bench-")
    atexit.register(folder.cleanup)
    root, store_folder = Path(folder.name, "images"), Path(folder.name, "store")
    paths = _write_photos(root, max(2 * BATCH_SIZE, round(2048 * scale)))
    labels = np.arange(len(paths)) % CLASSES
    transform = make_train(SETTINGS, AUGMENT)

    def epoch() -> None:
        (store,) = open_stores([take_inventory(root, paths, load_size)], store_folder, 64.0, lambda line: None)
        images = ImageFiles(root, paths, load_size=load_size, store=store)
        part = Part(images, np.arange(len(paths)), labels, transform, domain=0, is_target=False)
        settings = {"num_classes": CLASSES, "batch_size": BATCH_SIZE, "steps": None, "workers": WORKERS}
        for batch in training_batches([part], seed=(0,), **settings):
            assert batch.images.shape[1:] == (3, SETTINGS.size, SETTINGS.size)

    def epoch_without_a_store() -> None:
        shutil.rmtree(store_folder, ignore_errors=True)
        epoch()

    steps = [
        transforms.RandomResizedCrop(SETTINGS.size, AUGMENT.scale, AUGMENT.ratio),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(SETTINGS.mean, SETTINGS.std),
    ]
    listed = ImageFolder(str(root), transforms.Compose(steps))

    def floor() -> None:
        for images, _ in DataLoader(listed, batch_size=BATCH_SIZE, shuffle=True, num_workers=WORKERS):
            assert images.shape[1:] == (3, SETTINGS.size, SETTINGS.size)

    if filled:
        epoch()
    ours: Callable[[], None] = epoch if filled else epoch_without_a_store
    return Contest(ours, floor, per_call=len(paths), bar=bar)


def _write_photos(root: Path, count: int) -> list[str]:
    """Relative paths of `count` files in class folders below `root`."""
    generator = torch.Generator().manual_seed(0)
    pictures = [_photo(generator) for _ in range(min(64, count))]
    paths = [f"class_{i % CLASSES}/{i:05d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if i < len(pictures):
            Image.fromarray(pictures[i]).save(root / path, quality=90)
        else:
            shutil.copyfile(root / paths[i % len(pictures)], root / path)
    return paths


def _photo(generator: torch.Generator) -> np.ndarray:
    """A picture (375, 500, 3) uint8."""
    size = (375, 500)
    picture = torch.full((1, 3, *size), 120.0)
    for cells, contrast in ((4, 70), (16, 35), (64, 18)):
        field = torch.randn(1, 3, cells * 3 // 4, cells, generator=generator)
        picture += contrast * F.interpolate(field, size=size, mode="bicubic")
    picture += 5 * torch.randn(1, 1, *size, generator=generator)
    return picture.clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
