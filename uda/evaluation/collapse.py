"""Signs of collapse: predictions that fall onto few classes, and classes without pseudo-labels. Needs no labels.

The effective number of classes is the exponential of the entropy of the classes' shares (Hill number of order 1). It is
1 if all images have one class, and K if all K classes have the same share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uda.core.plain_text import short_name
from uda.models.network import Prediction

#: Predictions fall onto few classes if their effective number minus 1 is below this share of the source's. For runs in
#: results/digits.csv, accuracies by class give at least 8.4 of 10 effective classes. A collapsed ADR run has 1.0.
FEW = 0.25
#: A class is expected in the target if the source's shares predict at least this many images of it. The probability of
#: none is then exp(-5), less than one per cent.
EXPECTED = 5
MOST_NAMES, MOST_OF_NAME = 8, 40

#: Advice by the section of the config that trained the model.
CURES = {
    "source": "a longer source stage or a lower source.optim.lr may help, or transforms that make the domains look "
    "similar",
    "self_training": "a lower self_training.optim.lr, a higher self_training.portion.start or another "
    "self_training.selector may help",
    "adaptation": "a lower adaptation.optim.lr may help, or a lower weight of the method's loss (method_options)",
}


def predictions(prediction: Prediction) -> np.ndarray:
    """Number of images predicted as each class, (K,) int64."""
    return np.bincount(prediction.logits.argmax(1), minlength=prediction.logits.shape[1])


def effective_classes(counts: np.ndarray) -> float:
    """The effective number of classes for counts (K,), 1 to K; 0 without images."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def spread(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Figures for a report from counts of predictions (K,): by class, the effective number and the largest share."""
    return {
        "predicted_per_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "effective_classes": effective_classes(counts),
        "largest_share": float(counts.max() / max(counts.sum(), 1)),
    }


def signs_of_collapse(
    classes: Sequence[str],
    predicted: np.ndarray,
    source: np.ndarray,
    begun_with: np.ndarray | None = None,
    partial: bool = False,
) -> list[str]:
    """Signs of collapse in a model's predictions, one sentence each.

    Args:
        classes: K class names.
        predicted: (K,) numbers of target images predicted as each class.
        source: (K,) numbers of source images of each class.
        begun_with: (K,) numbers predicted by the source model; None if there is none.
        partial: whether the target has fewer classes than the source on purpose. Then the spread is compared with the
            source model's predictions instead of the source labels, and missing classes are not reported.
    """
    found = []
    total = predicted.sum()
    reference = begun_with if partial else source
    whose = "the source model's predictions have" if partial else "the source's labels have"
    effective = effective_classes(predicted)
    # A small target does not show all classes of the source.
    if reference is not None and effective - 1 < FEW * (min(effective_classes(reference), total / EXPECTED) - 1):
        largest = int(predicted.argmax())
        found.append(
            f"the predictions fall onto few classes: {100 * predicted[largest] / total:.0f} % of the target images are "
            f"predicted as {_short(classes[largest])} (effective number of classes {effective:.1f}; {whose} "
            f"{effective_classes(reference):.1f})"
        )
    without = np.flatnonzero((predicted == 0) & _expected(source, total))
    if len(without) and not partial:
        names = _names(without, classes, begun_with, "the source model predicted")
        are = "is" if len(without) == 1 else "are"
        found.append(f"{len(without)} of {len(classes)} classes {are} never predicted on the target: {names}")
    return found


def classes_without_labels(
    classes: Sequence[str],
    selected: np.ndarray,
    source: np.ndarray,
    images: int,
    chosen_from: np.ndarray | None = None,
    partial: bool = False,
) -> list[str]:
    """A sentence that names the classes without pseudo-labels; empty if there are none.

    Args:
        classes: K class names.
        selected: (K,) numbers of selected target images by pseudo-label.
        source: (K,) numbers of source images of each class.
        images: number of all target images.
        chosen_from: (K,) numbers predicted by the model that selected the images; None if unknown.
        partial: whether the target has fewer classes than the source on purpose. Then the result is empty.
    """
    without = np.flatnonzero((selected == 0) & _expected(source, images))
    if partial or not len(without) or not selected.any():  # an empty selection has its own message
        return []
    names = _names(without, classes, chosen_from, "images predicted:")
    have = "has" if len(without) == 1 else "have"
    return [f"{len(without)} of {len(classes)} classes {have} no pseudo-label: {names}"]


def _expected(source: np.ndarray, images: int) -> np.ndarray:
    """Whether a target of `images` images has at least EXPECTED of each class by the source's shares, bool (K,)."""
    return images * source >= EXPECTED * max(source.sum(), 1)


def _names(which: np.ndarray, classes: Sequence[str], counts: np.ndarray | None, of: str) -> str:
    """Names of the first classes in `which`, with their counts if above 0."""
    first = which[:MOST_NAMES]
    told = [_short(classes[k]) + (f" ({of} {counts[k]})" if counts is not None and counts[k] else "") for k in first]
    more = len(which) - len(first)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _short(name: str) -> str:
    return short_name(name, MOST_OF_NAME)
