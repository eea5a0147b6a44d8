"""What a run's result depends on, and the digest by which a record says what it was made by."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from uda.training.config import RunConfig, flatten, option_defaults


def recipe(config: RunConfig) -> dict[str, Any]:
    """What a run's result depends on: its settings by dotted key, where they are not the default.

    Defaults are left out so that a new setting, which changes nothing for those who leave it alone, leaves every
    recipe the recipe that it was; the section of the other kind of method is left out because the run does not read it.
    """
    settings, defaults = flatten(config.model_dump(mode="json", exclude_defaults=True)), option_defaults(config)
    return {
        key: value
        for key, value in settings.items()
        if not below(key, (*config.not_identity, *config.unread)) and (key not in defaults or value != defaults[key])
    }


def digest(config: RunConfig, start: str = "") -> str:
    """Twelve hexadecimal digits that stand for a recipe, and for that of the run that it starts from."""
    text = json.dumps(recipe(config), sort_keys=True) + start
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def below(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or within a section that is."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)
