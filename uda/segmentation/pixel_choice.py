"""The choice of a round's pixels: exact class-balanced thresholds over all grid pixels of the target, image by image.

Every grid pixel of every target image is a row. The first pass over the images scores all rows and keeps each row's
best class and score, compressed, in a temporary file. The thresholds are found from this file. They are those of
`class_balanced_thresholds` on all rows at once, bit for bit. The second pass labels the rows of each image. Memory does
not grow with the number of images.
"""

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from uda.core.distributed import Ranks
from uda.core.files import OutputError
from uda.selection.streaming_thresholds import stream_thresholds
from uda.selection.thresholds import LabelRule, PseudoLabels, best_classes, score_matrix, select


@dataclass(frozen=True)
class ScoredImage:
    """The scores of one image's grid pixels."""

    number: int
    """Number of the image."""
    height: int
    """Rows of the grid. The pixels are in row order."""
    scores: Tensor
    """(h * w, K), from a selector."""
    logits: Tensor
    """(h * w, K)."""


@dataclass(frozen=True)
class ChosenImage:
    """The choice among one image's grid pixels."""

    number: int
    """Number of the image."""
    height: int
    """Rows of the grid."""
    pixels: PseudoLabels
    """The choice, one row for each pixel."""
    logits: Tensor | None
    """(h * w, K); None if no second prediction was needed."""


@dataclass
class ChoiceCounts:
    """Numbers of grid pixels in a choice, of all processes."""

    thresholds: np.ndarray
    """(K,) float64, lambda. +inf for a class that no pixel may get as label."""
    best: np.ndarray
    """(K,) int64, pixels whose largest score is at the class."""
    selected: np.ndarray
    """(K,) int64, selected pixels with this label."""
    flipped: int = 0
    """Selected pixels whose label is another class than the one of their largest score."""

    @property
    def pixels(self) -> int:
        """All grid pixels."""
        return int(self.best.sum())

    @property
    def share(self) -> float:
        """Share of all grid pixels that are selected."""
        return int(self.selected.sum()) / max(self.pixels, 1)


@dataclass
class _Spool:
    """Best classes and scores of images, compressed, in a temporary file that has no name."""

    folder: Path
    pieces: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    """Of each image: number, rows of the grid, place and length in the file, type of the scores."""

    def __post_init__(self):
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed by `__exit__`)
        except OSError as error:
            raise OutputError(self.folder / "best scores of pixels", error) from error

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, number: int, height: int, classes: np.ndarray, best: np.ndarray) -> None:
        # Neighbouring scores have their first bytes in common. Sorted by place in the number, these compress to little.
        by_place = np.ascontiguousarray(best.view(np.uint8).reshape(len(best), -1).T)
        content = zlib.compress(classes.astype(np.uint16).tobytes() + by_place.tobytes(), 1)
        place = self._file.seek(0, 2)
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise OutputError(self.folder / "best scores of pixels", error) from error
        self.pieces.append((number, height, place, len(content), best.dtype.str))

    def read(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Of each image: number, rows of the grid, best classes (n,) int64 and their scores (n,)."""
        for number, height, place, length, kind in self.pieces:
            self._file.seek(place)
            content = zlib.decompress(self._file.read(length))
            width = np.dtype(kind).itemsize
            count = len(content) // (2 + width)
            classes = np.frombuffer(content, np.uint16, count).astype(np.int64)
            by_place = np.frombuffer(content, np.uint8, offset=2 * count).reshape(width, count)
            yield number, height, classes, np.ascontiguousarray(by_place.T).view(kind).reshape(count)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return sum(piece[3] for piece in self.pieces)


class PixelChoice:
    """The choice of a round.

        choice = PixelChoice(num_classes, portion, rule, folder)
        for image in choice.images(predict):
            ...                                  # write the labels of the image
        choice.counts

    Args:
        num_classes: K.
        portion: share of each class's grid pixels to select, in [0, 1].
        rule: how a pixel gets its label, see `uda.selection.thresholds`.
        folder: folder of the temporary file.
        ranks: the processes of a job. Each passes its own images, if it has any.
    """

    def __init__(
        self, num_classes: int, portion: float, rule: LabelRule, folder: Path, ranks: Ranks | None = None
    ) -> None:
        self.num_classes, self.portion, self.rule, self.folder = num_classes, portion, rule, folder
        self.ranks = ranks or Ranks()
        self.counts: ChoiceCounts | None = None
        """Numbers of the choice, once `images` has ended."""
        self.spooled = 0
        """Bytes of the temporary file of this process."""

    def images(self, predict: Callable[[], Iterable[ScoredImage]], again: bool = False) -> Iterator[ChosenImage]:
        """The choice of each image of this process.

        `predict` is called for each pass over the images, and must give the same ones. The rule `own` needs one pass.
        The rule `ratio` needs a second one, because it compares the scores of all classes.

        Args:
            predict: gives the scores of every image, once each.
            again: make the second pass also for `own`, so that every image comes with its logits.

        Raises:
            ValueError: scores that are NaN, infinite or not above 0, or two passes that differ.
            OutputError: the disk is full.
        """
        best_counts = np.zeros(self.num_classes, np.int64)
        selected, flipped = np.zeros(self.num_classes, np.int64), 0
        with _Spool(self.folder) as spool:
            for image in predict():
                classes, best = best_classes(score_matrix(image.scores))
                best_counts += np.bincount(classes, minlength=self.num_classes)
                spool.add(image.number, image.height, classes, best)
            self.spooled = spool.bytes
            thresholds = stream_thresholds(
                lambda: ((classes, best) for _, _, classes, best in spool.read()),
                self.portion,
                self.num_classes,
                reduce=self.ranks.sum if self.ranks.world > 1 else None,
            )
            second = self._second_pass if again or self.rule == "ratio" else self._own
            for chosen in second(spool, thresholds, predict):
                kept = chosen.pixels
                selected += kept.counts_per_class()
                flipped += int((kept.flipped & kept.selected).sum())
                yield chosen
        best_counts, selected, several = (
            self.ranks.sum(array) for array in (best_counts, selected, np.array([flipped]))
        )
        self.counts = ChoiceCounts(thresholds, best_counts, selected, int(several[0]))

    def _second_pass(
        self, spool: _Spool, thresholds: np.ndarray, predict: Callable[[], Iterable[ScoredImage]]
    ) -> Iterator[ChosenImage]:
        count = 0
        for image in predict():
            count += 1
            pixels = select(image.scores, thresholds, self.rule)
            yield ChosenImage(image.number, image.height, pixels, image.logits)
        if count != len(spool.pieces):
            raise ValueError(f"the second pass gave {count} images after {len(spool.pieces)}")

    def _own(
        self, spool: _Spool, thresholds: np.ndarray, predict: Callable[[], Iterable[ScoredImage]]
    ) -> Iterator[ChosenImage]:
        for number, height, classes, best in spool.read():
            ratios = best / thresholds[classes]
            pixels = PseudoLabels(classes, best, ratios, ratios >= 1, np.zeros(len(classes), bool), thresholds)
            yield ChosenImage(number, height, pixels, None)
