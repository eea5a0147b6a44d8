"""Class-balanced self-training of pixels: CBST (Zou et al., ECCV 2018), CRST (ICCV 2019), AVH (Chen et al., ICML 2020).

The selector decides which pixels have a pseudo-label. This file is the training loss that they share.
"""

from torch import Tensor

from uda.data.batch import Batch
from uda.data.label_coding import VOID
from uda.models.segmentation import SegmentationNetwork, upsampled
from uda.segmentation.methods.base import SEGMENTATION_METHODS, SceneMethodSettings, SegmentationMethod
from uda.selection.regularizers import create_regularizer


@SEGMENTATION_METHODS.register("self_training")
class SelfTraining(SegmentationMethod):
    """Rounds of pseudo-labels: the loss of source pixels and of selected target pixels (CBST, CRST, AVH)."""

    rounds = True

    def __init__(self, network: SegmentationNetwork, settings: SceneMethodSettings):
        super().__init__(network, settings)
        training = settings.self_training
        self.regularizer = create_regularizer(training.regularizer, training.alpha)
        self.weight = training.target_weight

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over labelled pixels of w * CE(y, p), plus the mean of the penalty over pseudo-labelled pixels.

        w is 1 for source pixels and `target_weight` for target pixels. Pixels of both domains count alike, and pixels
        without a label do not count (CRST's code; its paper has the penalty within the first mean).
        """
        logits = self.forward(batch).logits
        if self.weight == 1 and not self.regularizer.penalises:
            return self.network.pixel_loss(logits, batch.labels), {}
        losses = self.network.pixel_loss(logits, batch.labels, reduction="none")
        labelled, target = batch.labels != VOID, batch.target_rows
        total = losses.sum() + (self.weight - 1) * target.of(losses).sum()
        loss = total / labelled.sum().clamp(min=1)
        if not self.regularizer.penalises:
            return loss, {}
        chosen = target.of(labelled)
        pixels = upsampled(target.of(logits), self.network.stride, batch.labels.shape[1:])
        penalties = self.regularizer.penalty(pixels.permute(0, 2, 3, 1).flatten(0, 2)).view(chosen.shape)
        penalty = penalties.masked_fill(~chosen, 0.0).sum() / chosen.sum().clamp(min=1)
        return loss + penalty, {"loss/penalty": penalty.detach()}
