"""Minimum class confusion (Jin et al., ECCV 2020): target predictions that do not mix classes."""

from pydantic import Field
from torch import Tensor

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import minimum_class_confusion
from uda.core.settings import Settings
from uda.data.batch import Batch


@ADAPTATION_METHODS.register("mcc")
class MinimumClassConfusion(AdaptationMethod):
    """Cross-entropy on the source, class confusion on the target."""

    adapts = True

    class Options(Settings):
        """Settings of MCC."""

        weight: float = Field(1.0, ge=0)
        """Weight of the target's class confusion; the source cross-entropy has weight 1."""
        temperature: float = Field(2.5, gt=0)
        """Temperature of the softmax, as in the paper."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.forward(batch).logits
        source = self.source_loss(logits, batch)
        confusion = minimum_class_confusion(batch.unannotated_rows.of(logits), self.options.temperature)
        scalars = {"loss/source": source.detach(), "loss/confusion": confusion.detach()}
        return source + self.options.weight * confusion, scalars
