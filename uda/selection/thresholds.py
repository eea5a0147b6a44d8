"""Class-balanced thresholds and the pseudo-labels they give (CBST, Zou et al., ECCV 2018).

Scores S (N, K) come from any selector. Each class k has its own threshold lambda_k. It is the score that keeps the best
portion p of the images whose largest score is at k. There are two rules for the label of an image:

- `ratio`, the rule of the paper: the class of the largest ratio S_ik / lambda_k. The image is selected if that ratio is
  at least 1. The label may be another class than the one with the largest score.
- `own`: the class of the largest score. The image is selected if this score is at least the lambda of its class. If no
  scores are equal, exactly the best portion p of each class is selected.

If scores or ratios are equal, the class with the lowest index wins. Every image whose score equals lambda exactly is
selected, so ties at the threshold can select more than floor(p * n_k) images.

`class_balanced_thresholds` is the definition. Use it if the scores fit in memory. If they do not, or if they are on
several processes, `uda.selection.streaming_thresholds` finds the same thresholds, bit for bit, from chunks of rows.

All functions take numpy arrays or torch tensors, return numpy arrays and do not change their arguments.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

ArrayLike = NDArray | torch.Tensor

#: How an image gets its label, see above.
LabelRule = Literal["ratio", "own"]

_CHUNK_ENTRIES = 1 << 17


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of one round: label, score and selection of every target image.

    labels: (N,) int64, the class of the largest ratio, or of the largest score by the rule `own` or if all thresholds
        are infinite.
    scores: (N,) the selector's score of that label.
    ratios: (N,) float64, that score divided by the label's threshold. 0 if all thresholds are infinite.
    selected: (N,) bool, whether the ratio is at least 1.
    flipped: (N,) bool, whether the label is another class than the one of the largest score.
    thresholds: (K,) float64, lambda. +inf for a class that no image may get as label.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.floating]
    ratios: NDArray[np.float64]
    selected: NDArray[np.bool_]
    flipped: NDArray[np.bool_]
    thresholds: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of selected images."""
        return int(np.count_nonzero(self.selected))

    @property
    def indices(self) -> NDArray[np.int64]:
        """Rows of the selected images, in ascending order: (count,)."""
        return np.flatnonzero(self.selected)

    def counts_per_class(self) -> NDArray[np.int64]:
        """Number of selected images of each class: (K,)."""
        return np.bincount(self.labels[self.selected], minlength=len(self.thresholds))


def portion_schedule(round_index: int, start: float, step: float, maximum: float) -> float:
    """Portion of each class to select in a round (0, 1, ...): min(start + round_index * step, maximum).

    It is rounded to ten decimals, so that 0.2 + 2 * 0.05 is 0.3. Raises ValueError for a negative round or a portion
    outside of [0, 1].
    """
    if round_index < 0:
        raise ValueError(f"rounds count from 0, got round {round_index}")
    portion = round(min(start + round_index * step, maximum), 10)
    if not 0 <= portion <= 1:
        raise ValueError(
            f"round {round_index} would select a portion of {portion}, which is not in [0, 1] "
            f"(start {start}, step {step}, maximum {maximum})"
        )
    return portion


def exact_portion(portion: float) -> Fraction:
    """The decimal number as written: 0.29 is 29/100. Raises ValueError if it is outside of [0, 1]."""
    share = Fraction(str(portion)) if np.isfinite(portion) else None
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"portion must lie in [0, 1], got {portion}")
    return share


def class_balanced_thresholds(scores: ArrayLike, portion: float) -> NDArray[np.float64]:
    """Thresholds lambda that keep the best `portion` of each class: scores (N, K) -> (K,) float64.

    n_k images have their largest score at class k. lambda_k is the floor(portion * n_k)-th largest of those scores. If
    that number is 0, lambda_k is +inf, and no image may get the label k. The floor is exact for the decimal number as
    written: 0.29 of 100 is 29, although 0.29 * 100 is 28.999... in floating point. Raises ValueError for a portion
    outside of [0, 1], and for rows that contain NaN or have no finite largest score above 0.
    """
    share = exact_portion(portion)
    scores = score_matrix(scores)
    classes, best = best_classes(scores)
    counts = np.bincount(classes, minlength=scores.shape[1])
    # numpy uses its fast radix sort for 16-bit keys.
    key = classes.astype(np.int16) if scores.shape[1] <= np.iinfo(np.int16).max else classes
    best_by_class = best[np.argsort(key, kind="stable")]
    thresholds = np.full(scores.shape[1], np.inf)
    stop = 0
    for k, count in enumerate(counts.tolist()):
        start, stop = stop, stop + count
        keep = floor(share * count)
        if keep > 0:
            # Counted from the bottom, because [-keep] would be the lowest score for a keep of 0.
            rank = count - keep
            thresholds[k] = np.partition(best_by_class[start:stop], rank)[rank]
    return thresholds


