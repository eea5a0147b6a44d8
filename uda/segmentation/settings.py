"""Settings of self-training in segmentation."""

from typing import Literal

from pydantic import Field, model_validator

from uda.core.settings import Settings
from uda.training.settings import OptimSettings
from uda.training.stage_settings import PortionSettings, SourceShareSettings


class SceneBatchSettings(Settings):
    """Composition of a training batch in a round."""

    source: int = Field(2, ge=0)
    """Source scenes per batch."""
    target: int = Field(2, ge=1)
    """Target images per batch."""


class RareClassSettings(Settings):
    """Crops of target images around pixels of rare classes (patch mining, CBST)."""

    chance: float = Field(0.0, ge=0, le=1)
    """Share of the crops whose middle is a pixel of a rare class. 0: all crops lie at random. CBST has 0.8."""
    share: float = Field(0.001, ge=0, le=1)
    """A class is rare if it has at most this share of the predicted pixels."""


class SelfTrainingSettings(Settings):
    """The loop of CBST, CRST and AVH self-training, with pixels as rows."""

    selector: str = "softmax"
    """Score of how sure the model is of a pixel's class: one of `--list selectors`, or your own from `plugins`."""
    regularizer: str = "none"
    """CRST's confidence regulariser on labelled target pixels: none, mrl2, mrent or mrkld."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the model regulariser; null: the value of CRST."""
    labels: Literal["ratio", "own"] = "ratio"
    """Label of a pixel. `ratio`, the rule of CBST: the class of the largest score / lambda. `own`: the class of the
    selector's largest score. This needs one predict pass less."""
    rounds: int = Field(3, ge=0)
    """Number of self-training rounds."""
    epochs: int = Field(2, ge=1)
    """Epochs per round, over the target images."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps per round; overrides `epochs`."""
    portion: PortionSettings = PortionSettings()
    """Share of each class's pixels that a round selects."""
    source_share: SourceShareSettings = SourceShareSettings()
    """Share of the source scenes. Each round draws new ones at random."""
    batch: SceneBatchSettings = SceneBatchSettings()
    """Composition of a batch."""
    rare_classes: RareClassSettings = RareClassSettings()
    """Crops around pixels of rare classes."""
    mirror: bool = False
    """Choose by the mean of the scores of an image and of its mirror image."""
    forward: Literal["shared", "separate"] = "shared"
    """`shared`: one forward pass for both domains, with shared BatchNorm statistics. `separate`: one pass for each."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm in training steps: `train` uses the statistics of the batch, `eval` the frozen running statistics."""
    adapt_batch_norm: bool = False
    """In the rounds, compute BatchNorm statistics from target images before each predict pass (AdaBN, 2016)."""
    adapt_images: int = Field(512, ge=2)
    """Number of target images for AdaBN, drawn at random."""
    target_weight: float = Field(1.0, gt=0)
    """Weight of a pseudo-labelled pixel. A source pixel has weight 1."""
    on_empty: Literal["stop", "continue"] = "stop"
    """What to do in a round that selects no pixel: stop with an error, or train on source scenes only."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the rounds. Each round starts a new one."""

    @model_validator(mode="after")
    def hard_labels(self):
        if "lrent" in self.regularizer:
            raise ValueError(f"regularizer: '{self.regularizer}' needs soft labels, which label maps do not hold")
        return self
