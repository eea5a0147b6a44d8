"""What a model reaches: IoU on label maps, and figures without labels, one image at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uda.core.distributed import Ranks
from uda.data.scenes import TargetMaps
from uda.evaluation.segmentation import PixelCounts, SegmentationAccuracy, label_quality, segmentation_accuracy
from uda.models.segmentation import best_classes
from uda.segmentation.pixel_choice import ChoiceCounts
from uda.segmentation.pseudo_labels import GridPrediction, named


@dataclass(frozen=True)
class SceneFigures:
    """Figures of a model on the images of a domain."""

    accuracy: SegmentationAccuracy | None
    """Oracle accuracy; None without label maps."""
    predicted: np.ndarray
    """(K,) int64, grid pixels by predicted class."""
    validators: dict[str, float]
    """Scores without labels, higher is better."""


@dataclass(frozen=True)
class SceneMeasures:
    """Figures of a model on the target, and on held-out images if there are any."""

    target: SceneFigures
    held_out: SceneFigures | None


def truth_of(maps: TargetMaps | None) -> Callable[[int], Tensor] | None:
    """The true label map of an image by its number, for measuring alone; None if there are none."""
    return None if maps is None else maps.reveal().read


def measure(
    predictions: Iterable[GridPrediction],
    image_size: Callable[[int], tuple[int, int]],
    stride: int,
    classes: Sequence[str],
    maps: TargetMaps | None,
    subsets: Mapping[str, Sequence[str]],
    ranks: Ranks,
) -> SceneFigures:
    """Figures of a model from its predictions of this process's images, over all processes.

    Accuracy is measured at the size of each label map. The label-free score `im` is the information maximisation of
    all grid pixels: entropy of the mean prediction minus mean entropy (Musgrave et al., 2022).
    """
    num_classes, truth = len(classes), truth_of(maps)
    counts = PixelCounts(num_classes)
    predicted, mass, entropy = np.zeros(num_classes, np.int64), np.zeros(num_classes), 0.0
    for image in predictions:
        log_p = torch.log_softmax(image.logits.double().flatten(1), dim=0)
        p = log_p.exp()
        mass += p.sum(1).numpy()
        entropy -= float((p * log_p).sum())
        predicted += np.bincount(image.logits.flatten(1).argmax(0).numpy(), minlength=num_classes)
        if truth is not None:
            known = truth(image.number)
            size = image_size(image.number)
            counts.add(best_classes(image.logits[None], stride, size, tuple(known.shape))[0], known)
    predicted, mass = ranks.sum(predicted), ranks.sum(mass)
    entropy = float(ranks.sum(np.array([entropy]))[0])
    mean = mass / max(mass.sum(), 1.0)
    total = predicted.sum()
    of_mean = -float((mean[mean > 0] * np.log(mean[mean > 0])).sum())
    counts = counts.summed(ranks)
    known = truth is not None and counts.counts[:-1].any()
    reached = segmentation_accuracy(counts, classes, subsets) if known else None
    return SceneFigures(reached, predicted, {"im": of_mean - entropy / max(int(total), 1)})


def choice_figures(counts: ChoiceCounts, quality: PixelCounts | None, classes: Sequence[str]) -> dict[str, Any]:
    """Figures of a round's choice for its record. Those with labels of the target are oracle figures."""
    told = None if quality is None or not quality.counts.any() else label_quality(quality, classes)
    return {
        "lambda": named(counts.thresholds, classes),
        "selected": int(counts.selected.sum()),
        "selected_share": counts.share,
        "selected_per_class": named(counts.selected, classes),
        "best_per_class": named(counts.best, classes),
        "flipped": counts.flipped,
        "tp_rate": None if told is None else told.precision,
        "quality": None if told is None else told.to_dict(),
    }
