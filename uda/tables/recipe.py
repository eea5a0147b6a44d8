"""What a run's result depends on, and the digest by which a record says what it was made by."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from uda.classification import LOSSES
from uda.config import NOT_IDENTITY, Config, RunConfig, flatten


def recipe(config: RunConfig) -> dict[str, Any]:
    """What a run's result depends on: its settings by dotted key, where they are not the default.

    Defaults are left out so that a new setting, which changes nothing for those who leave it alone, leaves every
    recipe the recipe that it was; the section of the other kind of method is left out because the run does not read it.
    """
    settings = flatten(config.model_dump(mode="json", exclude_defaults=True))
    apart = (*NOT_IDENTITY, *config.unread, *_options_at_their_default(config))
    return {key: value for key, value in settings.items() if not below(key, apart)}


def _options_at_their_default(config: RunConfig) -> list[str]:
    """Dotted keys of the method's and the loss's own settings that say what would hold without them."""
    methods, model = config.methods(), config.model
    kinds = []
    # A config of old may name a method, or settings, that are no more: of those nothing is known.
    if config.method in methods:
        kinds.append(("method_options", methods[config.method].Options, config.method_options))
    if model.loss in LOSSES:
        kinds.append(("model.loss_options", LOSSES[model.loss], model.loss_options))
    same = []
    for section, kind, given in kinds:
        defaults = kind.model_construct().model_dump(mode="json")  # as YAML has them: lists, not tuples
        same += [f"{section}.{key}" for key, value in given.items() if key in defaults and value == defaults[key]]
    return same


def digest(config: RunConfig, start: str = "") -> str:
    """Twelve hexadecimal digits that stand for a recipe, and for that of the run that it starts from."""
    text = json.dumps(recipe(config), sort_keys=True) + start
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def below(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or within a section that is."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def source_recipe(config: Config) -> dict[str, Any]:
    """The part of a recipe that decides the source model's weights."""
    after_training = ("source.adapt_batch_norm", "transforms.target")
    return {
        key: value
        for key, value in recipe(config).items()
        if below(key, ("seed", "data", "transforms", "model", "source")) and not below(key, after_training)
    }
