"""Losses on unlabelled target images: functions of their logits (B, K) to a scalar, small where the model is sure."""

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
    """Mean entropy less the entropy of the mean prediction, in nats, -log K to 0 (SHOT, Liang et al., ICML 2020)."""
    # By logarithms: p log p has an infinite slope at a class that no image is predicted to have.
    log_mean = logits.log_softmax(1).logsumexp(0) - logits.new_full((), len(logits)).log()
    return entropy(logits) + (log_mean.exp() * log_mean).sum()


@UNLABELLED_LOSSES.register("mcc")
@full_precision
def minimum_class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Minimum class confusion (Jin et al., ECCV 2020): how often two classes share a prediction, 0 to 1.

    Predictions p = softmax(logits / T); an image counts the more the surer it is, with weights 1 + exp(-H(p)) scaled
    to a mean of 1; C_jk = sum_i w_i p_ij p_ik, each row brought to the sum 1; the loss is the mean over the classes of
    what lies beside the diagonal.
    """
    p = (logits / temperature).softmax(1)
    certainty = 1 + torch.exp(-torch.special.entr(p.detach()).sum(1, keepdim=True))
    weight = certainty * len(p) / certainty.sum()
    confusion = (weight * p).T @ p
    confusion = confusion / confusion.sum(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return 1 - confusion.diagonal().mean()
