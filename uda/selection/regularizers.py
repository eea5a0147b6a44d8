"""Confidence regularised self-training (CRST, Zou et al., ICCV 2019).

Model regularisers (MR*) add a term to the loss of the target images. Label regularisers (LR*) replace the one-hot
pseudo-label by a soft one. With the softmax p of K classes and CBST's thresholds lambda:

    MRL2    alpha * sum_k p_k^2
    MRENT   alpha * sum_k p_k log p_k
    MRKLD   -alpha / K * sum_k log p_k
    LRENT   y_k proportional to (p_k / lambda_k)^(1 / alpha_label)

The cross-entropy and the terms are means over the whole batch, including source images. In the official segmentation
code (yzou2/CRST), MRKLD is a mean over the target's pixels only. With a share t of target images in a batch, its weight
is alpha in that code and alpha t in uda.

LRENT divides softmax probabilities by its lambdas. So the lambdas are those of the softmax selector, even if another
selector chooses the images. If the selector's class does not have the largest p_k / lambda_k, the label is one-hot at
the selector's class.

`create_regularizer(name, alpha, alpha_label)` builds a regulariser. `default_weights(name)` gives its two default
weights. A training method adds `penalty(logits)` to the cross-entropy of the target part of a batch, and nothing to the
source part. It calls `soft_labels` once per round, after the selection.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.selection.thresholds import ArrayLike, to_numpy

# The weights of MRKLD and LRENT are from the official segmentation code. It has none for MRL2 and MRENT. Their terms
# are of the same order as MRKLD's, so they have the same weight.
_MODEL_WEIGHT = 0.1
_LABEL_WEIGHT = 0.25

_CHUNK_ENTRIES = 1 << 20

# The selection divides probabilities, but LRENT subtracts logarithms. Ratios closer than this count as equal.
_EQUAL_RATIOS = 1e-9


@dataclass(frozen=True)
class Regularizer:
    """Base of all regularisers: no penalty, hard labels, and two checked weights.

    alpha: weight of the term added to the loss, at least 0. Kinds without a term ignore it.
    alpha_label: temperature of the soft label, above 0. Kinds with hard labels ignore it.
    """

    alpha: float = _MODEL_WEIGHT
    alpha_label: float = _LABEL_WEIGHT

    penalises = False
    softens = False

    def __post_init__(self) -> None:
        if self.penalises and not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise UserError(f"regularizer: alpha must be a number of at least 0, got {self.alpha}")
        if self.softens and not (math.isfinite(self.alpha_label) and self.alpha_label > 0):
            raise UserError(
                f"regularizer: alpha_label must be a number above 0, got {self.alpha_label} "
                "(choose a regularizer without LRENT for hard labels)"
            )

    def penalty(self, logits: Tensor) -> Tensor:
        """Term to add to the cross-entropy of each target image: (B, K) -> (B,), at least float32."""
        return torch.zeros(len(logits), dtype=_log_probabilities(logits[:0]).dtype, device=logits.device)

    def soft_labels(self, logits: ArrayLike, thresholds: ArrayLike, hard: ArrayLike) -> NDArray[np.float32]:
        """Training targets: logits (N, K), softmax's lambda (K,), hard labels (N,) -> (N, K) float32, rows sum to 1."""
        logits, thresholds, hard = _check_selection(logits, thresholds, hard)
        return _one_hot(hard, len(thresholds))


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("none")
class NoRegularizer(Regularizer):
    """No regulariser: plain CBST, with hard pseudo-labels and only cross-entropy."""


@REGULARIZERS.register("mrl2")
class ModelL2(Regularizer):
    """MRL2: penalises alpha * sum p^2 on target images (default alpha 0.1)."""

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        return self.alpha * (2 * _log_probabilities(logits)).exp().sum(dim=1)


@REGULARIZERS.register("mrent")
class ModelEntropy(Regularizer):
    """MRENT: penalises the negative entropy, alpha * sum p log p, on target images (default alpha 0.1)."""

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        log_p = _log_probabilities(logits)
        return self.alpha * (log_p.exp() * log_p).sum(dim=1)


@REGULARIZERS.register("mrkld")
class ModelKLD(Regularizer):
    """MRKLD: pulls the softmax of target images towards uniform, -alpha * mean log p (default alpha 0.1).

    Up to a factor, this is uniform label smoothing with eps = alpha / (1 + alpha).
    """

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        return -self.alpha * _log_probabilities(logits).mean(dim=1)


