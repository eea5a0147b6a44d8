"""The settings of domain generalisation: train on several domains, test on an unseen domain."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from uda.core.registry import Registry
from uda.core.settings import PathText, Settings
from uda.data.cards import load_card
from uda.data.settings import AugmentSettings, StorageSettings
from uda.training.config import CONFIG_CLASSES, RunConfig
from uda.training.settings import EmaSettings, OptimSettings


class DomainsSettings(StorageSettings):
    """Settings of the domains."""

    domains: list[PathText] | None = None
    """Domains of the card, or your own folders and list files; null: all domains of the card."""


class TrainingSettings(Settings):
    """Settings of training on the seen domains."""

    steps: int = Field(2000, ge=1)
    """Optimiser steps."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between reports; null: a tenth of all steps."""
    batch_size: int = Field(32, ge=2)
    """Images of each seen domain in a batch."""
    holdout: float = Field(0.2, gt=0, lt=1)
    """Share of each seen domain that is held out for training-domain validation, the same share of each class."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm in training: `train` uses batch statistics, `eval` frozen running statistics."""
    optim: OptimSettings = OptimSettings()
    """Optimiser."""
    ema: EmaSettings = EmaSettings()

    @property
    def interval(self) -> int:
        """Steps between reports."""
        return self.evaluate_every or -(-self.steps // 10)


@CONFIG_CLASSES.register("generalize")
class GeneralizationConfig(RunConfig):
    """A run of domain generalisation: a method, a loss (`model.loss`), seen domains and an unseen domain."""

    default_folder: ClassVar[str] = "runs/{name}/{target}/seed{seed}"

    totals = ("training.steps",)

    method: str = "erm"
    """One of `--list methods`."""
    target: PathText | None = None
    """The unseen domain; null: each domain in turn."""
    data: DomainsSettings
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of all domains' images in training. `transforms` has the settings for all images."""
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def domains_or_a_card(self):
        if self.data.domains is None and self.data.dataset is None:
            raise ValueError("data: name a card in data.dataset, or your own folders in data.domains")
        return self

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.generalization.methods import GENERALIZATION_METHODS
        from uda.report.loggers import LOGGERS

        return {**super().registries(), "method": GENERALIZATION_METHODS, "report.loggers": LOGGERS}

    @property
    def method_settings(self) -> dict[str, Any]:
        """The arguments of the run's method, by name."""
        return {"options": self.method_options, "label_smoothing": self.training.label_smoothing}

    @property
    def bank_domains(self) -> Sequence[tuple[str, str]]:
        names = list(load_card(self.data.dataset).domains) if self.data.domains is None else self.data.domains
        return [("data.domains", name) for name in names]

    @property
    def domains(self) -> Mapping[str, str]:
        return {"target": self.target or "all"}
