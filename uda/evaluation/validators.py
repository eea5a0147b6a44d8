"""Label-free validators: scores of a model on the target that need no labels. Higher is better.

A validator is a function. Its arguments are a prediction of the target and the classes predicted at the report before
(None at the first report). It returns a number, or None if it has no score. Tables compare validators with the oracle,
which shows how far each can be trusted.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from uda.core.registry import Registry
from uda.models.network import Prediction
from uda.selection.angular import avc

Classes = np.ndarray | None
#: Functions `(prediction, previous)`.
VALIDATORS: Registry[Callable[[Prediction, Classes], float | None]] = Registry("validator")

CHUNK_ENTRIES = 4_000_000  # limits an fp64 block of (rows, K) to 32 MB
SND_TEMPERATURE = 0.05
SND_ROWS = 10_000
SND_CHUNK_ENTRIES = 1 << 17  # fits the processor's cache


@VALIDATORS.register("im")
def information_maximisation(prediction: Prediction, previous: Classes = None) -> float:
    """Information maximisation: entropy of the mean prediction minus the mean entropy, in nats, 0 to log K."""
    mean = np.zeros(prediction.logits.shape[1])
    for _, log_p in log_softmax(prediction.logits):
        mean += np.exp(log_p).sum(0)
    mean /= len(prediction.logits)
    return float(torch.special.entr(torch.from_numpy(mean)).sum()) + negative_entropy(prediction)


@VALIDATORS.register("entropy")
def negative_entropy(prediction: Prediction, previous: Classes = None) -> float:
    """Negative mean entropy of the predictions, in nats, -log K to 0."""
    total = 0.0
    for _, log_p in log_softmax(prediction.logits):
        total += float((np.exp(log_p) * log_p).sum())
    return total / len(prediction.logits)


@VALIDATORS.register("snd")
def soft_neighbourhood_density(prediction: Prediction, previous: Classes = None) -> float:
    """Soft neighbourhood density (Saito et al., ICCV 2021): entropy of the similarities to other images, in nats.

    Softmax outputs are scaled to unit length. The similarities of an image to all others, divided by a temperature of
    0.05, go through a softmax. The score is the mean entropy over images, 0 to log(N - 1). Above 10,000 images a random
    sample of 10,000 is used, the same in every round.
    """
    rows = len(prediction.logits)
    logits = prediction.logits
    if rows > SND_ROWS:
        logits = logits[np.sort(np.random.default_rng(0).choice(rows, SND_ROWS, replace=False))]
        rows = SND_ROWS
    if rows < 2:
        return 0.0
    outputs = np.concatenate([np.exp(log_p) for _, log_p in log_softmax(logits)])
    outputs = torch.nn.functional.normalize(torch.from_numpy(outputs), dim=1)
    total = 0.0
    step = max(1, SND_CHUNK_ENTRIES // rows)
    for start in range(0, rows, step):
        # Values are in 0 to 1 / temperature, so exponentials do not overflow. This saves a pass over log-softmax.
        similarity = outputs[start : start + step] @ outputs.T / SND_TEMPERATURE
        share = similarity.exp()
        itself = torch.arange(len(share))
        share[itself, itself + start] = 0
        whole = share.sum(1)
        total += float((whole.log() - (share * similarity).sum(1) / whole).sum())
    return total / rows


@VALIDATORS.register("bnm")
def nuclear_norm(prediction: Prediction, previous: Classes = None) -> float:
    """Nuclear norm of the predictions (BNM, Cui et al., CVPR 2020), divided by its largest value, 0 to 1.

    It is large if predictions are sure and diverse. It is computed from the K x K product P^T P, whose eigenvalues are
    the squared singular values, so memory does not grow with N.
    """
    rows, classes = prediction.logits.shape
    product = torch.zeros(classes, classes, dtype=torch.float64)
    for _, log_p in log_softmax(prediction.logits):
        p = torch.from_numpy(np.exp(log_p))
        product += p.T @ p
    singular = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
    return float(singular.sum()) / (rows * min(rows, classes)) ** 0.5


@VALIDATORS.register("angle")
def angular_confidence(prediction: Prediction, previous: Classes = None) -> float:
    """Mean over images of the largest AVC (angular visual confidence, Chen et al., ICML 2020), times K: 1 if unsure."""
    classes, width = prediction.weight.shape
    weight = torch.from_numpy(np.asarray(prediction.weight))
    step = max(1, CHUNK_ENTRIES // max(classes, width))
    total = 0.0
    for start in range(0, len(prediction.features), step):
        total += float(avc(torch.from_numpy(prediction.features[start : start + step]), weight).amax(1).double().sum())
    return classes * total / len(prediction.features)


@VALIDATORS.register("agreement")
def agreement(prediction: Prediction, previous: Classes = None) -> float | None:
    """Share of images that keep their class from the report before, averaged over the classes predicted now.

    It stands for the TP rate of pseudo-labels: labels that change from round to round cannot all be right.
    """
    if previous is None:
        return None
    now = prediction.logits.argmax(1)
    kept = np.bincount(now, now == previous, prediction.logits.shape[1])
    total = np.bincount(now, minlength=prediction.logits.shape[1])
    return float((kept[total > 0] / total[total > 0]).mean())


def log_softmax(logits: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Row slices of (N, K) logits with their log-softmax in fp64. Slices save memory with many classes."""
    step = max(1, CHUNK_ENTRIES // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, min(start + step, len(logits)))
        yield rows, torch.log_softmax(torch.from_numpy(logits[rows]).double(), dim=1).numpy()
