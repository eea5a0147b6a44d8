"""Batches for training and predicting. They are the same for any number of workers."""

import copy
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from uda.core.errors import UserError
from uda.core.interruption import leave_signals_to_the_main_process, signals_held_back
from uda.data import last_changes
from uda.data.batch import Batch
from uda.data.handover import Handed, Ring
from uda.data.images import Images
from uda.data.transforms import Transform


@dataclass(frozen=True)
class Part:
    """Images of the source domains, or of the target domains, to train on.

    - `indices`: (n,) int64, numbers in `images`.
    - `labels`: class numbers (n,) int64 with -1 for no label, distributions (n, K) float32, or None if no image has a
      label. Row i belongs to `indices[i]`.
    - `domain`: one domain number for all images, or a number for each, (n,) int64.
    - `annotated`: whether the labels are true labels. None: they are if the images are of the source.
    - `strong`: transform of a second view of each image. The plain views come first. None: only plain views.
    """

    images: Images
    indices: np.ndarray
    labels: np.ndarray | None
    transform: Transform
    domain: int | np.ndarray
    is_target: bool
    strong: Transform | None = None
    annotated: bool | None = None

    @property
    def is_annotated(self) -> bool:
        """Whether the labels are true labels."""
        return not self.is_target if self.annotated is None else self.annotated

    @property
    def views(self) -> tuple[Transform, ...]:
        """The transforms of each image."""
        return (self.transform,) if self.strong is None else (self.transform, self.strong)

    def __post_init__(self):
        if self.labels is not None and len(self.labels) != len(self.indices):
            raise ValueError(f"{len(self.labels)} labels for {len(self.indices)} images")

    def __len__(self) -> int:
        return len(self.indices)

    def domains(self, rows: np.ndarray) -> np.ndarray:
        """Domains of some rows, int64 (b,)."""
        return np.full(len(rows), self.domain) if isinstance(self.domain, int) else self.domain[rows]

    def distributions(self, rows: np.ndarray, num_classes: int) -> np.ndarray:
        """Labels of some rows as float32 (b, K). A row without a label is all zeros."""
        labels = np.zeros((len(rows), num_classes), np.float32)
        if self.labels is None:
            return labels
        chosen = self.labels[rows]
        if chosen.ndim == 2:
            return chosen.astype(np.float32)
        labelled = np.flatnonzero(chosen >= 0)
        labels[labelled, chosen[labelled]] = 1
        return labels


@dataclass(frozen=True)
class Draw:
    """What a batch is made of: rows of each part, and for each image the word that its seed is made of."""

    rows: tuple[np.ndarray, ...]
    words: tuple[np.ndarray, ...]
    weight: float = 1.0

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def dealt(self, rank: int, world: int, least: int = 2) -> "Draw":
        """The share of process `rank`: every `world`-th image of the batch, counted through its parts.

        Raises UserError if a share would be smaller than `least`.
        """
        if world == 1:
            return self
        total = len(self)
        if total < least * world:
            needed = {1: "an image", 2: "at least two images"}.get(least, f"at least {least} images")
            raise UserError(
                f"a batch of {total} images cannot be divided among {world} processes: each needs {needed}; enlarge "
                "the batch, or start fewer processes"
            )
        firsts = [(rank - start) % world for start in np.cumsum([0, *map(len, self.rows[:-1])]).tolist()]
        rows, words = (
            tuple(values[first::world] for values, first in zip(arrays, firsts, strict=True))
            for arrays in (self.rows, self.words)
        )
        return Draw(rows, words, sum(map(len, rows)) * world / total)


