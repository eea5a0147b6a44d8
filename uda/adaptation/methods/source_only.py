"""Source only: cross-entropy on labelled source images, the baseline that adapts nothing."""

from torch import Tensor

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.data.batch import Batch


@ADAPTATION_METHODS.register("source_only")
class SourceOnly(AdaptationMethod):
    """Cross-entropy on the source, no adaptation."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.network(batch.images).logits
        return self.network.loss(logits, batch.labels, self.settings.label_smoothing), {}
