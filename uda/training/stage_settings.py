"""Settings that all kinds of run from a source to a target share: source stage, schedules of rounds, teacher."""

from typing import Literal

from pydantic import Field

from uda.core.settings import PathText, Settings
from uda.training.settings import EmaSettings, OptimSettings


class SourceSettings(Settings):
    """Training of the source model."""

    checkpoint: PathText | None = None
    """Start from these weights and skip the source stage: a run folder, or a .safetensors file of a run."""
    epochs: int = Field(3, ge=0)
    """Epochs over the source images. With 0 there is no source stage: the method starts from the initial weights."""
    steps: int | None = Field(None, ge=1)
    """Total optimiser steps; overrides `epochs`."""
    batch_size: int = Field(32, ge=2)
    """Images per batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the source cross-entropy."""
    adapt_batch_norm: bool = False
    """Compute BatchNorm statistics from target images before the source model is evaluated (AdaBN as a method)."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of this stage."""


class ScheduleSettings(Settings):
    """A number that grows round by round: min(start + round * step, max)."""

    start: float = Field(gt=0, le=1)
    """Value in round 0."""
    step: float = Field(ge=0, le=1)
    """Added each round."""
    max: float = Field(gt=0, le=1)
    """Largest value."""


class PortionSettings(ScheduleSettings):
    """Share of each class's target images that a round selects."""

    start: float = Field(0.2, gt=0, le=1)
    step: float = Field(0.05, ge=0, le=1)
    max: float = Field(0.5, gt=0, le=1)


class SourceShareSettings(ScheduleSettings):
    """Share of the source images that a round draws."""

    start: float = Field(0.065, gt=0, le=1)
    step: float = Field(0.0085, ge=0, le=1)
    max: float = Field(0.165, gt=0, le=1)


class TeacherSettings(EmaSettings):
    """The teacher, an exponential moving average (EMA) of the network's weights. The trained network is the student.

    The teacher begins as a copy of the source model.
    """

    pseudo_labels: Literal["teacher", "student"] = "teacher"
    """The network whose predictions become pseudo-labels."""

    @property
    def told(self) -> str:
        return f"{super().told}, the {self.pseudo_labels} gives pseudo-labels"


class TrainingSettings(Settings):
    """Settings of all training after the source stage."""

    ema: TeacherSettings = TeacherSettings()
