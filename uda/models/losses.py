"""Classification losses: what stands where a softmax cross-entropy stands, in every method.

A loss turns features x and class weights W into logits, so that the cross-entropy of their softmax is the loss; the
same logits predict. A margin, where a loss has one, makes the true class's logit smaller in training alone.
"""

import math
from abc import ABC, abstractmethod

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uda.core.registry import Registry
from uda.core.settings import Settings
from uda.selection.angular import avh_logits

# Keeps the slope of arccos finite.
_LARGEST_COSINE = 1 - 1e-6


class ClassificationLoss(Settings, ABC):
    """Base: its fields are the loss's options."""

    @abstractmethod
    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Features (B, D), class weights (K, D) and biases (K,) or None to logits (B, K), outside of autocast."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, K) and label distributions (B, K) to the logits whose cross-entropy is descended."""
        return logits

    def __call__(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """The loss from `logits` (B, K) and label distributions (B, K): a scalar, or (B,) for reduction `none`."""
        return F.cross_entropy(self.with_margin(logits, labels), labels, label_smoothing=smoothing, reduction=reduction)


LOSSES: Registry[type[ClassificationLoss]] = Registry("loss")


@LOSSES.register("cross_entropy")
class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy of the linear classifier, W x + b."""

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(features, weight, bias)


@LOSSES.register("avh")
class AngularVisualHardness(ClassificationLoss):
    """AVH loss (Chen et al., ICML 2020): softmax cross-entropy of -scale * angle; norms and biases play no part."""

    scale: float = Field(10.0, gt=0)
    """Inverse temperature s; 7 classes need at least 4 to be able to reach a probability of 0.99."""

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return avh_logits(features, weight, self.scale)


class _Cosine(ClassificationLoss):
    scale: float = Field(16.0, gt=0)
    """Inverse temperature s."""

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.scale * F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T


@LOSSES.register("cosine")
class Cosine(_Cosine):
    """Softmax cross-entropy of scale * (cos angle - margin) (CosFace, Wang et al., CVPR 2018; margin 0: NormFace)."""

    margin: float = Field(0.0, ge=0, le=1)
    """Taken from the cosine of the true class."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits - self.scale * self.margin * labels if self.margin else logits


@LOSSES.register("arcface")
class ArcFace(_Cosine):
    """Softmax cross-entropy of scale * cos(angle + margin) (ArcFace, Deng et al., CVPR 2019)."""

    margin: float = Field(0.3, ge=0, lt=math.pi / 2)
    """Added to the angle of the true class, radians; beyond pi the logit goes on falling, with the cosine."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        cosine = (logits / self.scale).clamp(-_LARGEST_COSINE, _LARGEST_COSINE)
        wider = torch.cos(cosine.arccos() + self.margin)
        # cos turns upwards at pi: from there on the authors' line, which lies below.
        turned = cosine <= math.cos(math.pi - self.margin)
        wider = torch.where(turned, cosine - self.margin * math.sin(self.margin), wider)
        return logits + self.scale * (wider - cosine) * labels
