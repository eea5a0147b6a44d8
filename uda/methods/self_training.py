"""Class-balanced self-training: CBST (Zou et al., ECCV 2018), CRST (ICCV 2019), AVH (Chen et al., ICML 2020).

The three are one method. The selector says which pseudo-labels a batch brings, the regulariser what is added to the
target samples' loss; this file is the training loss that they share.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from uda.config import Config
from uda.data.loaders import Batch
from uda.methods.base import METHODS, Method
from uda.models import Network
from uda.regularizers import create_regularizer


@METHODS.register("self_training")
class SelfTraining(Method):
    """Rounds of pseudo-labels by the selector; cross-entropy on source and kept target (CBST, CRST, AVH)."""

    rounds = True

    def __init__(self, network: Network, config: Config):
        super().__init__(network, config)
        settings = config.self_training
        self.settings = settings
        self.regularizer = create_regularizer(settings.regularizer, settings.alpha, settings.alpha_label)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_source CE(y, p) + target_weight * sum_target [CE(y_hat, p) + penalty(p)], over the batch size."""
        logits = self.logits(batch)
        per_sample = cross_entropy(logits, batch.labels, reduction="none")
        target = batch.is_target.float()
        penalty = self.regularizer.penalty(logits) * target
        weight = 1 + (self.settings.target_weight - 1) * target
        loss = (weight * (per_sample + penalty)).mean()
        return loss, {"loss/penalty": penalty.detach().mean()}

    def logits(self, batch: Batch) -> Tensor:
        """(B, K): one forward pass over both domains (shared BatchNorm statistics), or one each."""
        if self.settings.forward == "shared":
            return self.network(batch.images).logits
        target = batch.is_target
        logits = torch.empty(0)
        for part in (~target, target):
            if part.any():
                part_logits = self.network(batch.images[part]).logits
                if not logits.numel():
                    logits = part_logits.new_zeros(len(target), part_logits.shape[1])
                logits = logits.index_put((part.nonzero(as_tuple=True)[0],), part_logits)
        return logits