class StageSampler(Sampler):
    """The draws of a stage, from step `first` on. Draw number s depends only on the seed and on s."""

    first = 0
    rank, world = 0, 1
    least_share = 2
    """Fewest images of a batch that a process may get. BatchNorm cannot take one image of one label."""

    def __init__(self, parts: Sequence[Part], steps: int, seed: Sequence[int]):
        self.lengths = [len(part) for part in parts]
        self.steps = steps
        self.seed = [int(word) for word in seed]
        self._base = np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0]
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[Draw]:
        return (self.draw(step) for step in range(self.first, self.steps))

    def draw(self, step: int) -> Draw:
        """This process's share of a step."""
        rows = self._rows(step)
        ends = list(itertools.accumulate(map(len, rows)))
        words = self._base + np.arange(ends[-1], dtype=np.uint64) + np.uint64(step << 24)
        whole = Draw(rows, tuple(words[a:b] for a, b in itertools.pairwise([0, *ends])))
        return whole.dealt(self.rank, self.world, self.least_share)

    def starting_at(self, step: int) -> "StageSampler":
        """The same sampler without its first `step` steps."""
        rest = copy.copy(self)
        rest.first = self.first + step
        return rest

    def window(self, first: int, steps: int) -> "StageSampler":
        """`steps` steps of this sampler, from number `first` on."""
        part = copy.copy(self)
        part.first, part.steps = first, first + steps
        return part

    @property
    @abstractmethod
    def largest(self) -> int:
        """The largest number of images in a step. An image in two views counts twice."""

    @abstractmethod
    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        """The rows of each part that make up a step."""

    def _permutation(self, stream: int, epoch: int, n: int) -> np.ndarray:
        """Order of a stream's `n` items in an epoch. The latest one is kept."""
        if self._order.get(stream, (-1,))[0] != epoch:
            self._order[stream] = (epoch, np.random.default_rng([*self.seed, stream, epoch]).permutation(n))
        return self._order[stream][1]

    def _stream(self, stream: int, start: int, count: int, n: int) -> np.ndarray:
        """`count` items, from place `start` on, of an endless stream of `n` items. Each pass has its own order."""
        pieces = []
        while count:
            epoch, offset = divmod(start, n)
            piece = self._permutation(stream, epoch, n)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


def epoch_batches(total: int, batch_size: int, least: int) -> int:
    """Batches of an epoch over `total` images. A rest of fewer than `least` images joins the batch before it."""
    return max(1, total // batch_size + (total % batch_size >= least))


class Mixed(StageSampler):
    """All parts shuffled together in each epoch. A rest of fewer than `least` images joins the batch before it."""

    def __init__(self, parts: Sequence[Part], batch_size: int, steps: int | None, seed: Sequence[int], least: int):
        self.total = sum(len(part) for part in parts)
        if self.total == 0:
            raise UserError("there are no images to train on: source share and selection are both empty")
        self.batch_size = batch_size
        self._least = least
        self.batches = epoch_batches(self.total, batch_size, least)
        super().__init__(parts, self.batches if steps is None else steps, seed)

    @property
    def largest(self) -> int:
        return self.batch_size + self._least

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        epoch, batch = divmod(step, self.batches)
        order = self._permutation(0, epoch, self.total)
        start = batch * self.batch_size
        chosen = order[start:] if batch == self.batches - 1 else order[start : start + self.batch_size]
        if len(chosen) == 1:  # BatchNorm cannot take a single image
            chosen = np.repeat(chosen, 2)
        bounds = np.cumsum([0, *self.lengths])
        return tuple(chosen[(chosen >= a) & (chosen < b)] - a for a, b in itertools.pairwise(bounds))


class Fixed(StageSampler):
    """Every batch has a fixed number of images of each part. Each part is an endless shuffled stream."""

    def __init__(self, parts: Sequence[Part], shares: Sequence[int], steps: int | None, seed: Sequence[int]):
        if len(shares) != len(parts):
            raise ValueError(f"{len(shares)} shares of a batch for {len(parts)} parts")
        for part, share in zip(parts, shares, strict=True):
            if share and not len(part):
                what = (
                    "target images, but none were selected" if part.is_target else "source images, but there are none"
                )
                raise UserError(f"a batch should hold {share} {what}")
        if not sum(shares):
            raise UserError("a batch needs images, but all its shares are 0")
        self.shares = list(shares)
        self._views = [len(part.views) for part in parts]
        once = max(-(-len(part) // share) for part, share in zip(parts, shares, strict=True) if share)
        super().__init__(parts, once if steps is None else steps, seed)

    @property
    def largest(self) -> int:
        return sum(share * views for share, views in zip(self.shares, self._views, strict=True))

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        return tuple(
            self._stream(stream, step * share, share, n)
            for stream, (share, n) in enumerate(zip(self.shares, self.lengths, strict=True))
        )


class _Beside(StageSampler):
    """The batches of another sampler, each with `share` more images from one more part, an endless shuffled stream."""

    def __init__(self, sampler: StageSampler, part: Part, share: int):
        super().__init__([], sampler.steps, sampler.seed)
        self.sampler, self.share, self.count, self.stream = sampler, share, len(part), len(sampler.lengths)

    @property
    def largest(self) -> int:
        return self.sampler.largest + self.share

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        return *self.sampler._rows(step), self._stream(self.stream, step * self.share, self.share, self.count)


class InOrder(Sampler):
    """Each image of some rows once, in order."""

    def __init__(self, rows: slice | np.ndarray, batch_size: int):
        self.rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        self.batch_size = self.largest = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self.rows[start : start + self.batch_size]


def mixed_words(words: np.ndarray) -> np.ndarray:
    """Maps neighbouring numbers to unrelated ones below 2^63, uint64 (n,) -> (n,) (SplitMix64, Steele et al., 2014)."""
    words = words * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))) >> np.uint64(1)


