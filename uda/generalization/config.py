"""The configuration of domain generalisation: train on several domains, test on one that was never seen."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from uda.core.registry import Registry
from uda.core.settings import PathText, Settings
from uda.data.settings import AugmentSettings, StorageSettings
from uda.training.config import CONFIG_CLASSES, RunConfig
from uda.training.settings import OptimSettings


class DomainsSettings(StorageSettings):
    """Which domains there are."""

    domains: list[PathText] | None = None
    """Domains of the card, or folders and list files of your own; null: all of the card's."""


class TrainingSettings(Settings):
    """How the seen domains are trained on."""

    steps: int = Field(2000, ge=1)
    """Optimiser steps."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between reports; null: a tenth of all."""
    batch_size: int = Field(32, ge=2)
    """Images of each seen domain in a batch."""
    holdout: float = Field(0.2, gt=0, lt=1)
    """Share of each seen domain that is held out for training-domain validation, drawn by class."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm in training: batch statistics, or the frozen running ones."""
    frozen_backbone: bool = False
    """Compute the backbone's features of each image once, without augmentation, and train what comes after it."""
    optim: OptimSettings = OptimSettings()
    """Optimiser."""

    @property
    def interval(self) -> int:
        """Steps between reports."""
        return self.evaluate_every or -(-self.steps // 10)


@CONFIG_CLASSES.register("generalize")
class GeneralizationConfig(RunConfig):
    """A run of domain generalisation: a method, a loss (`model.loss`), domains, and the one that is left out."""

    default_folder: ClassVar[str] = "runs/{name}/{target}/seed{seed}"

    totals = ("training.steps",)

    method: str = "erm"
    """One of `--list methods`."""
    target: PathText | None = None
    """The domain that is never seen; null: each in turn."""
    data: DomainsSettings
    augment: AugmentSettings = AugmentSettings()
    """Augmentation in training, of every domain (`transforms` says what all images go through)."""
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def domains_or_a_card(self):
        if self.data.domains is None and self.data.dataset is None:
            raise ValueError("data: name a card by data.dataset, or folders of your own by data.domains")
        return self

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.generalization.methods import GENERALIZATION_METHODS

        return {**super().registries(), "method": GENERALIZATION_METHODS}

    @property
    def method_settings(self) -> dict[str, Any]:
        """What the run's method is told, by the names of its arguments."""
        return {"options": self.method_options, "label_smoothing": self.training.label_smoothing}

    @property
    def domains(self) -> Mapping[str, str]:
        return {"target": self.target or "all"}
