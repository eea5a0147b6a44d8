"""Classification losses, which every method uses in place of the softmax cross-entropy.

A loss computes logits from features x and class weights W. The cross-entropy of their softmax is the loss, and the same
logits predict. If a loss has a margin, it lowers the logit of the true class, only in training.
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
    """Base of all classification losses. Its fields are the options of the loss."""

    @abstractmethod
    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Features (B, D), class weights (K, D), biases (K,) or None -> logits (B, K). Called outside of autocast."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, K), label distributions (B, K) -> the logits (B, K) of the training loss."""
        return logits

    def __call__(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """The loss of `logits` (B, K) and label distributions (B, K): a scalar, or (B,) for reduction `none`."""
        return F.cross_entropy(self.with_margin(logits, labels), labels, label_smoothing=smoothing, reduction=reduction)


LOSSES: Registry[type[ClassificationLoss]] = Registry("loss")


@LOSSES.register("cross_entropy")
class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy of the linear classifier, W x + b."""

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(features, weight, bias)


@LOSSES.register("avh")
class AngularVisualHardness(ClassificationLoss):
    """AVH loss (Chen et al., ICML 2020): softmax cross-entropy of -scale * angle, without norms and biases."""

    scale: float = Field(10.0, gt=0)
    """Inverse temperature s. With 7 classes it must be at least 4 to allow a probability of 0.99."""

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
    """Margin, subtracted from the cosine of the true class."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits - self.scale * self.margin * labels if self.margin else logits


@LOSSES.register("arcface")
class ArcFace(_Cosine):
    """Softmax cross-entropy of scale * cos(angle + margin) (ArcFace, Deng et al., CVPR 2019)."""

    margin: float = Field(0.3, ge=0, lt=math.pi / 2)
    """Margin in radians, added to the angle of the true class. The logit also falls for sums above pi."""

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        cosine = (logits / self.scale).clamp(-_LARGEST_COSINE, _LARGEST_COSINE)
        wider = torch.cos(cosine.arccos() + self.margin)
        # cos rises again after pi. From there on, the authors use a line, which stays below.
        turned = cosine <= math.cos(math.pi - self.margin)
        wider = torch.where(turned, cosine - self.margin * math.sin(self.margin), wider)
        return logits + self.scale * (wider - cosine) * labels
