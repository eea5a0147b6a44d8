"""The contract between a method and the engine."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Network


class Optimizer(Protocol):
    """What a method may do with the parameters."""

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """One update down the gradient of `loss`, of all parameters or of the group `only`."""


class Method:
    """Base of every method of every kind of run: give `loss` (one phase) or override `step` (several).

    A batch holds images, label distributions (true labels where it is `annotated`, else pseudo-labels), a domain number
    and an is-target mask. There is no way from here to a target label that is kept for measuring. Take the rows of a
    kind by `batch.target_rows.of(...)` and the like: with a mask the host waits for a GPU.

    A method's own settings are the fields of its `Options`, given as `method_options` in the config. Networks of its
    own (a domain classifier, a second head) go into `modules`: the engine moves, saves and restores them.

    Args:
        network: the network that is trained.
        options: values of its `Options` that are not the default.
    """

    further_heads: ClassVar[tuple[str, ...]] = ()
    """Its own `modules` that classify as the network's head does: where BatchNorm is frozen, theirs is too."""

    class Options(Settings):
        """Settings of this method alone."""

    def __init__(self, network: Network, options: Mapping[str, Any] | None = None):
        self.network = network
        self.options = self.Options(**(options or {}))
        self.modules = nn.ModuleDict()
        self.note: str | None = None
        """What the user should know of the way it was built; the log says it."""
        self.progress = 0.0
        """Share of the whole run that is done, 0..1; set before each step. In a longer run it is smaller."""

    def precision(self, asked: str) -> str:
        """The precision of its training steps, `fp32`, `bf16` or `fp16`, where the run's is `asked`."""
        return asked

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role; `descend(loss, only=role)` moves one of them."""
        own = {"own": list(self.modules.parameters())}
        return {**self.network.parameter_groups(), **{role: group for role, group in own.items() if group}}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to descend and its parts, for the log."""
        raise TypeError(f"{type(self).__name__} gives neither loss() nor step()")

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        """One training step; `progress` runs from 0 to 1 over the whole run. Returns scalars for the log."""
        loss, parts = self.loss(batch)
        optimizer.descend(loss)
        return {"loss": loss.detach(), **parts}
