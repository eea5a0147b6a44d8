"""Batches of scenes. They are the same for any number of workers, and for any number of processes together."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from uda.data.batch import Batch
from uda.data.images import Images, asked_in_threads
from uda.data.label_maps import LabelMaps
from uda.data.loaders import Batches, Delivery, Draw, Fixed, InOrder, Mixed, PredictReader, TrainReader, mixed_words
from uda.data.scene_transforms import ScenePredict, SceneTrain

#: Chooses the middle of a scene's crop, as row and column in its label map. None: the crop lies anywhere.
CropCentre = Callable[[torch.Tensor, Random], tuple[int, int] | None]


@dataclass(frozen=True)
class RareClassCentre:
    """The middle of a crop is a pixel of a rare class, if the label map has any (patch mining, Zou et al., ECCV 2018).

    `chance`: share of the crops that are chosen so. First one of the map's rare classes is drawn, then one of its
    pixels.
    """

    classes: tuple[int, ...]
    chance: float = 0.8

    def __call__(self, label_map: torch.Tensor, random: Random) -> tuple[int, int] | None:
        if random.random() >= self.chance:
            return None
        counts = np.bincount(label_map.numpy().ravel(), minlength=256)
        present = [number for number in self.classes if counts[number]]
        if not present:
            return None
        places = np.flatnonzero(label_map.numpy().ravel() == random.choice(present))
        return divmod(int(places[random.randrange(len(places))]), label_map.shape[1])


def rare_class_weights(pixels: np.ndarray, temperature: float = 0.01, least: int = 3000) -> np.ndarray:
    """How often each scene should be drawn so that rare classes are seen often (Hoyer et al., DAFormer, CVPR 2022).

    A class is drawn with probability softmax((1 - f) / temperature), where f is its share of all labelled pixels. Then
    one of the scenes that have more than `least` pixels of it is drawn. If no scene has so many, all that have any may
    be drawn. A class without a pixel is never drawn.

    Args:
        pixels: (N, K), how many pixels of each class each scene has.
        temperature: the smaller, the more often the rarest classes are drawn.
        least: the number of pixels.

    Returns:
        The probability of each scene, float64 (N,). They add up to 1.
    """
    totals = pixels.sum(0)
    present = totals > 0
    scores = np.where(present, (1 - totals / totals.sum()) / temperature, -np.inf)
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    holds = np.where((pixels > least).any(0), pixels > least, pixels > 0)[:, present]
    return (holds / holds.sum(0)) @ chances[present]


@dataclass(frozen=True)
class ScenePart:
    """Scenes of the source, or images of the target, to train on.

    - `maps`: train ids of each image: true labels, or pseudo-labels, which may be on a coarser grid. None: no image has
      a label.
    - `domain`: number of the domain. The source is 0.
    - `weights`: how often each image is drawn, in proportion, float64 (n,). They are then drawn with replacement. None:
      each once in a pass.
    - `centre`: chooses the middle of each crop.
    - `annotated`: whether the labels are true labels. None: they are if the images are of the source.
    """

    images: Images
    maps: LabelMaps | None
    transform: SceneTrain
    domain: int
    is_target: bool
    weights: np.ndarray | None = None
    centre: CropCentre | None = None
    annotated: bool | None = None

    def __post_init__(self):
        if self.maps is not None and len(self.maps) != len(self.images):
            raise ValueError(f"{len(self.maps)} label maps for {len(self.images)} images")
        if self.weights is not None:
            if self.weights.shape != (len(self.images),):
                raise ValueError(f"weights of shape {self.weights.shape} for {len(self.images)} images")
            if not (np.isfinite(self.weights).all() and (self.weights >= 0).all() and self.weights.sum() > 0):
                raise ValueError("weights must be finite and not negative, and some must be positive")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def indices(self) -> np.ndarray:
        """Number of each row's image."""
        return np.arange(len(self))

    @property
    def views(self) -> tuple[SceneTrain, ...]:
        """The transforms of each image."""
        return (self.transform,)

    @property
    def is_annotated(self) -> bool:
        """Whether the labels are true labels."""
        return not self.is_target if self.annotated is None else self.annotated

    def domains(self, rows: np.ndarray) -> np.ndarray:
        """Domains of some rows, int64 (b,)."""
        return np.full(len(rows), self.domain)

    def read(self, row: int, seed: int, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Scene `row`, transformed, written to `pixels` (C, h, w) and `labels` (h, w)."""
        label_map = None if self.maps is None else self.maps.read(row)
        centre = None
        if self.centre is not None and label_map is not None:
            centre = self.centre(label_map, Random(seed + 1))
        self.transform.into(pixels, labels, self.images.open(row), label_map, seed, centre)


class _SceneReader(TrainReader):
    """Reads and transforms the scenes of a draw. The labels go through the ring like the pixels."""

    large = 2

    def __init__(self, parts: Sequence[ScenePart]):
        super().__init__(parts, num_classes=0)
        if len({part.transform.crop for part in parts}) > 1:
            raise ValueError("the parts of a batch need transforms with the same crop")

    def shape(self, draw: Draw) -> tuple[int, int, int, int]:
        return len(draw), self.transform.channels, *self.transform.crop

    @property
    def image_bytes(self) -> int:
        height, width = self.transform.crop
        return (self.transform.channels + 1) * height * width

    def _read(self, draw: Draw, memory: torch.Tensor | None, late: bool) -> tuple[torch.Tensor, ...]:
        count, channels, height, width = self.shape(draw)
        if memory is None:
            memory = torch.empty(count, height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.empty(count, 1, height, width, dtype=torch.uint8)
        pieces, places = self._pieces(draw), itertools.count()
        for number, rows, words, _ in pieces:
            for row, seed in zip(rows.tolist(), mixed_words(words).tolist(), strict=True):
                place = next(places)
                self.parts[number].read(row, seed, memory[place], labels[place, 0])
        _, *columns = self._columns(pieces)
        return memory, labels, *columns, torch.tensor(draw.weight, dtype=torch.float64)

    def finish(self, delivery: Delivery, pixels: torch.Tensor, labels: torch.Tensor, *rest: torch.Tensor) -> Batch:
        *columns, weight = rest
        # The labels may lie in a ring, whose memory is used again. The pixels are copied in normalising.
        batch = delivery.bring(Batch(pixels, labels[:, 0].clone(), *columns, weight.item()))
        batch.images = self.transform.normalise(batch.images)
        return batch


class _Weighted(Fixed):
    """Like `Fixed`, but the images of a part with weights are drawn by them, with replacement."""

    def __init__(self, parts: Sequence[ScenePart], shares: Sequence[int], steps: int | None, seed: Sequence[int]):
        super().__init__(parts, shares, steps, seed)
        self._chances = [None if part.weights is None else part.weights / part.weights.sum() for part in parts]

    def _permutation(self, stream: int, epoch: int, n: int) -> np.ndarray:
        chances = self._chances[stream]
        if chances is None:
            return super()._permutation(stream, epoch, n)
        if self._order.get(stream, (-1,))[0] != epoch:
            random = np.random.default_rng([*self.seed, stream, epoch])
            self._order[stream] = epoch, random.choice(n, n, p=chances)
        return self._order[stream][1]


def scene_batches(
    parts: Sequence[ScenePart],
    *,
    batch_size: int | Sequence[int],
    steps: int | None,
    seed: Sequence[int],
    workers: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> Batches:
    """Batches of some parts, a sized iterable of `Batch` with labels uint8 (B, h, w). The parts are in their order.

    Args:
        parts: what to train on. Their transforms have one size of crop and one normalisation.
        batch_size: one number for each part: every batch has that many of its images, and each part is an endless
            stream that is shuffled in each pass through it. One number: all parts are shuffled together in each epoch.
        steps: number of batches. None: one epoch, for fixed shares of the part that lasts longest.
        seed: non-negative numbers such as (seed, stage, round, epoch). Order and transforms depend only on them and on
            the batch's position.
        workers: number of processes that read ahead. 0: none.
        rank, world: number of this process and number of processes. Each process gets its share of every batch.
        accumulate: number of parts that each process then divides its share into. A part may be a single scene.

    Raises:
        UserError: there are no images, or none of a part that every batch needs, or a process would get none.
        ValueError: weights with one number for all parts.
    """
    if isinstance(batch_size, int):
        if any(part.weights is not None for part in parts):
            raise ValueError("weights need one batch size for each part")
        sampler = Mixed(parts, batch_size, steps, seed, least=world * accumulate)
    else:
        sampler = _Weighted(parts, batch_size, steps, seed)
    sampler.rank, sampler.world, sampler.least_share = rank, world, accumulate
    return Batches(_SceneReader(parts), sampler, workers)


class _WholeReader(PredictReader):
    """Reads whole images by number. All images of a batch have one size."""

    def __init__(self, images: Images, transform: ScenePredict, sizes: np.ndarray):
        super().__init__(images, transform)
        self.sizes = sizes

    def shape(self, indices: np.ndarray) -> tuple[int, int, int, int]:
        height, width = self.sizes[indices[0]].tolist()
        return len(indices), self.transform.channels, height, width

    @property
    def image_bytes(self) -> int:
        return self.transform.channels * int(self.sizes.prod(1).max(initial=0))

    def _read(self, indices: np.ndarray, memory: torch.Tensor | None) -> torch.Tensor:
        if memory is None:
            count, channels, height, width = self.shape(indices)
            memory = torch.empty(count, height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for row, i in zip(memory.unbind(), indices.tolist(), strict=True):
            row.copy_(self.transform(self.images.open(i)))
        return memory


class _OfOneSize(InOrder):
    """Each image once, in order. A batch ends where the next image has another size. `sizes`: int64 (N, 2)."""

    def __init__(self, rows: slice | np.ndarray, batch_size: int, sizes: np.ndarray):
        super().__init__(rows, batch_size)
        ours = sizes[self.rows]
        ends = np.flatnonzero((ours[1:] != ours[:-1]).any(1)) + 1
        runs = np.split(self.rows, ends)
        self.batches = [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def scene_predict_batches(
    images: Images,
    transform: ScenePredict,
    *,
    batch_size: int,
    workers: int,
    rows: slice | np.ndarray | None = None,
) -> Batches:
    """Each image once and in order, a sized iterable of float32 (B, C, H, W).

    All images of a batch have one size, so a batch may be smaller than `batch_size`. `rows`: only these images, a slice
    or numbers (n,).
    """
    rows = slice(0, len(images)) if rows is None else rows
    if transform.resize is not None:
        sizes = np.tile(np.array(transform.resize), (len(images), 1))
    else:
        found = asked_in_threads(images.size, len(images), "reading image sizes", lambda line: None)
        sizes = np.array(found, dtype=np.int64).reshape(-1, 2)
    return Batches(_WholeReader(images, transform, sizes), _OfOneSize(rows, batch_size, sizes), workers)
