"""The contract of a method that trains on several domains for one that it never sees."""

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
    """Base of every method. A batch holds as many labelled images of each seen domain; `batch.domain` is its number.

    Args:
        network: the network that is trained.
        num_domains: seen domains.
        options: values of its `Options` that are not the default.
        label_smoothing: of the classification loss.
    """

    least_domains: ClassVar[int] = 1
    """Seen domains that the method cannot do without; a meta-method tests on one what it learnt on others."""
    compiles: ClassVar[bool] = True
    """Whether torch.compile and synchronised BatchNorm can follow: neither has second derivatives, and torch.compile
    takes no other parameters than the network's own."""
    stages: ClassVar[tuple[float, ...]] = (1.0,)
    """Shares of the steps; each stage has an optimiser of its own. The engine calls `begin` at each one's start."""

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
        """What changes at the start of a stage: fresh layers, frozen ones. The run's generators are seeded before."""
        self.stage = stage

    def classification(self, logits: Tensor, batch: Batch, rows: Rows | None = None) -> Tensor:
        """Mean classification loss of n rows of a batch by their logits (n, K); `rows` None: of all."""
        labels = batch.labels if rows is None else rows.of(batch.labels)
        return self.network.loss(logits, labels, self.label_smoothing)

    def functional_logits(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, S, S) by the network with other parameters, by torch.func.

        BatchNorm in training takes the statistics of these images, but the running ones stay as they are: they belong
        to the parameters that are kept, and are gathered where `network` itself is called.
        """
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        return functional_call(self.network, {**buffers, **parameters}, (images,)).logits

    def trained(self) -> dict[str, Tensor]:
        """The network's parameters that are trained, by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def draw_domain(self, without: int | None = None) -> int:
        """A seen domain at random, from the step's own generator; `without`: another one than this."""
        drawn = int(torch.randint(self.num_domains - (without is not None), ()))
        return drawn + (without is not None and drawn >= without)


GENERALIZATION_METHODS: Registry[type[GeneralizationMethod]] = Registry("method")
