"""Pseudo-labels of a round: the choice of pixels, and label maps on disk."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data.label_coding import VOID, LabelCoding
from uda.data.label_maps import MapFiles, write_label_map
from uda.evaluation.segmentation import PixelCounts
from uda.segmentation.config import SegmentationConfig
from uda.segmentation.pixel_choice import ChoiceCounts, PixelChoice, ScoredImage
from uda.selection.selectors import target_scores
from uda.selection.thresholds import portion_schedule


@dataclass(frozen=True)
class GridPrediction:
    """The prediction of one image on the grid."""

    number: int
    """Number of the image."""
    features: Tensor
    """(D, h, w)."""
    logits: Tensor
    """(K, h, w)."""
    mirrored: tuple[Tensor, Tensor] | None = None
    """Features and logits of the mirror image, mirrored back; None if it was not predicted."""


@dataclass(frozen=True)
class SceneLabels:
    """The pseudo-labels of all target images that a round trains on."""

    files: Sequence[Path]
    """The label maps, on the grid, in the order of the images."""
    portion: float
    """Share of each class that was to be selected."""
    figures: dict[str, Any]
    """Figures of the choice for the round's record."""

    def maps(self, num_classes: int) -> MapFiles:
        """The label maps, as a training part reads them."""
        return MapFiles(self.files, LabelCoding.plain(num_classes, "the run's pseudo-labels"))

    def state(self) -> dict[str, Any]:
        """State for a checkpoint. The pixels are on disk."""
        return {"portion": self.portion, "figures": self.figures}


def map_files(folder: Path, ids: Sequence[str]) -> list[Path]:
    """The files of the pseudo-labels of images by their ids: `000012_street.png`."""
    return [folder / f"{number:06d}_{Path(name).stem}.png" for number, name in enumerate(ids)]


def scored(predictions: Iterable[GridPrediction], selector: str, weight: Tensor) -> Iterator[ScoredImage]:
    """The selector's scores of every grid pixel. With mirror images they are means of both scores."""
    for image in predictions:
        height = image.logits.shape[1]
        scores = target_scores(selector, _rows(image.features), _rows(image.logits), weight)
        if image.mirrored is not None:
            features, logits = (_rows(maps) for maps in image.mirrored)
            scores = (scores + target_scores(selector, features, logits, weight)) / 2
        yield ScoredImage(image.number, height, scores, _rows(image.logits))


def label_scenes(
    predict: Callable[[], Iterable[GridPrediction]],
    weight: Tensor,
    config: SegmentationConfig,
    round_index: int,
    files: Sequence[Path],
    ranks: Ranks,
    palette: np.ndarray,
    truth: Callable[[int], Tensor | None] | None = None,
) -> tuple[SceneLabels, PixelCounts | None, ChoiceCounts]:
    """Choose the pixels of a round and write their label maps. Each process writes those of its own images.

    Args:
        predict: predicts this process's target images, once each; called once for each pass.
        weight: class weights (K, D).
        config: the run's config.
        round_index: number of the round, from 0.
        files: where the label map of each target image is written, all in one folder.
        ranks: the processes.
        palette: colours of the classes, uint8 (K, 3).
        truth: the true label map of an image by number, for measuring alone; None: there are none.

    Returns:
        The labels, the counts of pseudo-labels against the truth (None without truth), and those of the choice.
    """
    settings = config.self_training
    schedule = settings.portion
    portion = portion_schedule(round_index, schedule.start, schedule.step, schedule.max)
    folder = files[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    choice = PixelChoice(len(weight), portion, settings.labels, folder, ranks)
    counts = None if truth is None else PixelCounts(len(weight))
    try:
        for image in choice.images(lambda: scored(predict(), settings.selector, weight)):
            kept = np.where(image.pixels.selected, image.pixels.labels, VOID).astype(np.uint8)
            numbers = kept.reshape(image.height, -1)
            write_label_map(files[image.number], numbers, palette, durable=False)
            known = None if truth is None else truth(image.number)
            if known is not None:
                counts.add(_at_size(numbers, known.shape), known)
    except ValueError as error:
        raise UserError(f"selector '{settings.selector}': {error}") from None
    ranks.check_same("the thresholds", str(choice.counts.thresholds.tolist()))  # also waits for all label maps
    return SceneLabels(files, portion, {}), counts if counts is None else counts.summed(ranks), choice.counts


def rare_classes(predicted: np.ndarray, share: float) -> list[int]:
    """Classes with at most this share of the predicted pixels, but some: counts (K,)."""
    return [k for k, pixels in enumerate(predicted.tolist()) if 0 < pixels <= share * predicted.sum()]


def named(values: Sequence[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Values by class name."""
    return dict(zip(classes, np.asarray(values).tolist(), strict=True))


def _rows(maps: Tensor) -> Tensor:
    """(C, h, w) -> (h * w, C)."""
    return maps.flatten(1).T


def _at_size(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map (h, w) at another size, by the nearest value."""
    rows, columns = (
        np.minimum((np.arange(wanted) * 2 + 1) * have // (2 * wanted), have - 1)
        for have, wanted in zip(numbers.shape, size, strict=True)
    )
    return numbers[rows][:, columns]
