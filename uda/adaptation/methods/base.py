"""What a method of adaptation has beside what the engine needs: domains, and the source's loss."""

import itertools
from collections.abc import Callable
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from uda.adaptation.settings import MethodSettings
from uda.core.registry import Registry
from uda.data.batch import Batch
from uda.models.network import Network, Output, Prediction
from uda.training.method import Method

T = TypeVar("T")


class AdaptationMethod(Method):
    """Base of every method of adaptation. It trains in rounds of pseudo-labels, or it `adapts` in one stage.

    Args:
        network: the network that is trained.
        settings: what the run's config says to a method.
    """

    rounds: ClassVar[bool] = False
    """Whether the method trains in rounds of pseudo-labels after the source stage."""
    adapts: ClassVar[bool] = False
    """Whether it trains on source and unlabelled target images together, in one stage (config section `adaptation`)."""
    needs_source: ClassVar[bool] = True
    """Of a method that adapts: whether each batch must hold source images."""
    prepares: ClassVar[bool] = False
    """Of a method that adapts: whether it wants a prediction of the whole target before each interval."""
    compares_two: ClassVar[bool] = False
    """Whether it compares exactly two domains: for it several sources count as one, and so do several targets."""
    views: ClassVar[int] = 1
    """Of a method that adapts: augmentations of each target image in a batch; 2: a plain and a strong one."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings.options)
        self.settings = settings
        self.prepared: dict[str, np.ndarray] = {}

    def prepare(self, prediction: Prediction, interval: int) -> dict[str, np.ndarray]:
        """What the method takes from a prediction of the whole target; `prepared` has it until the next report.

        `interval` counts the reports before it, from 0.

        Called before each interval of the adaptation stage, on rank 0 of a job. The array `labels`, class numbers (N,)
        int64 or distributions (N, K) float32, is what the batches hold as labels of target images.
        """
        return {}

    # What most methods need

    def forward(self, batch: Batch) -> Output:
        """Features and logits of a batch: one pass over both domains (shared BatchNorm statistics), or one each."""
        return self.by_domain(self.network, batch)

    def by_domain(self, network: Callable[[Tensor], T], batch: Batch, inputs: Tensor | None = None) -> T:
        """`network` of a batch's images, a tensor or a named tuple of them, as the config's `forward` says.

        Several sources share a pass, and so do several targets.
        `inputs`: what goes in in the images' place, a row an image, such as their features.
        """
        inputs = batch.images if inputs is None else inputs
        source, target = batch.source_rows, batch.target_rows
        if self.settings.forward == "shared" or not len(source) or not len(target):
            return network(inputs)
        outputs = [network(rows.of(inputs)) for rows in (source, target)]
        if isinstance(outputs[0], Tensor):
            return source.joined(*outputs)
        return type(outputs[0])(*itertools.starmap(source.joined, zip(*outputs, strict=True)))

    def source_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean classification loss of the images with true labels, with the config's label smoothing.

        They are the source's, and those of `data.target_labelled`.
        """
        rows = batch.annotated_rows
        return self.network.loss(rows.of(logits), rows.of(batch.labels), self.settings.label_smoothing)


ADAPTATION_METHODS: Registry[type[AdaptationMethod]] = Registry("method")
