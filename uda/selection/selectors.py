"""Selectors: they score how sure the model is of each class on each target image.

A selector is a function of the features (N, D), the logits (N, K) and the classifier's weight (K, D). It returns scores
(N, K), higher = surer. The class-balanced thresholds divide scores by scores. So all scores are finite, and the largest
score of each row is above 0. Scores are only compared within a class, so their scale is free. Ties are not broken, so
use double precision for a score that saturates. The scores of a row depend only on that row. No gradient is needed.

An example of your own selector, in a file my_selectors.py (config: `plugins: [my_selectors.py]`, `selector: mine`):

    import torch
    from uda.selection.selectors import SELECTORS


    @SELECTORS.register("mine")
    def mine(features, logits, weight):
        '''Softmax that is sharper for features with a large norm.'''
        norm = features.norm(dim=1, keepdim=True)
        return torch.softmax(logits.double() * norm.log1p(), dim=1)

`--list selectors` prints the first line of the docstring.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.selection import angular

Selector = Callable[[Tensor, Tensor, Tensor], Tensor]
SELECTORS: Registry[Selector] = Registry("selector")

# Replaces a sureness of exactly 0, because a threshold must not be 0.
_LEAST_SURENESS = 1e-150
_CHUNK_ENTRIES = 1 << 20


@SELECTORS.register("softmax")
def softmax(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Softmax probability of each class (CBST, Zou et al., ECCV 2018), in double precision.

    (N, K), rows sum to 1. In float32 many probabilities would be exactly 1.0, and their order would be lost.
    """
    return _from_logits(lambda z: torch.softmax(z, dim=1), logits)


@SELECTORS.register("avc")
def avc(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Angular visual confidence (AVH, Chen et al., ICML 2020): pi - angle of each class over their sum.

    (N, K), rows sum to 1. float32 unless an input is double. The logits are not used.
    """
    with torch.no_grad():
        return angular.avc(features, weight)


@SELECTORS.register("margin")
def margin(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Margin over the strongest other class, (1 + p_k - max of the other p) / 2 (Scheffer et al., IDA 2001).

    (N, K) in [0, 1]. The class of the largest p is at 1/2 or above, every other class at 1/2 or below.
    """

    def lead(z: Tensor) -> Tensor:
        p = torch.softmax(z, dim=1)
        if p.shape[1] == 1:
            return (1 + p) / 2
        best, second = p.topk(2, dim=1).values.split(1, dim=1)
        first_class = p.argmax(dim=1, keepdim=True)
        strongest_other = best.expand_as(p).scatter(1, first_class, second)
        return (1 + p - strongest_other) / 2

    return _from_logits(lead, logits)


@SELECTORS.register("entropy")
def entropy(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """One minus the normalised entropy of the softmax, spread in proportion to p.

    For a row with s = 1 - H(p) / log K, class k gets s * p_k / max_j p_j: (N, K) in [0, 1].
    """

    def certainty(z: Tensor) -> Tensor:
        log_p = torch.log_softmax(z, dim=1)
        if z.shape[1] == 1:
            return torch.ones_like(z)
        row = 1 + (log_p.exp() * log_p).sum(dim=1, keepdim=True) / math.log(z.shape[1])
        return _spread(row, log_p)

    return _from_logits(certainty, logits)


@SELECTORS.register("energy")
def energy(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Free energy, log-sum-exp of the logits (Liu et al., NeurIPS 2020), spread in proportion to p.

    The sureness of a row is softplus(logsumexp(z)), which is positive and monotone in the energy. Class k gets the
    sureness times p_k / max_j p_j: (N, K), without an upper bound.
    """

    def negative_energy(z: Tensor) -> Tensor:
        total = torch.logsumexp(z, dim=1, keepdim=True)
        return _spread(torch.logaddexp(total, torch.zeros_like(total)), z)

    return _from_logits(negative_energy, logits)


@SELECTORS.register("cosine")
def cosine(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Cosine similarity of feature and class weight, mapped to (1 + cos) / 2.

    (N, K) in [0, 1]. float32 unless an input is double. The logits are not used.
    """
    with torch.no_grad():
        # cos^2 of half the angle is the same value, without cancellation near pi.
        return angular.angles(features, weight).div_(2).cos_().square_()


def target_scores(selector: str, features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """A selector's scores (N, K), without a gradient. Raises UserError if they have another shape."""
    with torch.no_grad():  # not inference_mode: its tensors cannot be used in a later graph
        scores = SELECTORS[selector](features, logits, weight)
    if tuple(scores.shape) != tuple(logits.shape):
        raise UserError(
            f"selector '{selector}' returned scores of shape {tuple(scores.shape)}; it must return one score for each "
            f"image and class, of shape {tuple(logits.shape)}"
        )
    return scores


def _spread(row_sureness: Tensor, logits: Tensor) -> Tensor:
    """Sureness (N, 1) times p_k / max_j p_j: (N, K). The class of the largest p gets the sureness of the row."""
    return row_sureness.clamp(min=_LEAST_SURENESS) * (logits - logits.amax(dim=1, keepdim=True)).exp()


def _from_logits(score: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """`score` of the logits in double precision. It is computed in chunks of rows to save memory."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, K) with K > 0, got {tuple(logits.shape)}")
    rows = max(1, _CHUNK_ENTRIES // logits.shape[1])
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        scores = torch.empty(
            logits.shape, dtype=torch.float64, device="cpu" if logits.device.type == "mps" else logits.device
        )
        for start in range(0, len(logits), rows):
            scores[start : start + rows] = score(angular.to_double(logits[start : start + rows]))
    return scores
