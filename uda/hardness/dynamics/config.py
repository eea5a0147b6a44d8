"""The configuration of a training whose every epoch is scored (`uda hardness dynamics`)."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from uda.core.registry import Registry
from uda.core.settings import PathText, Settings
from uda.data.settings import AugmentSettings, StorageSettings
from uda.hardness.people.bins import BINS
from uda.training.config import CONFIG_CLASSES, RunConfig
from uda.training.settings import OptimSettings


class LabelledSettings(StorageSettings):
    """Which labelled images are trained on, and which are scored."""

    train: PathText = "train"
    """A domain of the card; without a card a folder with one folder a class, or a .txt list."""
    test: PathText = "test"
    """In the same way; none of its images may be among those that are trained on."""

    @model_validator(mode="after")
    def two_sets(self):
        if self.train == self.test:
            raise ValueError(f"train and test are both '{self.train}': name images that are not trained on")
        return self


class SupervisedSettings(Settings):
    """How the network is trained."""

    epochs: int = Field(15, ge=1)
    """Epochs over the training images."""
    batch_size: int = Field(128, ge=2)
    """Images in a batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing."""
    optim: OptimSettings = OptimSettings(lr=0.1, schedule="one_cycle")
    """Optimiser."""


class HumanSettings(Settings):
    """What people say of the test images."""

    file: PathText | None = None
    """Human labels or frequencies: a path, or a file in the data set's folder; null: all images are one group."""
    format: str | None = None
    """How the file is written, one of `uda hardness correlate`'s formats; null: as its content looks."""
    id_column: str | None = None
    """Of a csv, the column of the images' names; null: the first."""
    frequency_column: str | None = None
    """Of a csv, the column of the frequencies; null: the second."""
    allow_missing: bool = False
    """Go on where people have not seen all test images: those are in no group and in no correlation."""
    bins: tuple[float, ...] = BINS
    """Edges of the groups: [0, .2], (.2, .4] and so on."""

    @model_validator(mode="after")
    def rising(self):
        if len(self.bins) < 2 or any(low >= high for low, high in zip(self.bins, self.bins[1:], strict=False)):
            raise ValueError(f"bins: needs two or more rising numbers, got {list(self.bins)}")
        return self


@CONFIG_CLASSES.register("hardness dynamics")
class SupervisedConfig(RunConfig):
    """A supervised training: images, a network, and the groups by which its scores are followed."""

    default_folder: ClassVar[str] = "runs/{name}/seed{seed}"

    not_identity = (*RunConfig.not_identity, "human")
    totals = ("training.epochs",)

    method: str = "supervised"
    """The only one there is."""
    data: LabelledSettings
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of the training images."""
    training: SupervisedSettings = SupervisedSettings()
    human: HumanSettings = HumanSettings()

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.hardness.dynamics.method import SUPERVISED_METHODS

        return {**super().registries(), "method": SUPERVISED_METHODS}

    @property
    def domains(self) -> Mapping[str, str]:
        return {"train": self.data.train, "test": self.data.test}
