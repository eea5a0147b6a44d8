"""Handing images from a loader process to the network's input, without the cost of reading files.

The images are in memory and have the size of the network's input, 224 pixels. A batch has 32 images. Our images go
through the ring as uint8 and are normalised at the end, in this benchmark on the CPU.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.contest import BENCHMARKS, Contest
from uda.data.images import Images
from uda.data.settings import TransformSettings
from uda.training.device import keep_memory

BATCH_SIZE = 32
SETTINGS = TransformSettings(size=224, resize=224)


class _Ready(Images):
    """A few decoded images under many names."""

    def __init__(self, pictures: torch.Tensor, count: int):
        self.pictures = pictures
        self.ids = [str(i) for i in range(count)]

    def read(self, i: int) -> torch.Tensor:
        return self.pictures[i % len(self.pictures)]

    def take(self, indices: np.ndarray) -> "_Ready":
        return _Ready(self.pictures[indices % len(self.pictures)], len(indices))


class _Normalised(Dataset):
    """A simple dataset that returns float32 images, normalised in the loader."""

    def __init__(self, images: Images):
        self.images = images
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (SETTINGS.mean, SETTINGS.std))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.images.read(i).contiguous().float().div_(255).sub_(self.mean).div_(self.std)


def _contest(scale: float, floor: Callable[[Images], Callable[[], object]]) -> Contest:
    from uda.data.loaders import predict_batches
    from uda.data.transforms import make_predict

    torch.set_num_threads(1)  # on both sides, because the loader uses the other core
    generator = torch.Generator().manual_seed(0)
    shape = (64, SETTINGS.size, SETTINGS.size, 3)
    pictures = torch.randint(256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    images = _Ready(pictures, max(2 * BATCH_SIZE, round(8192 * scale)))

    def ours() -> None:
        keep_memory()  # as the tools do
        _look_at(predict_batches(images, make_predict(SETTINGS), batch_size=BATCH_SIZE, workers=1))

    return Contest(ours, floor(images), per_call=len(images))


def _look_at(batches: Iterable[torch.Tensor]) -> None:
    for batch in batches:
        assert batch.dtype == torch.float32 and batch.shape[1:] == (3, SETTINGS.size, SETTINGS.size)


@BENCHMARKS.register("handover_1w")
def handed_over(scale: float) -> Contest:
    """Time per image of handing batches over, against a DataLoader of normalised float32, one loader process each."""
    return _contest(scale, lambda images: lambda: _look_at(DataLoader(_Normalised(images), BATCH_SIZE, num_workers=1)))


@BENCHMARKS.register("handover_1w_vs_loop")
def handed_over_against_a_loop(scale: float) -> Contest:
    """Time per image of handing batches over by a loader process, against a loop that normalises without one."""

    def floor(images: Images) -> Callable[[], object]:
        normalised = _Normalised(images)
        return lambda: _look_at(torch.stack([normalised[i] for i in rows]) for rows in _rows(len(images)))

    return _contest(scale, floor)


def _rows(count: int) -> list[range]:
    return [range(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]
