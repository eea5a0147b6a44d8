"""The contract between a method and the engine."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Network


class Optimizer(Protocol):
    """The optimiser as a method sees it."""

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """Take one gradient step on `loss`, with all parameters or those of the group `only`."""


class Method:
    """Base of the methods of all kinds of run. Define `loss` (one phase) or override `step` (several phases).

    A batch holds images, label distributions (true labels if `annotated`, else pseudo-labels), a domain number and an
    is-target mask. A method has no access to target labels that are kept for evaluation. Take rows with
    `batch.target_rows.of(...)` etc. and not with a mask, because a mask makes the host wait for the GPU.

    The method's own settings are the fields of its `Options`; a config sets them as `method_options`. Its own networks
    (a domain classifier, a second head) belong in `modules`. The engine moves, saves and restores them.

    Args:
        network: the network that is trained.
        options: values for its `Options`.
    """

    further_heads: ClassVar[tuple[str, ...]] = ()
    """Names of `modules` that are classifier heads. If BatchNorm is frozen, theirs is frozen too."""

    class Options(Settings):
        """Settings of this method only."""

    def __init__(self, network: Network, options: Mapping[str, Any] | None = None):
        self.network = network
        self.options = self.Options(**(options or {}))
        self.modules = nn.ModuleDict()
        self.note: str | None = None
        """A note for the user on how the method was built. It is written to the log."""
        self.progress = 0.0
        """Share of the whole run that is done, 0 to 1. It is set before each step and depends on the run's length."""

    def precision(self, asked: str) -> str:
        """Precision of the training steps: `fp32`, `bf16` or `fp16`. `asked` is the precision of the run."""
        return asked

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role. `descend(loss, only=role)` updates one group."""
        own = {"own": list(self.modules.parameters())}
        return {**self.network.parameter_groups(), **{role: group for role, group in own.items() if group}}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its parts for the log."""
        raise TypeError(f"{type(self).__name__} defines neither loss() nor step()")

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        """One training step. `progress` goes from 0 to 1 over the whole run. Returns scalars for the log."""
        loss, parts = self.loss(batch)
        optimizer.descend(loss)
        return {"loss": loss.detach(), **parts}
