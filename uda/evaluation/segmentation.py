"""Oracle figures of label maps: accuracy of predictions, and quality of pseudo-labels.

All figures come from one matrix of pixel counts. It is a sum over images, so images are read one at a time, and several
processes add their matrices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.label_coding import VOID

#: Classes of Cityscapes that tables of SYNTHIA average over: all that SYNTHIA has, and those without three rare ones.
SYNTHIA_13 = (
    *("road", "sidewalk", "building", "traffic light", "traffic sign", "vegetation", "sky", "person", "rider"),
    *("car", "bus", "motorcycle", "bicycle"),
)
SYNTHIA_16 = (*SYNTHIA_13[:3], "wall", "fence", "pole", *SYNTHIA_13[3:])


class PixelCounts:
    """Numbers of pixels by true class and predicted class, summed over images.

    Args:
        num_classes: K, at most 255.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        """(K + 1, K + 1), rows = truth, columns = prediction. The last row: pixels that are void in the truth. The last
        column: pixels without a label in the prediction, as pseudo-labels have them."""

    def add(self, predicted: np.ndarray | Tensor, truth: np.ndarray | Tensor | None) -> None:
        """Count the pixels of one or several maps.

        Args:
            predicted: train ids, uint8 of any shape. VOID: no label.
            truth: the same of the true labels. None: there are none, which counts as void.

        Raises:
            ValueError: the shapes differ, or a value is neither a train id nor VOID.
        """
        predicted = np.asarray(predicted)
        truth = np.full_like(predicted, VOID) if truth is None else np.asarray(truth)
        if predicted.shape != truth.shape:
            raise ValueError(f"a prediction of {predicted.shape} pixels for a truth of {truth.shape}")
        for name, values in (("prediction", predicted), ("truth", truth)):
            if values.dtype != np.uint8:
                raise ValueError(f"the {name} must be uint8, got {values.dtype}")
        pairs = np.bincount((truth.astype(np.uint16) << 8 | predicted).ravel(), minlength=1 << 16).reshape(256, 256)
        known = [*range(self.num_classes), VOID]
        counts = pairs[np.ix_(known, known)]
        if counts.sum() != predicted.size:
            for name, totals in (("prediction", pairs.sum(0)), ("truth", pairs.sum(1))):
                if wrong := [value for value in np.flatnonzero(totals).tolist() if value not in known]:
                    raise ValueError(
                        f"the {name} has the values {wrong[:5]}, which are neither 0..{known[-2]} nor void"
                    )
        self.counts += counts

    def summed(self, ranks: Ranks) -> "PixelCounts":
        """The counts of all processes."""
        found = PixelCounts(self.num_classes)
        found.counts = ranks.sum(self.counts)
        return found

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) int64, without pixels that are void in the truth or have no label in the prediction."""
        return self.counts[:-1, :-1]


@dataclass(frozen=True)
class SegmentationAccuracy:
    """Oracle accuracy of predicted label maps. Fractions in [0, 1]. Pixels that are void in the truth do not count."""

    mean_iou: float
    """Mean IoU over the classes that occur in the truth. This is the main figure."""
    iou: dict[str, float | None]
    """Intersection over union by class name; None if the truth has no pixel of the class."""
    absent: tuple[str, ...]
    """The classes without a pixel in the truth. No mean counts them."""
    pixel_accuracy: float
    """Share of pixels whose prediction is right."""
    subsets: dict[str, float | None]
    """Mean IoU over the classes of each subset that occur in the truth; None if none does."""
    confusion: np.ndarray
    """(K, K) int64 counts, rows = truth, columns = prediction."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, dicts and lists."""
        return {
            "mean_iou": self.mean_iou,
            "iou": dict(self.iou),
            "absent": list(self.absent),
            "pixel_accuracy": self.pixel_accuracy,
            "subsets": dict(self.subsets),
            "confusion": self.confusion.tolist(),
        }