T = TypeVar("T", torch.Tensor, Batch)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Delivery:
    """The device that batches are brought to before they are normalised, and how."""

    device: torch.device = _CPU
    pinned: bool = False
    """Whether to copy through page-locked memory. The GPU then copies in its own order, and the host does not wait."""

    @property
    def late(self) -> bool:
        """Whether the device makes the last changes of training images. That saves the loader processes work."""
        return self.device.type != "cpu"

    def bring(self, what: T) -> T:
        """A tensor or a batch, on the device."""
        if self.device.type == "cpu":
            return what
        try:
            what = what.pin_memory() if self.pinned else what
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"there is no page-locked memory left ({reason}); set runtime.pin_memory=false") from None
        return what.to(self.device, non_blocking=self.pinned)


_HERE = Delivery()


class Piece(NamedTuple):
    """A part's images in a draw, in one view."""

    part: int
    """Number of the part."""
    rows: np.ndarray
    words: np.ndarray
    view: int


class TrainReader:
    """Reads and transforms the images of a draw."""

    large = 1
    """How many of the first tensors that `read` returns are so large that they go through a ring, uint8 (B, ...)."""

    def __init__(self, parts: Sequence[Part], num_classes: int):
        if len({view.normalisation for part in parts for view in part.views}) > 1:
            raise ValueError("the parts of a batch need transforms with the same mean and std")
        self.parts = parts
        self.num_classes = num_classes
        self.transform = parts[0].transform
        self._late = any(view.leaves_last_changes for part in parts for view in part.views)

    def count(self, draw: Draw) -> int:
        """Rows of the batch."""
        return sum(len(rows) * len(part.views) for rows, part in zip(draw.rows, self.parts, strict=True))

    def shape(self, draw: Draw) -> tuple[int, int, int, int]:
        """Shape of the batch's pixels, (B, C, H, W)."""
        return self.count(draw), self.transform.channels, self.transform.size, self.transform.size

    @property
    def image_bytes(self) -> int:
        """Most bytes of one image in the `large` tensors."""
        return self.transform.channels * self.transform.size**2

    def read(
        self, draw: Draw, memory: torch.Tensor | None = None, late: bool = False
    ) -> tuple[torch.Tensor, ...] | UserError:
        """Pixels before they are normalised, the other columns of a batch in order, the last changes, and the weight.

        `memory`, uint8 (B, C, S, S), may be used for the pixels. With `late`, `finish` makes the last changes of the
        images. Without it they are made here, and the returned table is empty.
        """
        try:
            return self._read(draw, memory, late)
        except UserError as error:  # returned, because a raised error would be printed with a worker's traceback
            return error

    def finish(self, delivery: Delivery, pixels: torch.Tensor, *rest: torch.Tensor) -> Batch:
        """The batch on its device, from what `read` returned."""
        *columns, changes, weight = rest
        batch = delivery.bring(Batch(pixels, *columns, weight.item()))
        if len(changes):
            batch.images = last_changes.made(batch.images, delivery.bring(changes))
        batch.images = self.transform.normalise(batch.images)
        return batch

    def ids(self, draw: Draw) -> list[str]:
        """The names of a draw's images."""
        return [
            part.images.ids[i]
            for part, rows in zip(self.parts, draw.rows, strict=True)
            for _ in part.views
            for i in part.indices[rows].tolist()
        ]

    def read_ahead(self, draws: Sequence[Draw]) -> list[tuple[torch.Tensor, ...]]:
        """The same as `read` of each draw. It is faster for features, whose batches take little to read."""
        pieces = [self._pieces(draw) for draw in draws]
        columns = self._columns([piece for of_draw in pieces for piece in of_draw])
        lengths = [self.count(draw) for draw in draws]
        pixels = (self._pixels(of_draw, None, None) for of_draw in pieces)
        parts = zip(*(column.split_with_sizes(lengths) for column in columns), strict=True)
        changes, weights = last_changes.table([]), torch.tensor([draw.weight for draw in draws], dtype=torch.float64)
        return [
            (images, *part, changes, weight)
            for images, part, weight in zip(pixels, parts, weights.unbind(), strict=True)
        ]

    def _read(self, draw: Draw, memory: torch.Tensor | None, late: bool) -> tuple[torch.Tensor, ...]:
        changes: list[last_changes.LastChanges] | None = [] if late and self._late else None
        pieces = self._pieces(draw)
        pixels, columns = self._pixels(pieces, memory, changes), self._columns(pieces)
        weight = torch.tensor(draw.weight, dtype=torch.float64)
        return pixels, *columns, last_changes.table(changes or []), weight

    def _pieces(self, draw: Draw) -> list[Piece]:
        return [
            Piece(number, rows, words, view)
            for number, (rows, words) in enumerate(zip(draw.rows, draw.words, strict=True))
            for view in range(len(self.parts[number].views))
            if len(rows)
        ]

    def _pixels(
        self, pieces: list[Piece], memory: torch.Tensor | None, changes: list[last_changes.LastChanges] | None
    ) -> torch.Tensor:
        """The pixels of pieces. With `changes`, the last changes of their images are left out, and added to it."""
        lengths = [len(piece.rows) for piece in pieces]
        if memory is None and self.transform.in_place:
            memory = self.transform.memory(sum(lengths))
        places = [None] * len(pieces) if memory is None else memory.split_with_sizes(lengths)
        pixels = []
        for (number, rows, words, view), place in zip(pieces, places, strict=True):
            part = self.parts[number]
            transform = part.views[view]
            seeds = (
                (mixed_words(words) if view == 0 else mixed_words(mixed_words(words))).tolist()
                if transform.draws
                else ()
            )
            left_out = changes if transform.leaves_last_changes else None
            pixels.append(transform.read(part.images, part.indices[rows], seeds, place, left_out))
            if changes is not None and left_out is None:
                changes += [last_changes.NONE] * len(rows)
        if memory is not None and all(piece is place for piece, place in zip(pixels, places, strict=True)):
            return memory
        return torch.cat(pixels) if len(pixels) > 1 else pixels[0]

    def _columns(self, pieces: list[Piece]) -> list[torch.Tensor]:
        """Labels, domains, whether of a target, views, and whether annotated. With NumPy, which is fast for so few."""
        lengths, numbers = [len(piece.rows) for piece in pieces], np.array([piece.part for piece in pieces])
        of_row = np.repeat(numbers, lengths)
        labels, domains = np.zeros((len(of_row), self.num_classes), np.float32), np.zeros(len(of_row), np.int64)
        for number in set(numbers.tolist()):
            part, mine = self.parts[number], np.flatnonzero(of_row == number)
            rows = np.concatenate([piece.rows for piece in pieces if piece.part == number])
            if self.num_classes:
                labels[mine] = part.distributions(rows, self.num_classes)
            domains[mine] = part.domains(rows)
        target, annotated = (
            np.array(kinds)[of_row]
            for kinds in ([part.is_target for part in self.parts], [part.is_annotated for part in self.parts])
        )
        views = np.repeat([piece.view for piece in pieces], lengths)
        return [torch.from_numpy(column) for column in (labels, domains, target, views, annotated)]


