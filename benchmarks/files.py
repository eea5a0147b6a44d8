"""Training batches from JPEG files, against torchvision's ImageFolder with PIL transforms and the same workers.

This module makes the files: 500 x 375 pixels, smooth random colours at three scales with a little noise, at quality
90. They have about 60 KB each, like photos of this size. There are 64 pictures, each under many names. A batch has 32
images of 224 pixels: a random resized crop, mirrored with probability 1/2, normalised. Workers start once per call on
both sides. A call with a full store takes six epochs, so that reading dominates.

Every benchmark runs with one worker and with two. On a machine with two cores, two workers and the main process
compete. This slows the faster side more, because its main process does a larger part of the work.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.contest import BENCHMARKS, Contest
from uda.data.settings import AugmentSettings, ReadingSettings, TransformSettings
from uda.training.device import keep_memory


def _register(load_size: int | None, workers: int) -> None:
    """Register the benchmarks of a size and a number of workers."""
    who = f"{workers} loader process{'es' if workers > 1 else ''}"
    size = "" if load_size is None else f" with data.load_size={load_size}"
    ending = ("" if load_size is None else f"_{load_size}") + f"_{workers}w"

    def add(name: str, make: Callable[..., Contest], what: str) -> None:
        def contest(scale: float) -> Contest:
            return make(scale, load_size, workers)

        contest.__doc__ = f"Time per image of {what}{size}, against ImageFolder on the files, {who} on both sides."
        BENCHMARKS.register(f"{name}{ending}")(contest)

    add("files_first_epoch", _first_epoch, "the first epoch over JPEG files (which fills the decoded store)")
    add("files_from_store", _from_store, "later epochs, from the decoded store")
    if load_size is None:
        add("files_no_store", _no_store, "an epoch over JPEG files without a store")


BATCH_SIZE = 32
CLASSES = 4
SETTINGS = TransformSettings()
AUGMENT = AugmentSettings(scale=(0.08, 1), flip=True)


class _Photos:
    """JPEG files that exist until the process ends, and both ways to read them."""

    def __init__(self, scale: float, load_size: int | None, workers: int):
        torch.set_num_threads(1)  # on both sides, because the loaders use the other cores
        memory = Path("/dev/shm")  # if it exists, so that the speed of the disk does not matter
        folder = tempfile.TemporaryDirectory(prefix="uda-bench-", dir=memory if memory.is_dir() else None)
        atexit.register(folder.cleanup)
        self.root, self.store = Path(folder.name, "images"), Path(folder.name, "store")
        self.paths = _write_photos(self.root, max(2 * BATCH_SIZE, round(2048 * scale)))
        self.reading = ReadingSettings(load_size=load_size)
        self.workers = workers

    def ours(self, epochs: int, stored: bool = True) -> None:
        """Read images from the store, which is opened or made first; without `stored`, from the files."""
        from uda.data.images import ImageFiles
        from uda.data.loaders import Part, training_batches
        from uda.data.store import open_stores, take_inventory
        from uda.data.transforms import make_train

        keep_memory()  # as the tools do
        store = None
        if stored:
            inventory = take_inventory(self.root, self.paths, self.reading)
            (store,) = open_stores([inventory], self.store, 64.0, lambda line: None)
        images = ImageFiles(self.root, self.paths, reading=self.reading, store=store)
        numbers = np.arange(len(images))
        part = Part(images, numbers, numbers % CLASSES, make_train(SETTINGS, AUGMENT), domain=0, is_target=False)
        steps = epochs * -(-len(images) // BATCH_SIZE)
        batches = training_batches(
            [part], num_classes=CLASSES, batch_size=BATCH_SIZE, steps=steps, seed=(0,), workers=self.workers
        )
        self._look_at(batch.images for batch in batches)

    def floor(self, epochs: int) -> None:
        """Read images by torchvision's ImageFolder with PIL transforms, as in its examples."""
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        steps = [
            transforms.RandomResizedCrop(SETTINGS.size, AUGMENT.scale, AUGMENT.ratio),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(SETTINGS.mean, SETTINGS.std),
        ]
        images = ImageFolder(str(self.root), transforms.Compose(steps))
        loader = DataLoader(
            images, batch_size=BATCH_SIZE, shuffle=True, num_workers=self.workers, persistent_workers=epochs > 1
        )
        for _ in range(epochs):
            self._look_at(batch for batch, _ in loader)

    def _look_at(self, batches: Iterable[torch.Tensor]) -> None:
        for images in batches:
            assert images.dtype == torch.float32 and images.shape[1:] == (3, SETTINGS.size, SETTINGS.size)


def _no_store(scale: float, load_size: int | None, workers: int) -> Contest:
    photos = _Photos(scale, load_size, workers)
    count = len(photos.paths)
    return Contest(lambda: photos.ours(1, stored=False), lambda: photos.floor(1), per_call=count, bar=2.0)


def _first_epoch(scale: float, load_size: int | None, workers: int) -> Contest:
    photos = _Photos(scale, load_size, workers)

    return Contest(
        lambda: photos.ours(epochs=1),
        lambda: photos.floor(epochs=1),
        per_call=len(photos.paths),
        bar=2.0,
        before_ours=lambda: shutil.rmtree(photos.store, ignore_errors=True),
    )


def _from_store(scale: float, load_size: int | None, workers: int, epochs: int = 6) -> Contest:
    photos = _Photos(scale, load_size, workers)
    photos.ours(epochs=1)
    per_call = epochs * len(photos.paths)
    return Contest(lambda: photos.ours(epochs), lambda: photos.floor(epochs), per_call=per_call, bar=8.0)


def _write_photos(root: Path, count: int) -> list[str]:
    """Write `count` files into class folders below `root`. Returns their relative paths."""
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


for _load_size in (None, 256):
    for _workers in (1, 2):
        _register(_load_size, _workers)
