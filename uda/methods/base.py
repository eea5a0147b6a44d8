"""The contract between a method and the engine."""

from typing import ClassVar, Protocol

from torch import Tensor

from uda.config import Config
from uda.data.loaders import Batch
from uda.models import Network
from uda.registry import Registry


class Optimizer(Protocol):
    """What a method may do with the parameters."""

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """One update down the gradient of `loss`, of all parameters or of the group `only`."""


class Method:
    """Base of every method: give `loss` (one phase) or override `step` (several).

    A batch holds images, label distributions (source labels or pseudo-labels), a domain id and an is-target mask.
    There is no way to a target label from here.
    """

    rounds: ClassVar[bool] = False
    """Whether the method trains in rounds of pseudo-labels after the source stage."""

    def __init__(self, network: Network, config: Config):
        self.network = network
        self.config = config

    def parameter_groups(self) -> dict[str, list]:
        """Parameters by role; `descend(loss, only=role)` moves one of them."""
        return self.network.parameter_groups()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to descend and its parts, for the log."""
        raise TypeError(f"{type(self).__name__} gives neither loss() nor step()")

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        """One training step; `progress` runs from 0 to 1 over the whole run. Returns scalars for the log."""
        loss, parts = self.loss(batch)
        optimizer.descend(loss)
        return {"loss": loss.detach(), **parts}


METHODS: Registry[type[Method]] = Registry("method")
