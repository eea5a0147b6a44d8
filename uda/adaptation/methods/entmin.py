"""Entropy minimisation (Grandvalet and Bengio, NeurIPS 2004): confident predictions on the target."""

from pydantic import Field
from torch import Tensor

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import entropy
from uda.core.settings import Settings
from uda.data.batch import Batch


@ADAPTATION_METHODS.register("entmin")
class EntropyMinimisation(AdaptationMethod):
    """Cross-entropy on the source, entropy of the predictions on the target."""

    adapts = True

    class Options(Settings):
        """Settings of entropy minimisation."""

        weight: float = Field(0.1, ge=0)
        """Weight of the target's entropy; the source cross-entropy has weight 1."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.forward(batch).logits
        source, target = self.source_loss(logits, batch), entropy(batch.unannotated_rows.of(logits))
        return source + self.options.weight * target, {"loss/source": source.detach(), "loss/entropy": target.detach()}
