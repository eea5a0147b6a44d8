"""The configuration of an adaptation: from labelled source images to unlabelled target images."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

from uda.adaptation.settings import (
    AdaptationSettings,
    MethodSettings,
    PairTransformSettings,
    SelfTrainingSettings,
)
from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.data.cards import load_card
from uda.data.settings import DataSettings
from uda.training.config import CONFIG_CLASSES, RunConfig
from uda.training.stage_settings import SourceSettings, TrainingSettings


@CONFIG_CLASSES.register("adapt")
class AdaptationConfig(RunConfig):
    """Config of a run from a source to a target domain: a method, a selector and two domains."""

    not_identity = (*RunConfig.not_identity, "self_training.on_empty")
    length = ("self_training.rounds",)
    totals = ("adaptation.steps",)

    method: str = "self_training"
    """One of `--list methods`."""
    validator: str = "im"
    """Label-free score that picks `label_free_choice`, one of `--list validators`."""
    data: DataSettings
    transforms: PairTransformSettings = PairTransformSettings()
    source: SourceSettings = SourceSettings()
    self_training: SelfTrainingSettings = SelfTrainingSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def lrent_with_softmax(self):
        training = self.self_training
        others = [name for name in training.selectors if name != "softmax"]
        if training.keep == "lrent" and (others or "lrent" not in training.regularizer):
            named = "" if not others or others == [training.selector] else f"; the list has {', '.join(others)}"
            raise ValueError(f"self_training.keep: 'lrent' needs the softmax selector and an lrent regularizer{named}")
        return self

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.adaptation.methods import ADAPTATION_METHODS, UNLABELLED_LOSSES
        from uda.evaluation.validators import VALIDATORS
        from uda.report.loggers import LOGGERS
        from uda.selection.regularizers import REGULARIZERS
        from uda.selection.selectors import SELECTORS

        return {
            **super().registries(),
            "method": ADAPTATION_METHODS,
            "report.loggers": LOGGERS,
            "self_training.selector": SELECTORS,
            "self_training.regularizer": REGULARIZERS,
            "self_training.unlabelled_loss": UNLABELLED_LOSSES,
            "validator": VALIDATORS,
        }

    def method_settings(self, name: str | None = None) -> MethodSettings:
        """Settings for the run's method. With `name`: settings for that method, with its default options."""
        from uda.adaptation.methods import ADAPTATION_METHODS

        stage = self.self_training if ADAPTATION_METHODS[name or self.method].rounds else self.adaptation
        return MethodSettings(
            self.method_options if name is None else {},
            stage.forward,
            self.source.label_smoothing,
            self.data.target_labelled is not None,
            self.self_training,
        )

    @property
    def branches(self) -> "Mapping[str, AdaptationConfig]":
        """The configs of the ordinary runs that a run with several selectors consists of, by selector.

        Their folders are in the run's folder. Empty for all other runs.
        """
        from uda.adaptation.methods import ADAPTATION_METHODS

        training = self.self_training
        if len(training.selectors) < 2 or not training.rounds or not ADAPTATION_METHODS[self.method].rounds:
            return {}
        return {
            name: self.model_copy(
                update={
                    "self_training": training.model_copy(update={"selector": name}),
                    "output": str(self.folder / branch_folder(name)),
                }
            )
            for name in training.selectors
        }

    @property
    def trains_source(self) -> bool:
        """Whether the run begins with a source stage."""
        return not self.source.checkpoint and bool(self.source.steps or self.source.epochs)

    @property
    def unread(self) -> tuple[str, ...]:
        from uda.adaptation.methods import ADAPTATION_METHODS

        if self.method not in ADAPTATION_METHODS:  # the config of an old run, whose method no longer exists
            return ()
        return ("self_training",) if ADAPTATION_METHODS[self.method].adapts else ("adaptation",)

    @property
    def domains(self) -> Mapping[str, str]:
        return {"source": "+".join(self.data.sources), "target": "+".join(self.data.targets)}

    @property
    def bank_domains(self) -> Sequence[tuple[str, str]]:
        sources, targets = self.data.sources, self.data.targets
        return [*(("data.source", name) for name in sources), *(("data.target", name) for name in targets)]

    @property
    def start(self) -> str | None:
        return self.source.checkpoint

    @classmethod
    def wrong_names(cls, content: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Domain names that the card does not have."""
        data, problems = content.get("data"), []
        if not isinstance(data, Mapping) or not isinstance(data.get("dataset"), str):
            return []
        try:
            card = load_card(data["dataset"])
        except UserError:  # reported when the data are loaded
            return []
        for role in ("source", "target"):
            names = data.get(role)
            for name in [names] if isinstance(names, str) else names if isinstance(names, list) else []:
                try:
                    card.domain(str(name))
                except UserError as error:
                    problems.append((f"data.{role}", str(error)))
        return problems


def branch_folder(selector: str) -> str:
    """The folder of the run of one of several selectors, in the run's folder."""
    return f"selectors/{selector.replace('/', '_')}"
