"""Losses on unlabelled target images: functions from logits (B, K) to a scalar, small if the model is sure."""

from collections.abc import Callable

import torch
from torch import Tensor

from uda.core.registry import Registry
from uda.models.precision import full_precision

#: Functions `(logits (B, K)) -> scalar`.
UNLABELLED_LOSSES: Registry[Callable[[Tensor], Tensor]] = Registry("unlabelled loss")


@UNLABELLED_LOSSES.register("none")
def none(logits: Tensor) -> Tensor:
    """No loss on unlabelled images."""
    return logits.new_zeros(())


@UNLABELLED_LOSSES.register("entropy")
@full_precision
def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, in nats, 0 to log K (Grandvalet and Bengio, NeurIPS 2004)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


@UNLABELLED_LOSSES.register("im")
@full_precision
def information_maximisation(logits: Tensor) -> Tensor:
    """Mean entropy minus the entropy of the mean prediction, in nats, -log K to 0 (SHOT, Liang et al., ICML 2020)."""
    # Computed from logarithms, because p log p has an infinite slope at a class of mean probability 0.
    log_mean = logits.log_softmax(1).logsumexp(0) - logits.new_full((), len(logits)).log()
    return entropy(logits) + (log_mean.exp() * log_mean).sum()


@UNLABELLED_LOSSES.register("mcc")
@full_precision
def minimum_class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Minimum class confusion (Jin et al., ECCV 2020): how often two classes share a prediction, 0 to 1.

    Predictions are p = softmax(logits / T). Images have weights w = 1 + exp(-H(p)), scaled to a mean of 1. The
    confusion matrix is C_jk = sum_i w_i p_ij p_ik, with each row normalised to the sum 1. The loss is the mean over
    rows of their sum off the diagonal.
    """
    p = (logits / temperature).softmax(1)
    certainty = 1 + torch.exp(-torch.special.entr(p.detach()).sum(1, keepdim=True))
    weight = certainty * len(p) / certainty.sum()
    confusion = (weight * p).T @ p
    confusion = confusion / confusion.sum(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return 1 - confusion.diagonal().mean()
