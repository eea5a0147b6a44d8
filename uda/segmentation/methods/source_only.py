"""Source only: the cross-entropy of the source's pixels, without adaptation."""

from torch import Tensor

from uda.data.batch import Batch
from uda.segmentation.methods.base import SEGMENTATION_METHODS, SegmentationMethod


@SEGMENTATION_METHODS.register("source_only")
class SourceOnly(SegmentationMethod):
    """Trains on labelled source scenes. It is the source stage of every run, and a run of its own."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean classification loss of the pixels with a class."""
        logits = self.network(batch.images).logits
        return self.network.pixel_loss(logits, batch.labels, self.settings.label_smoothing), {}