def segmentation_accuracy(
    counts: PixelCounts, classes: Sequence[str], subsets: Mapping[str, Sequence[str]] | None = None
) -> SegmentationAccuracy:
    """Oracle accuracy from the counts of all images.

    A pixel of a class that is predicted as another, or not at all, is in the union of its own class. It is also in that
    of the other class, even if the truth lacks the other class.

    Args:
        counts: of the predictions and the true label maps.
        classes: K class names.
        subsets: class names by the name of the subset, such as `{"synthia_16": SYNTHIA_16}`.

    Raises:
        ValueError: no pixel of the truth has a class.
        UserError: a subset has a class that is not in `classes`.
    """
    totals, right = _of_truth(counts), counts.confusion.diagonal()
    if not totals.any():
        raise ValueError("segmentation_accuracy: no pixel has a class")
    unions = totals + counts.confusion.sum(0) - right
    iou = {
        name: float(hits / union) if total else None
        for name, hits, union, total in zip(classes, right, unions, totals, strict=True)
    }
    return SegmentationAccuracy(
        mean_iou=_mean(iou, classes),
        iou=iou,
        absent=tuple(name for name, value in iou.items() if value is None),
        pixel_accuracy=float(right.sum() / totals.sum()),
        subsets={name: _mean(iou, chosen, name) for name, chosen in (subsets or {}).items()},
        confusion=counts.confusion.copy(),
    )


def _mean(iou: Mapping[str, float | None], chosen: Sequence[str], subset: str = "") -> float | None:
    for name in chosen:
        if name not in iou:
            raise UserError(f"subset '{subset}': there is no class '{name}'{nearest(name, list(iou))}")
    known = [iou[name] for name in chosen if iou[name] is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class LabelQuality:
    """How many pixels have a pseudo-label, and oracle figures of how many are right. Fractions in [0, 1].

    A figure is None if nothing can be counted. For a pixel that is void in the truth, no label is right or wrong.
    """

    kept: float
    """Share of all pixels that have a pseudo-label. This is no oracle figure."""
    pixels_per_class: dict[str, int]
    """Number of pixels by pseudo-label. This is no oracle figure."""
    precision: float | None
    """Share of pseudo-labels that are right."""
    precision_per_class: dict[str, float | None]
    """The same by pseudo-label."""
    recall: float | None
    """Share of pixels with a true class that have it as their pseudo-label."""
    recall_per_class: dict[str, float | None]
    """The same by true class."""
    kept_per_class: dict[str, float | None]
    """Share of pixels that have a pseudo-label, right or wrong, by true class."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers and dicts."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}


def label_quality(counts: PixelCounts, classes: Sequence[str]) -> LabelQuality:
    """Figures of pseudo-labels from the counts of all images.

    Args:
        counts: of the pseudo-labels and the true label maps.
        classes: K class names.

    Raises:
        ValueError: there are no pixels.
    """
    everything = counts.counts.sum()
    if not everything:
        raise ValueError("label_quality: there are no pixels")
    confusion, totals = counts.confusion, _of_truth(counts)
    right, labelled = confusion.diagonal(), confusion.sum(0)

    def by_class(part: np.ndarray, whole: np.ndarray) -> dict[str, float | None]:
        return {name: _share(one, all_) for name, one, all_ in zip(classes, part, whole, strict=True)}

    given = counts.counts[:, :-1].sum(0)
    return LabelQuality(
        kept=float(given.sum() / everything),
        pixels_per_class=dict(zip(classes, given.tolist(), strict=True)),
        precision=_share(right.sum(), labelled.sum()),
        precision_per_class=by_class(right, labelled),
        recall=_share(right.sum(), totals.sum()),
        recall_per_class=by_class(right, totals),
        kept_per_class=by_class(confusion.sum(1), totals),
    )


def _of_truth(counts: PixelCounts) -> np.ndarray:
    """Number of pixels of each true class, (K,)."""
    return counts.counts[:-1].sum(1)


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