@REGULARIZERS.register("lrent")
class LabelEntropy(Regularizer):
    """LRENT: soft pseudo-labels proportional to (p / lambda)^(1 / alpha_label) (default alpha_label 0.25)."""

    softens = True

    def soft_labels(self, logits: ArrayLike, thresholds: ArrayLike, hard: ArrayLike) -> NDArray[np.float32]:
        """Soft targets: logits (N, K), softmax's lambda (K,), hard labels (N,) -> (N, K) float32, rows sum to 1.

        Each row's largest entry is at its hard label. A row is one-hot if p / lambda is largest at another class. All
        rows are one-hot if every lambda is infinite. Otherwise a class with an infinite lambda gets 0.
        """
        logits, thresholds, hard = _check_selection(logits, thresholds, hard)
        labels = _one_hot(hard, len(thresholds))
        if np.isinf(thresholds).all():
            return labels
        for part, powers in _log_powers(logits, thresholds, self.alpha_label):
            of_hard = np.take_along_axis(powers, hard[part, None], axis=1)[:, 0]
            agrees = of_hard >= powers.max(axis=1) - _EQUAL_RATIOS / self.alpha_label
            labels[part][agrees] = softmax(powers[agrees], axis=1)
        return labels


@REGULARIZERS.register("mrkld_lrent")
class ModelKLDLabelEntropy(ModelKLD, LabelEntropy):
    """MRKLD and LRENT together: MRKLD's penalty and LRENT's soft labels."""


def default_weights(name: str) -> dict[str, float]:
    """Default weights of the named regulariser, `{"alpha": ..., "alpha_label": ...}`. 0 for a term that it lacks."""
    kind = REGULARIZERS[name]
    return {
        "alpha": _MODEL_WEIGHT if kind.penalises else 0.0,
        "alpha_label": _LABEL_WEIGHT if kind.softens else 0.0,
    }


def create_regularizer(name: str, alpha: float | None = None, alpha_label: float | None = None) -> Regularizer:
    """The named regulariser. A weight of None means its default.

    Raises UserError for an unknown name or a weight outside of its range.
    """
    weights = default_weights(name)
    return REGULARIZERS[name](
        alpha=weights["alpha"] if alpha is None else alpha,
        alpha_label=weights["alpha_label"] if alpha_label is None else alpha_label,
    )


def lrent_keeps(logits: ArrayLike, thresholds: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """CRST's original rule for the images that LRENT trains on: logits (N, K), lambda (K,) -> (N,) bool.

    An image is kept if CE(y, p) + alpha * sum y log y < -sum y log lambda. With y = (p / lambda)^(1 / alpha) / Z, the
    two sides differ by -alpha * log Z. So the rule is Z = sum_k (p_k / lambda_k)^(1 / alpha) > 1. Unlike the soft
    label, the rule depends on the scale of the lambdas, so they must be those of the softmax selector. If all lambdas
    are infinite, no image is kept.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    logits, thresholds, _ = _check_selection(logits, thresholds, None)
    keeps = np.zeros(len(logits), dtype=bool)
    if not np.isinf(thresholds).all():
        for part, powers in _log_powers(logits, thresholds, alpha):
            keeps[part] = logsumexp(powers, axis=1) > 0
    return keeps


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits if logits.dtype.itemsize >= 4 else logits.float(), dim=1)


def _log_powers(
    logits: NDArray, thresholds: NDArray[np.float64], alpha: float
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """log (p / lambda)^(1 / alpha) in chunks of rows, in double precision. -inf if lambda is infinite."""
    rows = max(1, _CHUNK_ENTRIES // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        yield part, (log_softmax(logits[part].astype(np.float64), axis=1) - np.log(thresholds)) / alpha


def _one_hot(hard: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    labels = np.zeros((len(hard), num_classes), dtype=np.float32)
    labels[np.arange(len(hard)), hard] = 1
    return labels


def _check_selection(
    logits: ArrayLike, thresholds: ArrayLike, hard: ArrayLike | None
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.int64] | None]:
    logits, thresholds = to_numpy(logits), to_numpy(thresholds).astype(np.float64)
    if logits.ndim != 2 or thresholds.shape != logits.shape[1:]:
        raise ValueError(f"logits must be (N, K) and thresholds (K,), got {logits.shape} and {thresholds.shape}")
    if not (thresholds > 0).all():
        raise ValueError(f"thresholds must be above 0, got {thresholds[~(thresholds > 0)][0]}")
    if hard is None:
        return logits, thresholds, None
    hard = to_numpy(hard)
    if hard.shape != logits.shape[:1]:
        raise ValueError(f"hard labels must have shape ({len(logits)},), one for each row, got {hard.shape}")
    if hard.size and not 0 <= hard.min() <= hard.max() < len(thresholds):
        raise ValueError(f"hard labels must lie in 0..{len(thresholds) - 1}, got {hard.min()}..{hard.max()}")
    return logits, thresholds, hard.astype(np.int64)
