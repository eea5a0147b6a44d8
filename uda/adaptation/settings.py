"""Settings of an adaptation: the source stage, self-training, methods without rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from uda.core.settings import PathText, Settings
from uda.data.settings import AugmentSettings
from uda.training.settings import OptimSettings


class SourceSettings(Settings):
    """Training of the source model."""

    checkpoint: PathText | None = None
    """Weights to start from in place of training: a run's folder, or a .safetensors of one."""
    epochs: int = Field(3, ge=0)
    """Epochs over the source images; 0: no stage of its own, the method trains from the initial weights."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps in all; overrides `epochs`."""
    batch_size: int = Field(32, ge=2)
    """Images in a batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the source cross-entropy."""
    adapt_batch_norm: bool = False
    """Take BatchNorm's statistics from target images before the source model is judged: AdaBN as a method."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of this stage."""


class ScheduleSettings(Settings):
    """A number that grows round by round: min(start + round * step, max)."""

    start: float = Field(gt=0, le=1)
    """Value in round 0."""
    step: float = Field(ge=0, le=1)
    """Added each round."""
    max: float = Field(gt=0, le=1)
    """Never above this."""


class PortionSettings(ScheduleSettings):
    """Share of each class's target images that is kept, round by round."""

    start: float = Field(0.2, gt=0, le=1)
    step: float = Field(0.05, ge=0, le=1)
    max: float = Field(0.5, gt=0, le=1)


class SourceShareSettings(ScheduleSettings):
    """Share of the source images that a round draws."""

    start: float = Field(0.065, gt=0, le=1)
    step: float = Field(0.0085, ge=0, le=1)
    max: float = Field(0.165, gt=0, le=1)


class BatchSettings(Settings):
    """The make-up of a training batch in a self-training round."""

    mixed: int | None = Field(None, ge=2)
    """Source share and selected target images shuffled together, this many a batch (CBST's way)."""
    source: int | None = Field(None, ge=2)
    """Otherwise: so many source images in every batch..."""
    selected: int | None = Field(None, ge=2)
    """...and so many selected target images..."""
    unlabelled: int = Field(0, ge=0)
    """...and so many target images without labels, for `unlabelled_loss`; drawn from all of them, selected or not."""

    @model_validator(mode="after")
    def one_way(self):
        fixed = (self.source, self.selected)
        if (self.mixed is None) == (fixed == (None, None)) or (self.mixed is None and None in fixed):
            raise ValueError("give either 'mixed' or both 'source' and 'selected'")
        if self.unlabelled and self.mixed:
            raise ValueError("'unlabelled' images go with 'source' and 'selected', not with 'mixed'")
        return self


class SelfTrainingSettings(Settings):
    """The loop of CBST, CRST and AVH self-training: selector and regulariser make the difference."""

    selector: str = "avc"
    """How sure is the model? One of `--list selectors`, or your own by way of `plugins`."""
    regularizer: str = "none"
    """CRST's confidence regulariser on target samples, one of `--list regularizers`. LRENT's soft labels are made by
    softmax's thresholds; where the selector chose another class than these, its label is hard."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the model regulariser (MRL2, MRENT, MRKLD); null: CRST's own."""
    alpha_label: float | None = Field(None, gt=0)
    """Weight of the label regulariser (LRENT); null: CRST's own."""
    keep: Literal["ratio", "lrent"] = "ratio"
    """Which images are kept: those whose score reaches lambda, or LRENT's own rule (softmax selector only)."""
    rounds: int = Field(20, ge=0)
    """Self-training rounds."""
    epochs: int = Field(1, ge=1)
    """Epochs a round."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps a round; overrides `epochs`."""
    portion: PortionSettings = PortionSettings()
    """Share of each class's target images that is kept."""
    source_share: SourceShareSettings = SourceShareSettings()
    """Share of the source images, drawn anew each round."""
    batch: BatchSettings = BatchSettings(mixed=32)
    """Make-up of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains (one set of BatchNorm statistics), or one a domain."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm during training: batch statistics, or the frozen running ones."""
    adapt_batch_norm: bool = False
    """In the rounds, take BatchNorm's statistics from target images before each predict pass (AdaBN, 2016)."""
    adapt_images: int = Field(2048, ge=2)
    """How many target images, drawn at random, AdaBN takes them from."""
    target_weight: float = Field(1.0, gt=0)
    """Weight of a pseudo-labelled sample's loss beside a source sample's."""
    unlabelled_loss: str = "none"
    """Loss on a batch's unlabelled target images, one of `--list unlabelled_losses`."""
    unlabelled_weight: float = Field(1.0, ge=0)
    """Its weight beside the others."""
    on_empty: Literal["stop", "continue"] = "stop"
    """What to do in a round in which nothing is selected."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the rounds, made anew each round."""

    @model_validator(mode="after")
    def loss_on_something(self):
        if self.unlabelled_loss != "none" and not self.batch.unlabelled:
            raise ValueError(f"unlabelled_loss: '{self.unlabelled_loss}' needs images: set batch.unlabelled above 0")
        return self


class AdaptationBatchSettings(Settings):
    """The make-up of a training batch of a method without rounds."""

    source: int = Field(32, ge=0)
    """Labelled source images; 0 for source-free methods."""
    target: int = Field(32, ge=2)
    """Unlabelled target images."""


class AdaptationSettings(Settings):
    """The training of a method without rounds (MMD, DANN, MCD, MCC, ...)."""

    steps: int = Field(1000, ge=1)
    """Batches in all, those of a source stage not counted."""
    evaluate_every: int | None = Field(None, ge=1)
    """Batches between two reports, each of which takes the place of a round's; null: a tenth of `steps`."""
    batch: AdaptationBatchSettings = AdaptationBatchSettings()
    """Make-up of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains (one set of BatchNorm statistics), or one a domain."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm during training: batch statistics, or the frozen running ones."""
    adapt_batch_norm: bool = False
    """Take BatchNorm's statistics from target images before each predict pass (AdaBN)."""
    adapt_images: int = Field(2048, ge=2)
    """How many target images, drawn at random, AdaBN takes them from."""
    strong: AugmentSettings | None = None
    """A second, strong augmentation of each target image, for the methods that compare two (FixMatch)."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the stage."""

    @property
    def interval(self) -> int:
        """Batches between two reports."""
        return self.evaluate_every or max(1, self.steps // 10)


@dataclass(frozen=True)
class MethodSettings:
    """What a config says to its method."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that method alone."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains, or one a domain."""
    label_smoothing: float = 0.0
    """Of the classification loss on true labels."""
    target_labelled: bool = False
    """Whether some target images have labels to train on."""
    self_training: SelfTrainingSettings = field(default_factory=SelfTrainingSettings)
    """The section of that name."""
