"""Base of the methods of segmentation."""

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

from uda.core.registry import Registry
from uda.data.batch import Batch
from uda.models.segmentation import SegmentationNetwork, SegmentationOutput
from uda.segmentation.settings import SelfTrainingSettings
from uda.training.method import Method


@dataclass(frozen=True)
class SceneMethodSettings:
    """The part of a config that a method reads."""

    options: dict[str, Any] = field(default_factory=dict)
    """Values for the method's `Options`."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss on true labels."""
    self_training: SelfTrainingSettings = field(default_factory=SelfTrainingSettings)
    """The config section `self_training`."""


class SegmentationMethod(Method):
    """Base of every method of segmentation. A batch's labels are train ids, uint8 (B, H, W), with VOID for none.

    Args:
        network: the network that is trained.
        settings: the part of the run's config that a method reads.
    """

    rounds: ClassVar[bool] = False
    """Whether the method trains in rounds of pseudo-labels after the source stage."""

    network: SegmentationNetwork

    def __init__(self, network: SegmentationNetwork, settings: SceneMethodSettings):
        super().__init__(network, settings.options)
        self.settings = settings

    def forward(self, batch: Batch) -> SegmentationOutput:
        """Features and logits of a batch: one pass over both domains (shared BatchNorm statistics) or one for each."""
        source, target = batch.source_rows, batch.target_rows
        if self.settings.self_training.forward == "shared" or not len(source) or not len(target):
            return self.network(batch.images)
        outputs = (self.network(rows.of(batch.images)) for rows in (source, target))
        return SegmentationOutput(*itertools.starmap(source.joined, zip(*outputs, strict=True)))


SEGMENTATION_METHODS: Registry[type[SegmentationMethod]] = Registry("method")
