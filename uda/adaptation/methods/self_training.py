"""Class-balanced self-training: CBST (Zou et al., ECCV 2018), CRST (ICCV 2019), AVH (Chen et al., ICML 2020).

The three are one method. The selector decides which pseudo-labels a batch holds. The regulariser decides what is added
to the loss of target images. This file is the training loss that they share.
"""

from torch import Tensor

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import UNLABELLED_LOSSES
from uda.adaptation.settings import MethodSettings
from uda.data.batch import Batch
from uda.models.network import Network
from uda.selection.regularizers import create_regularizer


@ADAPTATION_METHODS.register("self_training")
class SelfTraining(AdaptationMethod):
    """Rounds of pseudo-labels: cross-entropy on source images and selected target images (CBST, CRST, AVH)."""

    rounds = True

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        self.training = training = settings.self_training
        self.regularizer = create_regularizer(training.regularizer, training.alpha, training.alpha_label)
        self.unlabelled_loss = UNLABELLED_LOSSES[training.unlabelled_loss]
        #: Target images have the same loss as source images. Plain cross-entropy saves many small operations.
        self.plain = training.regularizer == "none" and training.target_weight == 1

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over labelled images of CE(y, p) or, for pseudo-labels, target_weight * [CE(y_hat, p) + penalty(p)].

        Plus `unlabelled_weight` times the loss on the rows without a label, which may show selected images too.
        """
        logits = self.forward(batch).logits
        scalars = {}
        if self.training.batch.unlabelled:
            labelled = batch.labelled_rows
            extra = self.training.unlabelled_weight * self.unlabelled_loss(batch.unlabelled_rows.of(logits))
            scalars["loss/unlabelled"] = extra.detach()
            logits, labels, annotated = (labelled.of(rows) for rows in (logits, batch.labels, batch.annotated))
        else:
            labels, annotated, extra = batch.labels, batch.annotated, None
        if self.plain:
            loss = self.network.loss(logits, labels)
        else:
            per_sample = self.network.loss(logits, labels, reduction="none")
            pseudo = (~annotated).float()
            penalty = self.regularizer.penalty(logits) * pseudo
            weight = 1 + (self.training.target_weight - 1) * pseudo
            loss = (weight * (per_sample + penalty)).mean()
            scalars = {"loss/penalty": penalty.detach().mean(), **scalars}
        return (loss if extra is None else loss + extra), scalars
