"""Losses on unlabelled target images: functions of their logits (B, K) to a scalar, small where the model is sure."""

from collections.abc import Callable

import torch
from torch import Tensor

from uda.registry import Registry

#: Functions `(logits (B, K)) -> scalar`.
UNLABELLED_LOSSES: Registry[Callable[[Tensor], Tensor]] = Registry("unlabelled loss")


@UNLABELLED_LOSSES.register("none")
def none(logits: Tensor) -> Tensor:
    """No loss on unlabelled images."""
    return logits.new_zeros(())


@UNLABELLED_LOSSES.register("entropy")
def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, in nats, 0 to log K (Grandvalet and Bengio, NeurIPS 2004)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


@UNLABELLED_LOSSES.register("im")
def information_maximisation(logits: Tensor) -> Tensor:
    """Mean entropy less the entropy of the mean prediction, in nats, -log K to 0 (SHOT, Liang et al., ICML 2020)."""
    mean = logits.softmax(1).mean(0)
    return entropy(logits) - torch.special.entr(mean).sum()


@UNLABELLED_LOSSES.register("mcc")
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
    confusion = confusion / confusion.sum(1, keepdim=True)
    return 1 - confusion.diagonal().mean()
