"""Base of the adaptation methods. It adds the domains and the source loss to what the engine needs."""

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
    """Base of every adaptation method. A method trains in rounds of pseudo-labels, or it `adapts` in one stage.

    Args:
        network: the network that is trained.
        settings: the part of the run's config that a method reads.
    """

    rounds: ClassVar[bool] = False
    """Whether the method trains in rounds of pseudo-labels after the source stage."""
    adapts: ClassVar[bool] = False
    """Whether the method trains in one stage on unlabelled target images (config section `adaptation`)."""
    needs_source: ClassVar[bool] = True
    """Whether each batch must hold source images. Only for methods that adapt."""
    prepares: ClassVar[bool] = False
    """Whether the method needs a prediction of the whole target before each interval. Only for methods that adapt."""
    compares_two: ClassVar[bool] = False
    """Whether the method compares exactly two domains: several sources count as one, and so do several targets."""
    views: ClassVar[int] = 1
    """Augmentations of each target image in a batch; 2: a plain and a strong one. Only for methods that adapt."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings.options)
        self.settings = settings
        self.prepared: dict[str, np.ndarray] = {}

    def prepare(self, prediction: Prediction, interval: int) -> dict[str, np.ndarray]:
        """Arrays that the method computes from a prediction of the whole target.

        Called before each interval of the adaptation stage, on rank 0 of a job. `prepared` holds the arrays until the
        next report. The batches take the labels of target images from the array `labels`: class numbers (N,) int64 or
        distributions (N, K) float32.

        Args:
            prediction: of all N target images.
            interval: number of the interval, from 0.
        """
        return {}

    # What most methods need

    def forward(self, batch: Batch) -> Output:
        """Features and logits of a batch: one pass over both domains (shared BatchNorm statistics) or one for each."""
        return self.by_domain(self.network, batch)

    def by_domain(self, network: Callable[[Tensor], T], batch: Batch, inputs: Tensor | None = None) -> T:
        """Output of `network` for a batch's images: a tensor, or a named tuple of tensors.

        The config's `forward` decides between one pass over all images and one per domain. Several sources share a
        pass, and so do several targets.
        `inputs`: replaces the images, for example by their features; one row per image.
        """
        inputs = batch.images if inputs is None else inputs
        if self.settings.forward == "shared":
            return network(inputs)
        source, target = batch.source_rows, batch.target_rows
        if not len(source) or not len(target):
            return network(inputs)
        outputs = [network(rows.of(inputs)) for rows in (source, target)]
        if isinstance(outputs[0], Tensor):
            return source.joined(*outputs)
        return type(outputs[0])(*itertools.starmap(source.joined, zip(*outputs, strict=True)))

    def source_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean classification loss of the images with true labels, with the config's label smoothing.

        These are the source images and the images of `data.target_labelled`.
        """
        rows = batch.annotated_rows
        return self.network.loss(rows.of(logits), rows.of(batch.labels), self.settings.label_smoothing)


ADAPTATION_METHODS: Registry[type[AdaptationMethod]] = Registry("method")
