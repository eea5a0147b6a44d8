"""The settings of a training with scores after every epoch (`uda hardness dynamics`)."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from uda.core.registry import Registry
from uda.core.settings import PathText, Settings
from uda.data.settings import AugmentSettings, StorageSettings
from uda.hardness.people.bins import BINS
from uda.training.config import CONFIG_CLASSES, RunConfig
from uda.training.settings import EmaSettings, OptimSettings


class LabelledSettings(StorageSettings):
    """Settings of the labelled images for training and for scoring."""

    train: PathText = "train"
    """Training images: a domain of the card. Without a card: a folder with one folder per class, or a .txt list."""
    test: PathText = "test"
    """Test images, which are scored. The same kinds of value as `train`. They must not contain training images."""

    @model_validator(mode="after")
    def two_sets(self):
        if self.train == self.test:
            raise ValueError(f"train and test are both '{self.train}'; test must name other images")
        return self

    @field_validator("features")
    @classmethod
    def only_images(cls, features: str | None) -> str | None:
        if features is not None:
            raise ValueError("this training needs images, so it cannot run on a feature bank; set it to null")
        return features


class SupervisedSettings(Settings):
    """Settings of the training."""

    epochs: int = Field(15, ge=1)
    """Epochs over the training images."""
    batch_size: int = Field(128, ge=2)
    """Images in a batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing."""
    optim: OptimSettings = OptimSettings(lr=0.1, schedule="one_cycle")
    """Optimiser."""
    ema: EmaSettings = EmaSettings()


class HumanSettings(Settings):
    """Settings of the human labels of the test images."""

    file: PathText | None = None
    """Human labels or frequencies: a path, or a file in the data set's folder; null: all images are one group."""
    format: str | None = None
    """Format of the file, as for `--format` of `uda hardness correlate`; null: recognised by its content."""
    id_column: str | None = None
    """Column of the images' names in a csv; null: the first."""
    frequency_column: str | None = None
    """Column of the frequencies in a csv; null: the second."""
    allow_missing: bool = False
    """Allow test images that people have not seen. They are left out of groups and correlations."""
    bins: tuple[float, ...] = BINS
    """Edges of the groups by frequency: [0, .2], (.2, .4] and so on."""

    @model_validator(mode="after")
    def rising(self):
        if len(self.bins) < 2 or any(low >= high for low, high in zip(self.bins, self.bins[1:], strict=False)):
            raise ValueError(f"bins: must be two or more rising numbers, got {list(self.bins)}")
        return self


@CONFIG_CLASSES.register("hardness dynamics")
class SupervisedConfig(RunConfig):
    """A supervised training: images, a network, and the groups of images whose scores are followed."""

    default_folder: ClassVar[str] = "runs/{name}/seed{seed}"

    not_identity = (*RunConfig.not_identity, "human")
    totals = ("training.epochs",)

    method: str = "supervised"
    """`supervised` is the only method."""
    data: LabelledSettings
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of the training images."""
    training: SupervisedSettings = SupervisedSettings()
    human: HumanSettings = HumanSettings()

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.hardness.dynamics.method import SUPERVISED_METHODS
        from uda.report.loggers import LOGGERS

        return {**super().registries(), "method": SUPERVISED_METHODS, "report.loggers": LOGGERS}

    @property
    def domains(self) -> Mapping[str, str]:
        return {"train": self.data.train, "test": self.data.test}
