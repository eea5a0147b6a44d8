"""The contract between a method and the engine."""

import itertools
from collections.abc import Callable
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from uda.config import Config
from uda.data.batch import Batch
from uda.errors import UserError
from uda.models import Network, Output, Prediction
from uda.registry import Registry
from uda.settings import Settings

T = TypeVar("T")


class Optimizer(Protocol):
    """What a method may do with the parameters."""

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """One update down the gradient of `loss`, of all parameters or of the group `only`."""


class Method:
    """Base of every method: give `loss` (one phase) or override `step` (several).

    A batch holds images, label distributions (true labels where it is `annotated`, else pseudo-labels), a domain number
    and an is-target mask. There is no way from here to a target label that is kept for measuring. Take the rows of a
    kind by `batch.target_rows.of(...)` and the like: with a mask the host waits for a GPU.

    A method's own settings are the fields of its `Options`, given as `method_options` in the config. Networks of its
    own (a domain classifier, a second head) go into `modules`: the engine moves, saves and restores them.
    """

    rounds: ClassVar[bool] = False
    """Whether the method trains in rounds of pseudo-labels after the source stage."""
    adapts: ClassVar[bool] = False
    """Whether it trains on source and unlabelled target images together, in one stage (config section `adaptation`)."""
    needs_source: ClassVar[bool] = True
    """Of a method that adapts: whether each batch must hold source images."""
    prepares: ClassVar[bool] = False
    """Of a method that adapts: whether it wants a prediction of the whole target before each interval."""
    further_heads: ClassVar[tuple[str, ...]] = ()
    """Its own `modules` that classify as the network's head does: where BatchNorm is frozen, theirs is too."""
    compares_two: ClassVar[bool] = False
    """Whether it compares exactly two domains: for it several sources count as one, and so do several targets."""
    views: ClassVar[int] = 1
    """Of a method that adapts: augmentations of each target image in a batch; 2: a plain and a strong one."""

    class Options(Settings):
        """Settings of this method alone."""

    def __init__(self, network: Network, config: Config):
        self.network = network
        self.config = config
        self.options = self.Options(**config.method_options)
        self.modules = nn.ModuleDict()
        self.prepared: dict[str, np.ndarray] = {}
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
        way = (self.config.self_training if self.rounds else self.config.adaptation).forward
        source, target = batch.source_rows, batch.target_rows
        if way == "shared" or not len(source) or not len(target):
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
        return self.network.loss(rows.of(logits), rows.of(batch.labels), self.config.source.label_smoothing)


def check_batch(method: type[Method], name: str, config: Config) -> None:
    """Raise UserError for a make-up of the batch that a method cannot work with."""
    if not method.adapts:
        return
    batch = config.adaptation.batch
    if method.needs_source and batch.source < 2:
        raise UserError(
            f"adaptation.batch.source: method '{name}' needs both domains in every batch, and at least two source "
            f"images for BatchNorm; got {batch.source}"
        )
    if not method.needs_source and batch.source:
        raise UserError(f"adaptation.batch.source: method '{name}' is source-free; set it to 0, not {batch.source}")
    if method.views > 1 and config.adaptation.strong is None:
        raise UserError(f"adaptation.strong: method '{name}' compares two views of a target image; describe the strong")


METHODS: Registry[type[Method]] = Registry("method")
