"""Oracle accuracy of a model, and metrics of a selection of pseudo-labels.

Only this module and the reports of runs read target labels. Figures that need them are called oracle. They describe a
run and never influence it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.data.domains import TargetLabels
from uda.evaluation.validators import CHUNK_ENTRIES, log_softmax
from uda.models.network import Prediction
from uda.selection.angular import avc, avh
from uda.selection.thresholds import PseudoLabels

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Accuracy:
    """Oracle accuracy of a prediction, by target labels. Fractions in [0, 1]."""

    class_mean: float
    """Mean accuracy over the classes that have a labelled image. This is the main figure."""
    overall: float
    """Share of labelled images whose prediction is right."""
    per_class: dict[str, float | None]
    """Accuracy by class name; None if the class has no labelled image."""
    confusion: np.ndarray
    """(K, K) int64 counts, rows = truth, columns = prediction."""
    ece: float
    """Expected calibration error (Guo et al., ICML 2017), 15 bins of equal width."""
    nll: float
    """Mean negative log-likelihood in nats."""
    domains: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """`class_mean` and `overall` of each of several target domains; None if a domain has no labels."""
    unknown: dict[str, Any] | None = None
    """Figures of images whose class the source lacks; None if there are none. No other figure counts these images.
    `images`: their number. `auroc_confidence`, `auroc_avc`: AUROC with which the largest softmax and the largest AVC
    separate the other images from them, 0.5 (chance) to 1."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, dicts and lists."""
        return {
            "class_mean": self.class_mean,
            "overall": self.overall,
            "per_class": dict(self.per_class),
            "confusion": self.confusion.tolist(),
            "ece": self.ece,
            "nll": self.nll,
            "domains": {name: dict(figures) for name, figures in self.domains.items()},
            "unknown": self.unknown,
        }


def accuracy(prediction: Prediction, target_labels: TargetLabels, classes: Sequence[str]) -> Accuracy:
    """Oracle accuracy of the argmax of the logits.

    Images without a label and images of classes that the source lacks are left out.

    Raises:
        ValueError: no image has a label, or lengths differ.
    """
    labels = _labels_of(prediction, target_labels)
    known = np.flatnonzero(labels >= 0)
    if len(known) == 0:
        raise ValueError("accuracy: no target image has a label")
    unknown = _unknown(prediction, labels)
    labels, domain = labels[known], target_labels.domain[known]
    predicted = prediction.logits[known].argmax(1)
    cells = np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    confusion = cells.reshape(len(classes), len(classes))
    totals = confusion.sum(1)
    hits = confusion.diagonal()
    per_class = dict(zip(classes, _shares(hits, totals), strict=True))
    log_probability, confidence = np.empty(len(known)), np.empty(len(known))
    for rows, log_p in log_softmax(prediction.logits[known]):
        log_probability[rows] = log_p[np.arange(len(log_p)), labels[rows]]
        confidence[rows] = np.exp(log_p.max(1))
    return Accuracy(
        class_mean=_mean(per_class.values()),
        overall=float(hits.sum() / totals.sum()),
        per_class=per_class,
        confusion=confusion,
        ece=_calibration_error(confidence, predicted == labels),
        nll=float(-log_probability.mean()),
        domains={
            name: _domain_accuracy(labels[domain == place], predicted[domain == place], len(classes))
            for place, name in enumerate(target_labels.names if len(target_labels.names) > 1 else ())
        },
        unknown=unknown,
    )


