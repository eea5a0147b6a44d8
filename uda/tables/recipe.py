"""The recipe of a run, which is all that its result depends on, and the digest of a recipe for records."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from uda.training.config import RunConfig, flatten, option_defaults


def recipe(config: RunConfig) -> dict[str, Any]:
    """The settings that a run's result depends on, by dotted key, without defaults.

    Defaults are left out, so that a new setting does not change existing recipes. Sections that the run's method does
    not read are left out too.
    """
    settings, defaults = flatten(config.model_dump(mode="json", exclude_defaults=True)), option_defaults(config)
    return {
        key: value
        for key, value in settings.items()
        if not below(key, (*config.not_identity, *config.unread)) and (key not in defaults or value != defaults[key])
    }


def digest(config: RunConfig, start: str = "") -> str:
    """Digest of a recipe, twelve hexadecimal digits. `start`: digest of the run that it starts from."""
    text = json.dumps(recipe(config), sort_keys=True) + start
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def below(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of `sections` or lies within one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)
