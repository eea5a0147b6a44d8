"""The interface of a method that trains on several domains and is tested on an unseen domain."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from uda.core.registry import Registry
from uda.data.batch import Batch, Rows
from uda.models.network import Network
from uda.training.method import Method

#: Parameters by name.
Parameters = Mapping[str, Tensor]


class GeneralizationMethod(Method):
    """The base class of all methods. A batch has the same number of labelled images of each seen domain.

    `batch.domain` is the number of each image's domain.

    Args:
        network: the network to train.
        num_domains: number of seen domains.
        options: values of the method's `Options` that differ from the defaults.
        label_smoothing: label smoothing of the classification loss.
    """

    least_domains: ClassVar[int] = 1
    """The smallest number of seen domains. Meta-methods need two: one for the test, the others for training."""
    compiles: ClassVar[bool] = True
    """Whether the method works with torch.compile and synchronised BatchNorm. Both lack second derivatives, and a
    compiled network takes only its own parameters."""
    keeps_classifier: ClassVar[bool] = True
    """Whether the network's first classifier is trained further, and not replaced by a new one."""
    stages: ClassVar[tuple[float, ...]] = (1.0,)
    """Share of the steps of each stage. Each stage has a new optimiser. The run calls `begin` when a stage starts."""

    def __init__(
        self,
        network: Network,
        num_domains: int,
        options: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(network, options)
        self.num_domains = num_domains
        self.label_smoothing = label_smoothing
        self.stage = 0

    def begin(self, stage: int) -> None:
        """Prepare a stage, for example by new or frozen layers. The run seeds its generators before this call."""
        self.stage = stage

    def classification(self, logits: Tensor, batch: Batch, rows: Rows | None = None) -> Tensor:
        """Mean classification loss of n rows of a batch from their logits (n, K). `rows` None: all rows."""
        labels = batch.labels if rows is None else rows.of(batch.labels)
        return self.network.loss(logits, labels, self.label_smoothing)

    def functional_logits(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, S, S) from the network with other parameters, by torch.func.

        In training, BatchNorm uses the statistics of these images and does not update the running statistics. The
        running statistics belong to the network's own parameters. Only calls of `network` update them.
        """
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        return functional_call(self.network, {**buffers, **parameters}, (images,)).logits

    def trained(self) -> dict[str, Tensor]:
        """The network's trained parameters, by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def draw_domain(self, without: int | None = None) -> int:
        """Draw a seen domain at random with the step's generator. `without`: a domain that is not drawn."""
        drawn = int(torch.randint(self.num_domains - (without is not None), ()))
        return drawn + (without is not None and drawn >= without)


GENERALIZATION_METHODS: Registry[type[GeneralizationMethod]] = Registry("method")
