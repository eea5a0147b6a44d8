"""Pseudo-labels of a round: scores, thresholds over all processes, labels, and their state for a checkpoint."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from uda.adaptation.config import AdaptationConfig
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.models.network import Prediction
from uda.selection.regularizers import create_regularizer, lrent_keeps
from uda.selection.selectors import target_scores
from uda.selection.streaming_thresholds import stream_thresholds
from uda.selection.thresholds import PseudoLabels, class_balanced_thresholds, portion_schedule, select


@dataclass(frozen=True)
class RoundLabels:
    """The pseudo-labels of all target images that a round trains on, and figures about them."""

    pseudo: PseudoLabels
    """The selector's choice."""
    reference: PseudoLabels
    """What softmax would have chosen at the same portion."""
    labels: np.ndarray
    """(N, K) float32 label distributions: one-hot, or LRENT's soft labels."""
    portion: float
    """Share of each class that was to be selected."""
    metrics: dict
    """`selection_metrics` of the choice; empty on all ranks except 0."""

    @property
    def selected(self) -> np.ndarray:
        """Numbers of the selected images, in ascending order."""
        return self.pseudo.indices

    def labels_of(self, images: np.ndarray) -> np.ndarray:
        """Label distributions (n, K) of images by number (n,)."""
        return self.labels[images]

    def state(self) -> dict[str, object]:
        """State for a checkpoint: tensors, numbers and strings only."""
        arrays = {
            name: {
                field: torch.from_numpy(np.ascontiguousarray(getattr(chosen, field)))
                for field in chosen.__dataclass_fields__
            }
            for name, chosen in (("pseudo", self.pseudo), ("reference", self.reference))
        }
        return {**arrays, "labels": torch.from_numpy(self.labels), "portion": self.portion, "metrics": self.metrics}

    @classmethod
    def from_state(cls, state: dict) -> "RoundLabels":
        """The inverse of `state`."""
        pseudo, reference = (
            PseudoLabels(**{field: value.numpy() for field, value in state[name].items()})
            for name in ("pseudo", "reference")
        )
        return cls(pseudo, reference, state["labels"].numpy(), state["portion"], state["metrics"])


def label_target(
    mine: Prediction,
    config: AdaptationConfig,
    round_index: int,
    count: int,
    ranks: Ranks,
    target_classes: np.ndarray | None = None,
) -> RoundLabels:
    """Pseudo-labels of a round from the current model's prediction on the target.

    The selector scores all images. The threshold lambda_k selects the round's portion of each class. The regulariser
    may make the labels soft, with the lambdas of softmax.
    Each process scores its own rows. Thresholds and choice are those of all rows.

    Args:
        mine: prediction of this process's target images.
        config: the run's config.
        round_index: number of the round, from 0.
        count: target images of all processes.
        ranks: the processes.
        target_classes: bool (K,), the classes of a partial target. The others are ignored. None: all classes.
    """
    settings = config.self_training
    portion = portion_schedule(round_index, settings.portion.start, settings.portion.step, settings.portion.max)
    if target_classes is not None:
        mine = mine.of_classes(target_classes)
    features, logits, weight = (torch.from_numpy(a) for a in (mine.features, mine.logits, mine.weight))

    def chosen_by(selector: str) -> PseudoLabels:
        scores = target_scores(selector, features, logits, weight)
        return select(scores, _thresholds(scores, portion, ranks), settings.labels)

    try:
        pseudo = chosen_by(settings.selector)
    except ValueError as error:
        raise UserError(f"selector '{settings.selector}': {error}") from None
    reference = pseudo if settings.selector == "softmax" else chosen_by("softmax")
    regularizer = create_regularizer(settings.regularizer, settings.alpha, settings.alpha_label)
    # Soft labels are softmax probabilities, so they are divided by the lambdas of softmax for every selector.
    labels = np.asarray(regularizer.soft_labels(logits, reference.thresholds, pseudo.labels), np.float32)
    if settings.keep == "lrent":
        pseudo = replace(pseudo, selected=lrent_keeps(logits, pseudo.thresholds, regularizer.alpha_label))
    if target_classes is not None:
        pseudo, reference = (_among_all(chosen, target_classes) for chosen in (pseudo, reference))
        labels = _columns(labels, target_classes, 0)
    pseudo, reference = (_of_all(chosen, count, ranks) for chosen in (pseudo, reference))
    return RoundLabels(pseudo, reference, ranks.gather_rows(labels, count), portion, {})


def _thresholds(scores: Tensor, portion: float, ranks: Ranks) -> np.ndarray:
    if ranks.world == 1:
        return class_balanced_thresholds(scores, portion)
    return stream_thresholds(lambda: [scores], portion, scores.shape[1], reduce=ranks.sum)


def _among_all(chosen: PseudoLabels, which: np.ndarray) -> PseudoLabels:
    """A choice among the classes `which` as a choice among all K classes. The other classes get no image."""
    thresholds = _columns(chosen.thresholds, which, np.inf)
    return replace(chosen, labels=np.flatnonzero(which)[chosen.labels], thresholds=thresholds)


def _columns(values: np.ndarray, which: np.ndarray, others: float) -> np.ndarray:
    """Values of the classes `which`, (..., k), as values of all classes, (..., K), filled with `others`."""
    filled = np.full((*values.shape[:-1], len(which)), others, values.dtype)
    filled[..., which] = values
    return filled


def _of_all(chosen: PseudoLabels, count: int, ranks: Ranks) -> PseudoLabels:
    """The choice of all processes, gathered from the rows of each."""
    rows = ("labels", "scores", "ratios", "selected", "flipped")
    return replace(chosen, **{field: ranks.gather_rows(getattr(chosen, field), count) for field in rows})