class PredictReader:
    """Reads and transforms images by number.

    Args:
        images: the images.
        transform: makes the network's inputs.
        seed: seed of a random transform. The result for an image depends only on it and on the image's number.
    """

    def __init__(self, images: Images, transform: Transform, seed: int = 0):
        self.images = images
        self.transform = transform
        self.seed = np.uint64(seed << 40)

    large = 1

    def shape(self, indices: np.ndarray) -> tuple[int, int, int, int]:
        """Shape of the batch's pixels, (B, C, H, W)."""
        return len(indices), self.transform.channels, self.transform.size, self.transform.size

    @property
    def image_bytes(self) -> int:
        """Most bytes of one image."""
        return self.transform.channels * self.transform.size**2

    def read(
        self, indices: np.ndarray, memory: torch.Tensor | None = None, late: bool = False
    ) -> tuple[torch.Tensor] | UserError:
        """Pixels before they are normalised. `memory`, uint8 (B, C, S, S), may be used for them."""
        try:
            return (self._read(indices, memory),)
        except UserError as error:
            return error

    def _read(self, indices: np.ndarray, memory: torch.Tensor | None) -> torch.Tensor:
        seeds = mixed_words(self.seed + indices.astype(np.uint64)).tolist() if self.transform.draws else ()
        if memory is None and self.transform.in_place:
            memory = self.transform.memory(len(indices))
        return self.transform.read(self.images, indices, seeds, memory)

    def finish(self, delivery: Delivery, pixels: torch.Tensor) -> torch.Tensor:
        """The batch on its device, from what `read` returned."""
        return self.transform.normalise(delivery.bring(pixels))


