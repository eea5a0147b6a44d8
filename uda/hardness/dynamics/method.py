"""Supervised training as a method."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from uda.core.registry import Registry
from uda.data.batch import Batch
from uda.models.network import Network
from uda.training.method import Method

SUPERVISED_METHODS: Registry[type[Method]] = Registry("method")


@SUPERVISED_METHODS.register("supervised")
class Supervised(Method):
    """The classification loss on labelled images."""

    def __init__(self, network: Network, options: Mapping[str, Any] | None = None, label_smoothing: float = 0.0):
        super().__init__(network, options)
        self.label_smoothing = label_smoothing

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network.loss(self.network(batch.images).logits, batch.labels, self.label_smoothing), {}