def select(scores: ArrayLike, thresholds: ArrayLike, rule: LabelRule = "ratio") -> PseudoLabels:
    """Labels of scores (N, K) with thresholds (K,), by a rule. An image is selected if its label's ratio is at least 1.

    By the rule `ratio`, a class with an infinite threshold is never a label, unless all thresholds are infinite. Then
    the labels are the classes of the largest score, the ratios are 0 and nothing is selected. By the rule `own`, an
    image of such a class keeps its label, has the ratio 0 and is not selected. Raises ValueError for shapes that do not
    match, a threshold that is not above 0, and rows that contain NaN or have no finite largest score above 0.
    """
    scores = score_matrix(scores)
    thresholds = to_numpy(thresholds).astype(np.float64)
    if thresholds.shape != scores.shape[1:]:
        raise ValueError(f"thresholds must have shape ({scores.shape[1]},), one for each class, got {thresholds.shape}")
    if not (thresholds > 0).all():
        raise ValueError(f"thresholds must be above 0, got {thresholds[~(thresholds > 0)][0]}")
    labels, best = best_classes(scores)
    closed = np.isinf(thresholds)
    if rule == "own" or closed.all():
        ratios = best / thresholds[labels]
        return PseudoLabels(labels, best, ratios, ratios >= 1, np.zeros(len(labels), bool), thresholds)
    own = labels.copy()
    ratios = np.empty(len(scores))
    for part in _row_chunks(scores):
        # In double precision, the ratio is at least 1 exactly if the score is at least the threshold.
        quotients = np.divide(scores[part], thresholds, dtype=np.float64)
        quotients[:, closed] = -np.inf
        labels[part] = quotients.argmax(axis=1)
        ratios[part] = _at(quotients, labels[part])
    return PseudoLabels(labels, _at(scores, labels), ratios, ratios >= 1, labels != own, thresholds)


def to_numpy(values: ArrayLike) -> NDArray:
    """A numpy array, at least float32 if floating. It is not copied if that is possible."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return values.numpy()
    values = np.asarray(values)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def score_matrix(scores: ArrayLike) -> NDArray[np.floating]:
    """Scores as a floating array (N, K). Integers become float64. Raises ValueError for another shape."""
    scores = to_numpy(scores)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores must be (N, K) with K > 0, got {scores.shape}")
    return scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)


def best_classes(scores: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Class and value of each row's largest score: (N, K) -> (N,), (N,). Raises ValueError as `refuse_unusable`."""
    classes = scores.argmax(axis=1)
    best = _at(scores, classes)  # argmax gives the first NaN of a row, so a NaN is seen here
    refuse_unusable(best)
    return classes, best


def refuse_unusable(best: NDArray) -> None:
    """Raise ValueError if a row's largest score in `best` (N,) is NaN, infinite or not above 0."""
    if not best.size or (best.min() > 0 and best.max() < np.inf):  # min() gives NaN if there is one
        return
    bad = ~(np.isfinite(best) & (best > 0))
    raise ValueError(
        f"{np.count_nonzero(bad)} of {len(best)} rows of scores contain NaN or have no finite largest score above 0 "
        f"(the first is row {bad.argmax()}): scores are divided by thresholds, so a selector's scores must be positive"
    )


def _at(matrix: NDArray, columns: NDArray[np.int64]) -> NDArray:
    """The entry of each row in its own column: (N, K), (N,) -> (N,)."""
    return matrix[np.arange(len(matrix)), columns]


def _row_chunks(matrix: NDArray) -> list[slice]:
    """Slices of rows that are small enough for temporary arrays to stay in the cache."""
    rows = max(1, _CHUNK_ENTRIES // matrix.shape[1])
    return [slice(start, start + rows) for start in range(0, len(matrix), rows)]
