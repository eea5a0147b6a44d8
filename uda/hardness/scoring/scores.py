"""Scores of labelled images from a classifier's outputs: hardness and confidence.

x is the input of the last linear layer, w_1..w_K are the rows of its weight, z are the logits, p is their softmax, y is
the label, and theta_k is the angle between x and w_k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uda.core.registry import Registry
from uda.hardness.scoring.score_table import ScoreTable
from uda.models.network import Prediction
from uda.selection.angular import angles, avc, avh

#: Number of entries of the largest array of a chunk.
CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Outputs:
    """The inputs of a score: rows of a prediction."""

    features: Tensor
    """(N, D) float32."""
    logits: Tensor
    """(N, K) float64."""
    weight: Tensor
    """(K, D) float32."""
    labels: Tensor
    """(N,) int64, 0..K-1."""

    @property
    def log_p(self) -> Tensor:
        """The logarithm of p, (N, K), in nats."""
        return self.logits.log_softmax(1)

    def own(self, values: Tensor) -> Tensor:
        """Each row's value at its label, (N, K) -> (N,)."""
        return values.gather(1, self.labels[:, None])[:, 0]


Score = Callable[[Outputs], Tensor]
#: Functions of `Outputs` to (N,) float64.
SCORES: Registry[Score] = Registry("score")
#: 1 if easy images should have large scores, -1 if they should have small scores.
EASIER: dict[str, int] = {}


def score(name: str, easier: int) -> Callable[[Score], Score]:
    """Register a score. `easier`: 1 if easy images should have large scores, -1 if they should have small scores."""

    def register(function: Score) -> Score:
        EASIER[name] = easier
        return SCORES.register(name)(function)

    return register


@score("avh", easier=-1)
def angular_visual_hardness(outputs: Outputs) -> Tensor:
    """AVH: theta_y / sum_k theta_k, 0..1 (Chen et al., ICML 2020, definition 1)."""
    return avh(outputs.features.double(), outputs.weight, outputs.labels)


@score("angle", easier=-1)
def own_angle(outputs: Outputs) -> Tensor:
    """theta_y, radians in [0, pi]: the numerator of AVH."""
    return outputs.own(angles(outputs.features.double(), outputs.weight))


@score("avc", easier=1)
def angular_visual_confidence(outputs: Outputs) -> Tensor:
    """AVC of the label: (pi - theta_y) / sum_k (pi - theta_k), 0..1."""
    return outputs.own(avc(outputs.features.double(), outputs.weight))


@score("top_avc", easier=1)
def top_angular_visual_confidence(outputs: Outputs) -> Tensor:
    """The largest AVC of all classes."""
    return avc(outputs.features.double(), outputs.weight).amax(1)


@score("confidence", easier=1)
def confidence(outputs: Outputs) -> Tensor:
    """Softmax probability p_y of the label, the paper's model confidence."""
    return outputs.own(outputs.log_p).exp()


@score("top_confidence", easier=1)
def top_confidence(outputs: Outputs) -> Tensor:
    """The largest softmax probability of all classes."""
    return outputs.log_p.amax(1).exp()


@score("margin", easier=1)
def margin(outputs: Outputs) -> Tensor:
    """Logit of the label minus the largest other logit; below 0 for a wrongly classified image."""
    others = outputs.logits.scatter(1, outputs.labels[:, None], -torch.inf)
    return outputs.own(outputs.logits) - others.amax(1)


@score("entropy", easier=-1)
def entropy(outputs: Outputs) -> Tensor:
    """Entropy of the softmax, nats."""
    log_p = outputs.log_p
    return -(log_p.exp() * log_p).sum(1)


@score("loss", easier=-1)
def loss(outputs: Outputs) -> Tensor:
    """Cross-entropy with the label, -log p_y in nats. It ranks images as confidence does."""
    return -outputs.own(outputs.log_p)


@score("norm", easier=1)
def norm(outputs: Outputs) -> Tensor:
    """|x|, the length of the feature."""
    return outputs.features.double().norm(dim=1)


def compute_scores(
    prediction: Prediction, labels: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Compute scores of every image of a prediction. Returns arrays (N,) float64 by name.

    Args:
        prediction: features (N, D), logits (N, K), weight (K, D).
        labels: (N,) int64, 0..K-1.
        names: scores to compute; None: all of SCORES.
    """
    functions = {name: SCORES[name] for name in (SCORES if names is None else names)}
    weight = torch.from_numpy(np.asarray(prediction.weight))
    found = {name: np.empty(len(labels)) for name in functions}
    step = max(1, CHUNK_ENTRIES // max(prediction.logits.shape[1], prediction.features.shape[1]))
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        outputs = Outputs(
            torch.from_numpy(prediction.features[rows]),
            torch.from_numpy(prediction.logits[rows]).double(),
            weight,
            torch.from_numpy(np.asarray(labels[rows], dtype=np.int64)),
        )
        for name, function in functions.items():
            found[name][rows] = function(outputs).numpy()
    return found


def make_table(
    ids: Sequence[str],
    prediction: Prediction,
    labels: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> ScoreTable:
    """The table of a prediction's scores, with the images' names and classes."""
    predicted = prediction.logits.argmax(1)
    return ScoreTable(
        tuple(ids),
        tuple(classes[label] for label in labels),
        tuple(classes[label] for label in predicted),
        compute_scores(prediction, labels, names),
    )
