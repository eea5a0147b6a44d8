"""Signs that predictions on the target fall onto few classes, and classes without a pseudo-label. No label is needed.

Effective number of classes: the exponential of the entropy of the classes' shares (Hill number of order 1). It is 1
where all images are of one class, and K where all K classes are alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uda.models.network import Prediction

#: Predictions fall onto few classes when their effective number, less one, is below this share of the source's.
#: Accuracies by class bound it from below: those in results/digits.csv at 8.4 of 10; the ADR that collapsed is at 1.0.
FEW = 0.25
#: A class may be expected in the target when by the source's shares so many images would be of it. That none is would
#: have a probability of exp(-5), less than one per cent.
EXPECTED = 5
MOST_NAMES = 8

#: What helps, by the section of the config that trained the model.
CURES = {
    "source": "a longer source stage or a lower source.optim.lr may help, or transforms under which the domains look "
    "alike",
    "self_training": "a lower self_training.optim.lr, a higher self_training.portion.start or another "
    "self_training.selector may help",
    "adaptation": "a lower adaptation.optim.lr may help, or a lower weight of the method's loss (method_options)",
}


def predictions(prediction: Prediction) -> np.ndarray:
    """How many images are predicted as each class, (K,) int64."""
    return np.bincount(prediction.logits.argmax(1), minlength=prediction.logits.shape[1])


def effective_classes(counts: np.ndarray) -> float:
    """The effective number of classes of some counts (K,), 1 to K; 0 where there are no images."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def spread(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What a report says of predicted counts (K,): each class's, the effective number, the largest class's share."""
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
    """What is wrong with the spread of a model's predictions, a sentence each.

    Args:
        classes: K names.
        predicted: (K,) target images predicted as each class.
        source: (K,) source images of each class.
        begun_with: (K,) what the source model predicted, where there is one.
        partial: the target has fewer classes than the source on purpose: the spread is compared with the source
            model's predictions in place of the source's labels, and classes without an image are not named.
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
            f"predicted as {classes[largest]} (effective number of classes {effective:.1f}; {whose} "
            f"{effective_classes(reference):.1f})"
        )
    without = np.flatnonzero((predicted == 0) & _expected(source, total))
    if len(without) and not partial:
        names = _names(without, classes, begun_with, "the source model predicted")
        found.append(f"no target image is predicted as {len(without)} of {len(classes)} classes: {names}")
    return found


def classes_without_labels(
    classes: Sequence[str],
    selected: np.ndarray,
    source: np.ndarray,
    images: int,
    chosen_from: np.ndarray | None = None,
    partial: bool = False,
) -> list[str]:
    """A sentence that names the classes without a pseudo-label, if there are any.

    Args:
        classes: K names.
        selected: (K,) target images with a pseudo-label of each class.
        source: (K,) source images of each class.
        images: N, all target images.
        chosen_from: (K,) what the model predicted that the choice was made by, where it is known.
        partial: the target has fewer classes than the source on purpose, so nothing is said.
    """
    without = np.flatnonzero((selected == 0) & _expected(source, images))
    if partial or not len(without) or not selected.any():  # that nothing is selected is said where it happens
        return []
    names = _names(without, classes, chosen_from, "images predicted:")
    return [f"{len(without)} of {len(classes)} classes have no pseudo-label: {names}"]


def _expected(source: np.ndarray, images: int) -> np.ndarray:
    """Whether by the source's shares a target of so many images would have EXPECTED of a class, (K,)."""
    return images * source >= EXPECTED * max(source.sum(), 1)


def _names(which: np.ndarray, classes: Sequence[str], counts: np.ndarray | None, of: str) -> str:
    """The first of some classes by name, those with a count with it."""
    told = [classes[k] + (f" ({of} {counts[k]})" if counts is not None and counts[k] else "") for k in which]
    more = len(told) - MOST_NAMES
    return ", ".join(told[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