def _domain_accuracy(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """Class mean and overall accuracy of one target domain; None without labelled images."""
    right = labels == predicted
    shares = _shares(np.bincount(labels[right], minlength=num_classes), np.bincount(labels, minlength=num_classes))
    return {"class_mean": _mean(shares), "overall": float(right.mean()) if len(right) else None}


def _shares(hits: np.ndarray, totals: np.ndarray) -> list[float | None]:
    """Accuracy by class; None if a class has no labelled image."""
    return [float(right / total) if total else None for right, total in zip(hits, totals, strict=True)]


def _mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def _unknown(prediction: Prediction, labels: np.ndarray) -> dict[str, Any] | None:
    """`Accuracy.unknown`: figures of images whose class the source lacks; None if there are none."""
    strange = labels == UNKNOWN_CLASS
    if not strange.any():
        return None
    from sklearn.metrics import roc_auc_score

    rows = np.flatnonzero((labels >= 0) | strange)
    weight = torch.from_numpy(np.asarray(prediction.weight))
    confidence, angular = np.empty(len(rows)), np.empty(len(rows))
    for part, log_p in log_softmax(prediction.logits[rows]):
        confidence[part] = log_p.max(1)
        angular[part] = avc(torch.from_numpy(prediction.features[rows[part]]), weight).amax(1).double().numpy()
    known = labels[rows] >= 0
    figures = {"auroc_confidence": confidence, "auroc_avc": angular}
    return {
        "images": int(strange.sum()),
        **{name: float(roc_auc_score(known, score)) if known.any() else None for name, score in figures.items()},
    }


#: Number of bins of a histogram of hardness from 0 to 2 / K. An image at equal angles to all classes has 1 / K.
HARDNESS_BINS = 40


def hardness(prediction: Prediction, labels: TargetLabels) -> dict[str, Any]:
    """Mean and histogram of the AVH of labelled images with their true labels, in units of 1 / K.

    Returns:
        `mean`; `histogram`: number of images in each of HARDNESS_BINS equal bins from 0 to 2. The last bin also counts
        larger values.
    """
    truth = _labels_of(prediction, labels)
    known = np.flatnonzero(truth >= 0)
    weight = torch.from_numpy(np.asarray(prediction.weight))
    own, found = torch.from_numpy(truth[known]), np.empty(len(known), np.float32)
    step = max(1, CHUNK_ENTRIES // max(weight.shape))
    for start in range(0, len(known), step):
        part = slice(start, start + step)
        found[part] = avh(torch.from_numpy(prediction.features[known[part]]), weight, own[part]).numpy()
    found *= len(weight)
    bins = np.minimum((found * HARDNESS_BINS / 2).astype(np.int64), HARDNESS_BINS - 1)
    return {"mean": float(found.mean()), "histogram": np.bincount(bins, minlength=HARDNESS_BINS).tolist()}


def selection_metrics(
    pseudo: PseudoLabels,
    prediction: Prediction,
    reference: PseudoLabels,
    target_labels: TargetLabels | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Metrics of the selected images, compared with the selection of softmax at the same portion.

    Args:
        pseudo: the selector's choice among N images.
        prediction: the prediction that the choice was made from.
        reference: the choice of softmax at the same portion.
        target_labels: target labels for the oracle figures, which ignore images without a label. None: no labels, and
            the oracle figures are None.
        classes: K class names.

    Returns:
        A dict of plain Python values:

        - `selected`, `selected_per_class`: numbers of selected images. `flipped`: how many of them have another label
          than the class of their largest score.
        - `lambda` by class; None if the class gets no pseudo-labels.
        - Means over the selected images: `avh` and `avc` (of the pseudo-label), `confidence` (largest softmax),
          `feature_norm` (|x|_2). None if no image is selected. `avh_per_class` etc. are the same by pseudo-label.
        - Oracle: `tp_rate` (share of selected pseudo-labels that are right), `tp_rate_per_class` (by pseudo-label).
        - `overlap`: numbers of images `both`, `both_other_label` (in both, with different labels), `only_selector`,
          `only_softmax`; `jaccard`; oracle `tp_rate_only_selector`, `tp_rate_only_softmax`.

    Source: the table of inner metrics in the paper (Chen et al., ICML 2020). Its "AVH" column looks like AVC, so this
    function returns both.
    """
    truth = None if target_labels is None else _labels_of(prediction, target_labels)
    chosen = np.flatnonzero(pseudo.selected)
    counts = np.bincount(pseudo.labels[chosen], minlength=len(classes))
    return {
        "selected": len(chosen),
        "flipped": int(np.count_nonzero(pseudo.flipped[chosen])),
        "selected_per_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "lambda": {
            name: float(threshold) if np.isfinite(threshold) else None
            for name, threshold in zip(classes, pseudo.thresholds, strict=True)
        },
        "tp_rate": _hit_rate(pseudo.labels, truth, chosen),
        "tp_rate_per_class": {
            name: _hit_rate(pseudo.labels, truth, chosen[pseudo.labels[chosen] == index])
            for index, name in enumerate(classes)
        },
        **_inner_metrics(prediction, pseudo.labels, chosen, classes),
        "overlap": _overlap(pseudo, reference, truth),
    }


def _labels_of(prediction: Prediction, target_labels: TargetLabels) -> np.ndarray:
    labels = np.asarray(target_labels.reveal())
    if len(labels) != len(prediction.logits):
        raise ValueError(f"{len(labels)} target labels for a prediction of {len(prediction.logits)} images")
    return labels


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean of |accuracy - confidence| over bins ((b-1)/15, b/15], weighted by their numbers of images."""
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gap = np.bincount(bins, right, CALIBRATION_BINS) - np.bincount(bins, confidence, CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _hit_rate(labels: np.ndarray, truth: np.ndarray | None, indices: np.ndarray) -> float | None:
    """Share of right labels among the images at `indices` with a known true label.

    Every label is wrong for an image whose class the source lacks.
    """
    if truth is None:
        return None
    indices = indices[truth[indices] != NO_LABEL]
    return float(np.mean(labels[indices] == truth[indices])) if len(indices) else None


def _inner_metrics(
    prediction: Prediction, labels: np.ndarray, chosen: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Means over the chosen images, of all and by pseudo-label; None if there is no image."""
    names = ("avh", "avc", "confidence", "feature_norm")
    totals = {name: np.zeros(len(classes)) for name in names}
    counts = np.bincount(labels[chosen], minlength=len(classes))
    weight = torch.from_numpy(np.asarray(prediction.weight))
    step = max(1, CHUNK_ENTRIES // max(prediction.logits.shape[1], prediction.features.shape[1]))
    for start in range(0, len(chosen), step):
        indices = chosen[start : start + step]
        features = torch.from_numpy(prediction.features[indices])
        own = torch.from_numpy(np.asarray(labels[indices], dtype=np.int64))
        confidence = np.empty(len(indices))
        for rows, log_p in log_softmax(prediction.logits[indices]):
            confidence[rows] = np.exp(log_p.max(1))
        found = {
            "avh": avh(features, weight, own).double().numpy(),
            "avc": avc(features, weight).gather(1, own[:, None])[:, 0].double().numpy(),
            "confidence": confidence,
            "feature_norm": features.double().norm(dim=1).numpy(),
        }
        for name, values in found.items():
            totals[name] += np.bincount(labels[indices], values, len(classes))
    of_all = {name: float(total.sum() / len(chosen)) if len(chosen) else None for name, total in totals.items()}
    of_classes = {
        f"{name}_per_class": {
            known: float(value / count) if count else None
            for known, value, count in zip(classes, total, counts, strict=True)
        }
        for name, total in totals.items()
    }
    return of_all | of_classes


def _overlap(pseudo: PseudoLabels, reference: PseudoLabels, truth: np.ndarray | None) -> dict[str, Any]:
    both = pseudo.selected & reference.selected
    only_selector = np.flatnonzero(pseudo.selected & ~reference.selected)
    only_softmax = np.flatnonzero(reference.selected & ~pseudo.selected)
    union = int(both.sum()) + len(only_selector) + len(only_softmax)
    return {
        "both": int(both.sum()),
        "both_other_label": int((both & (pseudo.labels != reference.labels)).sum()),
        "only_selector": len(only_selector),
        "only_softmax": len(only_softmax),
        "jaccard": int(both.sum()) / union if union else None,
        "tp_rate_only_selector": _hit_rate(pseudo.labels, truth, only_selector),
        "tp_rate_only_softmax": _hit_rate(reference.labels, truth, only_softmax),
    }
