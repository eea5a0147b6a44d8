"""Source only: cross-entropy on labelled source images, the baseline that adapts nothing."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from uda.data.loaders import Batch
from uda.methods.base import METHODS, Method


@METHODS.register("source_only")
class SourceOnly(Method):
    """Cross-entropy on the source, no adaptation."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.network(batch.images).logits
        return cross_entropy(logits, batch.labels, label_smoothing=self.config.source.label_smoothing), {}
