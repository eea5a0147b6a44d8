"""Settings of an adaptation: the source stage, self-training and methods without rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from uda.core.settings import Settings, one_or_several
from uda.data.settings import AugmentSettings, TransformSettings
from uda.training.settings import OptimSettings
from uda.training.stage_settings import PortionSettings, SourceShareSettings


class PairTransformSettings(TransformSettings):
    """Transforms of a source and a target domain."""

    source: AugmentSettings = AugmentSettings()
    """Augmentation of source images in training."""
    target: AugmentSettings = AugmentSettings()
    """Augmentation of target images in training. Predicting never augments."""


class BatchSettings(Settings):
    """Composition of a training batch in a self-training round."""

    mixed: int | None = Field(None, ge=2)
    """Images per batch if the source share and the selected target images are shuffled together, as in CBST."""
    source: int | None = Field(None, ge=2)
    """Source images per batch. Give `source` and `selected` together, instead of `mixed`."""
    selected: int | None = Field(None, ge=2)
    """Selected target images per batch."""
    unlabelled: int = Field(0, ge=0)
    """Target images per batch for `unlabelled_loss`. They have no labels and are drawn from all target images."""

    @model_validator(mode="after")
    def one_way(self):
        fixed = (self.source, self.selected)
        if (self.mixed is None) == (fixed == (None, None)) or (self.mixed is None and None in fixed):
            raise ValueError("give either 'mixed' or both 'source' and 'selected'")
        if self.unlabelled and self.mixed:
            raise ValueError("'unlabelled' images go with 'source' and 'selected', not with 'mixed'")
        return self


def _alone(names: str | list[str]) -> str | list[str]:
    """A list of one name is that name."""
    return names[0] if isinstance(names, list) and len(names) == 1 else names


class SelfTrainingSettings(Settings):
    """The loop of CBST, CRST and AVH self-training. They differ in selector and regulariser."""

    selector: Annotated[str | list[str], BeforeValidator(one_or_several), AfterValidator(_alone)] = "avc"
    """Score of how sure the model is: one of `--list selectors`, or your own from `plugins`. With a list, one source
    model is trained and the rounds follow once for each selector. The run keeps the final model that `validator`
    prefers."""
    regularizer: str = "none"
    """CRST's confidence regulariser on target images, one of `--list regularizers`. LRENT computes its soft labels
    with the thresholds of softmax. If the selector chose a different class, the label is the selector's and one-hot."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the model regulariser (MRL2, MRENT, MRKLD); null: the value of CRST."""
    alpha_label: float | None = Field(None, gt=0)
    """Weight of the label regulariser (LRENT); null: the value of CRST."""
    labels: Literal["ratio", "own"] = "ratio"
    """Label of a target image. `ratio`, the rule of CBST: the class of the largest score / lambda. `own`: the class of
    the selector's largest score."""
    keep: Literal["ratio", "lrent"] = "ratio"
    """Which images are selected: `ratio` takes those whose score reaches lambda. `lrent` is the rule of LRENT and needs
    the softmax selector."""
    rounds: int = Field(20, ge=0)
    """Number of self-training rounds."""
    epochs: int = Field(1, ge=1)
    """Epochs per round."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps per round; overrides `epochs`."""
    portion: PortionSettings = PortionSettings()
    """Share of each class's target images that a round selects."""
    source_share: SourceShareSettings = SourceShareSettings()
    """Share of the source images. Each round draws new ones at random."""
    batch: BatchSettings = BatchSettings(mixed=32)
    """Composition of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """`shared`: one forward pass for both domains, with shared BatchNorm statistics. `separate`: one pass for each."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm in training steps: `train` uses the statistics of the batch, `eval` the frozen running statistics."""
    adapt_batch_norm: bool = False
    """In the rounds, compute BatchNorm statistics from target images before each predict pass (AdaBN, 2016)."""
    adapt_images: int = Field(2048, ge=2)
    """Number of target images for AdaBN, drawn at random."""
    target_weight: float = Field(1.0, gt=0)
    """Weight of the loss of a pseudo-labelled image. A source image has weight 1."""
    unlabelled_loss: str = "none"
    """Loss on a batch's unlabelled target images, one of `--list unlabelled_losses`."""
    unlabelled_weight: float = Field(1.0, ge=0)
    """Weight of `unlabelled_loss`."""
    on_empty: Literal["stop", "continue"] = "stop"
    """What to do in a round that selects no image: stop with an error, or train on source images only."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the rounds. Each round starts a new one."""

    @property
    def selectors(self) -> tuple[str, ...]:
        """The selector, or all of the list."""
        return (self.selector,) if isinstance(self.selector, str) else tuple(self.selector)

    @model_validator(mode="after")
    def loss_on_something(self):
        if self.unlabelled_loss != "none" and not self.batch.unlabelled:
            raise ValueError(f"unlabelled_loss: '{self.unlabelled_loss}' needs images; set batch.unlabelled above 0")
        return self


class AdaptationBatchSettings(Settings):
    """Composition of a training batch of a method without rounds."""

    source: int = Field(32, ge=0)
    """Labelled source images per batch; 0 for source-free methods."""
    target: int = Field(32, ge=2)
    """Unlabelled target images per batch."""


class AdaptationSettings(Settings):
    """The training of a method without rounds (MMD, DANN, MCD, MCC, ...)."""

    steps: int = Field(1000, ge=1)
    """Total batches, without those of a source stage."""
    evaluate_every: int | None = Field(None, ge=1)
    """Batches between two reports; null: a tenth of `steps`. Reports are counted like rounds."""
    batch: AdaptationBatchSettings = AdaptationBatchSettings()
    """Composition of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """`shared`: one forward pass for both domains, with shared BatchNorm statistics. `separate`: one pass for each."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm in training steps: `train` uses the statistics of the batch, `eval` the frozen running statistics."""
    adapt_batch_norm: bool = False
    """Compute BatchNorm statistics from target images before each predict pass (AdaBN)."""
    adapt_images: int = Field(2048, ge=2)
    """Number of target images for AdaBN, drawn at random."""
    strong: AugmentSettings | None = None
    """A second, strong augmentation of each target image, for methods that compare two views (FixMatch)."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the stage."""

    @property
    def interval(self) -> int:
        """Batches between two reports."""
        return self.evaluate_every or max(1, self.steps // 10)


@dataclass(frozen=True)
class MethodSettings:
    """The part of a config that a method reads."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Values for the method's `Options`."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains, or one per domain."""
    label_smoothing: float = 0.0
    """Label smoothing of the classification loss on true labels."""
    target_labelled: bool = False
    """Whether some target images have labels to train on."""
    self_training: SelfTrainingSettings = field(default_factory=SelfTrainingSettings)
    """The config section `self_training`."""