class ReadImages(NamedTuple):
    """A batch of images, some of which may be unreadable."""

    images: torch.Tensor
    """float32 (B, C, S, S). An unreadable image is black."""
    problems: Mapping[int, str]
    """Why an image could not be read or transformed, by its row."""


class _LenientReader(PredictReader):
    """Reads and transforms images one by one. An image that fails is replaced by a black one."""

    def read(
        self, indices: np.ndarray, memory: torch.Tensor | None = None, late: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels before they are normalised, and the problems as JSON in uint8, because a worker sends tensors only."""
        size, channels = self.transform.size, self.transform.channels
        if memory is None:
            memory = torch.empty(len(indices), size, size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        problems: dict[int, str] = {}
        for row, number in enumerate(indices.tolist()):
            try:
                memory[row].copy_(self.transform.pixels([self.images.read(number)], [0])[0])
            except UserError as error:
                memory[row].zero_()
                problems[row] = str(error)
        return memory, torch.from_numpy(np.frombuffer(json.dumps(problems).encode(), np.uint8).copy())

    def finish(self, delivery: Delivery, pixels: torch.Tensor, problems: torch.Tensor) -> ReadImages:
        told = json.loads(problems.numpy().tobytes())
        return ReadImages(super().finish(delivery, pixels), {int(row): problem for row, problem in told.items()})


class _Worker(Dataset):
    """A reader in a loader process. Pixels go through the ring if there is one, and all other data as plain bytes."""

    def __init__(self, reader: TrainReader | PredictReader, ring: Ring | None, late: bool):
        self.reader = reader
        self.ring = ring
        self.late = late

    def __getitems__(self, numbered: tuple[int, object]) -> object:
        number, draw = numbered
        space = None if self.ring is None else self.ring.space(number, self.reader.shape(draw))
        read = self.reader.read(draw, space, self.late)
        if isinstance(read, UserError):
            return read
        handed, start = list(read[: self.reader.large]), 0
        for place, tensor in enumerate(handed if self.ring is not None else ()):
            handed[place] = self.ring.put(number, tensor, start)
            start += tensor.numel()
        return *handed, *(tensor.numpy() for tensor in read[self.reader.large :])


class _Numbered(Sampler):
    """The draws of a sampler with their numbers."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, object]]:
        return enumerate(self.sampler)


class Batches:
    """A sized iterable of batches. Each iteration gives the same ones.

    Without workers the calling process makes the batches. Workers live as long as one iteration, which may hold several
    epochs. Pixels leave a worker as uint8. They are normalised on the device that they are delivered to, by default the
    CPU.
    """

    def __init__(
        self,
        reader: TrainReader | PredictReader,
        sampler: Sampler,
        workers: int,
        origin: int = 0,
        delivery: Delivery = _HERE,
    ):
        self._reader = reader
        self._origin = origin
        self._sampler = sampler
        self._workers = workers
        self._delivery = delivery

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator:
        if not self._workers and isinstance(self._reader, TrainReader) and self._reader.transform.in_place:
            yield from self._read_ahead()
            return
        for read in self._loaded() if self._workers else self._read_here():
            if isinstance(read, UserError):
                raise read
            yield self._reader.finish(self._delivery, *read)

    def ids(self, step: int) -> list[str]:
        """The ids of the images in batch number `step`."""
        return self._reader.ids(self._sampler.draw(self._origin + step))

    def on(self, device: torch.device, pinned: bool) -> "Batches":
        """The same batches, delivered to a device. `pinned`: through page-locked memory, so the host does not wait."""
        return Batches(self._reader, self._sampler, self._workers, self._origin, Delivery(device, pinned))

    def starting_at(self, step: int) -> "Batches":
        """The training batches without the first `step`. The others are unchanged."""
        return Batches(self._reader, self._sampler.starting_at(step), self._workers, self._origin, self._delivery)

    def window(self, first: int, steps: int) -> "Batches":
        """`steps` of the training batches, unchanged, from number `first` on. `ids` counts them from 0."""
        return Batches(self._reader, self._sampler.window(first, steps), self._workers, first, self._delivery)

    def _read_here(self) -> Iterator:
        return (self._reader.read(draw, late=self._delivery.late) for draw in self._sampler)

    def _read_ahead(self) -> Iterator[Batch]:
        """The batches, some of which are read one after another. After a training step the caches are cold, and what
        takes microseconds in a row takes several times as long once."""
        transform = self._reader.transform
        each = 4 * self._sampler.largest * transform.channels * transform.size**2
        draws, ahead = iter(self._sampler), max(1, min(_MOST_AHEAD, _BYTES_AHEAD // each))
        while several := list(itertools.islice(draws, ahead)):
            read = self._reader.read_ahead(several)
            yield from [self._reader.finish(self._delivery, *batch) for batch in read]

    def _loaded(self) -> Iterator:
        ring = None
        if Ring.possible():
            # One slot for each batch that is prepared ahead, and one for the batch that this process is finishing.
            ring = Ring(_AHEAD * self._workers + 1, self._sampler.largest * self._reader.image_bytes)
        loader = DataLoader(
            _Worker(self._reader, ring, self._delivery.late),
            batch_sampler=_Numbered(self._sampler),
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=_AHEAD,
            multiprocessing_context="fork" if ring else None,
            # Its own generator, so that the workers' base seed is not drawn from the global one, which dropout uses.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        with signals_held_back():
            batches = iter(loader)
        for read in _unless_killed(batches):
            if isinstance(read, UserError):
                yield read
            else:
                large, rest = read[: self._reader.large], read[self._reader.large :]
                pixels = [ring.take(handed) if isinstance(handed, Handed) else handed for handed in large]
                yield *pixels, *map(torch.from_numpy, rest)


#: Batches that each worker prepares ahead.
_AHEAD = 3
#: Without workers, the most batches of features that are read ahead, and their bytes.
_MOST_AHEAD, _BYTES_AHEAD = 16, 4 * 2**20


def _unless_killed(batches: Iterator) -> Iterator:
    """The same batches. Raises UserError if the system has killed a loader process."""
    try:
        yield from batches
    except RuntimeError as error:  # torch has no own class for this error
        if not str(error).startswith("DataLoader worker"):  # killed by a signal, or exited unexpectedly
            raise
        raise UserError(
            "a loader process was killed, probably because memory ran out: lower runtime.workers or the batch size; "
            "what was saved is kept, and the same command resumes from there"
        ) from None


def _as_it_is(batch):
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Workers end with the main process and print no tracebacks."""
    leave_signals_to_the_main_process()


def training_batches(
    parts: Sequence[Part],
    *,
    num_classes: int,
    batch_size: int | Sequence[int],
    beside: tuple[Part, int] | None = None,
    steps: int | None,
    seed: Sequence[int],
    workers: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> Batches:
    """Batches of some parts, a sized iterable of `Batch`. In a batch the parts are in their order.

    Args:
        parts: what to train on.
        num_classes: K.
        batch_size: one number, or one number for each part. One number: all parts are shuffled together in each epoch.
            A last batch of a single image joins the batch before it, because BatchNorm cannot take it. If batches are
            divided (`world`, `accumulate`), this holds for fewer than two images per share. One number for each part:
            every batch has that many images of the part. Each part is an endless stream, shuffled in each pass through
            it, so a part with fewer images than its share repeats within a batch.
        beside: one more part, and how many of its images are added to every batch. It does not count for the length of
            an epoch.
        steps: number of batches. None: one epoch. For fixed shares, this is an epoch of the part that lasts longest.
        seed: non-negative numbers such as (seed, stage, round, epoch). Order and augmentation depend only on them and
            on the batch's position, not on `workers`.
        workers: number of processes that read ahead. 0: none.
        rank, world: number of this process and number of processes. Each process gets its share of every batch.
        accumulate: number of parts that each process then divides its share into.

    Raises:
        UserError: there are no images, or none of a part that every batch needs.
    """
    if isinstance(batch_size, int):
        sampler = Mixed(parts, batch_size, steps, seed, least=2 * world * accumulate)
    else:
        sampler = Fixed(parts, batch_size, steps, seed)
    if beside is not None:
        sampler, parts = _Beside(sampler, *beside), [*parts, beside[0]]
    sampler.rank, sampler.world = rank, world
    return Batches(TrainReader(parts, num_classes), sampler, workers)


def predict_batches(
    images: Images,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    rows: slice | np.ndarray | None = None,
    lenient: bool = False,
    seed: int = 0,
) -> Batches:
    """Each image once and in order, a sized iterable of float32 (B, C, S, S).

    `rows`: only these images, a slice or numbers (n,). With `lenient`, batches are `ReadImages`. An image that cannot
    be read then raises no error. `seed`: of a random transform, below 2^20.
    """
    sampler = InOrder(slice(0, len(images)) if rows is None else rows, batch_size)
    reader = _LenientReader if lenient else PredictReader
    return Batches(reader(images, transform, seed), sampler, workers)
