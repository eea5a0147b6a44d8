"""Confidence regularised self-training (CRST, Zou et al., ICCV 2019).

Model regularisers (MR*) add a term to the loss of the TARGET samples; label regularisers (LR*) replace the
one-hot pseudo-label by a soft one. With the softmax p of K classes, and CBST's thresholds lambda:

    MRL2    alpha * sum_k p_k^2
    MRENT   alpha * sum_k p_k log p_k
    MRKLD   -alpha / K * sum_k log p_k
    LRENT   y_k proportional to (p_k / lambda_k)^(1 / alpha_label)

The terms are a mean over the whole batch, source images counted, as the cross-entropy beside them is. In the official
segmentation code (yzou2/CRST) MRKLD is a mean over the target's pixels alone. With a share t of target images in a
batch its weight is alpha there, and alpha t here.

LRENT's lambdas are those of the softmax selector, whatever selector chooses the images: they divide softmax
probabilities. Where the selector's class is not the one of the largest p_k / lambda_k, the label is the selector's,
one-hot.

`create_regularizer(name, alpha, alpha_label)` builds one; `default_weights(name)` tells its two weights. A training
method adds `penalty(logits)` to the cross-entropy of the target part of a batch and nothing to the source part,
and asks `soft_labels` once a round, after the selection.
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

# MRKLD's and LRENT's are the official segmentation code's; that code gives none for MRL2 and MRENT, whose terms are of
# the same order as MRKLD's, so they take MRKLD's.
_MODEL_WEIGHT = 0.1
_LABEL_WEIGHT = 0.25

_CHUNK_ENTRIES = 1 << 20

# The selection divides probabilities where LRENT subtracts logarithms: two ratios nearer than this are equal.
_EQUAL_RATIOS = 1e-9


@dataclass(frozen=True)
class Regularizer:
    """What all kinds share: no penalty, hard labels, and two checked weights.

    alpha: weight of the term added to the loss, at least 0; kinds without such a term ignore it.
    alpha_label: temperature of the soft label, above 0; kinds with hard labels ignore it.
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
        """Term to add to the cross-entropy of each target sample: (B, K) -> (B,), at least float32."""
        return torch.zeros(len(logits), dtype=_log_probabilities(logits[:0]).dtype, device=logits.device)

    def soft_labels(self, logits: ArrayLike, thresholds: ArrayLike, hard: ArrayLike) -> NDArray[np.float32]:
        """Training targets: logits (N, K), softmax's lambda (K,), hard labels (N,) -> (N, K) float32, rows sum to 1."""
        logits, thresholds, hard = _check_selection(logits, thresholds, hard)
        return _one_hot(hard, len(thresholds))


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("none")
class NoRegularizer(Regularizer):
    """No regulariser: plain CBST, hard pseudo-labels and cross-entropy alone."""


@REGULARIZERS.register("mrl2")
class ModelL2(Regularizer):
    """MRL2: penalises alpha * sum p^2 on target samples (default alpha 0.1)."""

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        return self.alpha * (2 * _log_probabilities(logits)).exp().sum(dim=1)


@REGULARIZERS.register("mrent")
class ModelEntropy(Regularizer):
    """MRENT: penalises the negative entropy, alpha * sum p log p, on target samples (default alpha 0.1)."""

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        log_p = _log_probabilities(logits)
        return self.alpha * (log_p.exp() * log_p).sum(dim=1)


@REGULARIZERS.register("mrkld")
class ModelKLD(Regularizer):
    """MRKLD: pulls the softmax of target samples to uniform, -alpha * mean log p (default alpha 0.1).

    Up to a scale the same as uniform label smoothing with eps = alpha / (1 + alpha).
    """

    penalises = True

    def penalty(self, logits: Tensor) -> Tensor:
        return -self.alpha * _log_probabilities(logits).mean(dim=1)


@REGULARIZERS.register("lrent")
class LabelEntropy(Regularizer):
    """LRENT: soft pseudo-labels in proportion to (p / lambda)^(1 / alpha_label) (default alpha_label 0.25)."""

    softens = True

    def soft_labels(self, logits: ArrayLike, thresholds: ArrayLike, hard: ArrayLike) -> NDArray[np.float32]:
        """Soft targets: logits (N, K), softmax's lambda (K,), hard labels (N,) -> (N, K) float32, rows sum to 1.

        Each row's largest entry is at its hard label. Where (p / lambda) is largest at another class, the row is
        one-hot; so are all rows where every lambda is infinite. A class with an infinite lambda gets 0 in the others.
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
    """MRKLD and LRENT together: the penalty of the one, the soft labels of the other."""


def default_weights(name: str) -> dict[str, float]:
    """Default weights of the named regulariser, `{"alpha": ..., "alpha_label": ...}`, 0 for a term it has not."""
    kind = REGULARIZERS[name]
    return {
        "alpha": _MODEL_WEIGHT if kind.penalises else 0.0,
        "alpha_label": _LABEL_WEIGHT if kind.softens else 0.0,
    }


def create_regularizer(name: str, alpha: float | None = None, alpha_label: float | None = None) -> Regularizer:
    """The named regulariser, with its default for a weight that is None.

    Raises UserError for an unknown name and for a weight that the kind cannot take.
    """
    weights = default_weights(name)
    return REGULARIZERS[name](
        alpha=weights["alpha"] if alpha is None else alpha,
        alpha_label=weights["alpha_label"] if alpha_label is None else alpha_label,
    )


def lrent_keeps(logits: ArrayLike, thresholds: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """CRST's own rule of which samples LRENT trains on: logits (N, K), lambda (K,) -> (N,) bool.

    A sample is kept if CE(y, p) + alpha * sum y log y < -sum y log lambda. With y = (p / lambda)^(1 / alpha) / Z the
    two sides differ by -alpha * log Z, so the rule is Z = sum_k (p_k / lambda_k)^(1 / alpha) > 1. Unlike the soft
    label it depends on the lambdas' scale: they must be those of the softmax selector. Nothing is kept
    where all lambdas are infinite.
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
    """log (p / lambda)^(1 / alpha) by chunks of rows, in double precision; -inf where lambda is infinite."""
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
