"""A space: a YAML file of settings and the values that a search may give them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, model_validator

from uda.adaptation.checks import unread_notes
from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.resources import CONFIGS
from uda.core.settings import Settings
from uda.core.typed_yaml import declared_below, typed
from uda.core.yaml_files import ConfigError, find_config, mistakes, read_yaml
from uda.data.banks import find_domain
from uda.data.features import OF_MAKING, UNREAD
from uda.models.feature_maker import check_made_by
from uda.training.config import RunConfig, option_defaults

#: Digits of a value that is drawn from a range. More would suggest a precision that no search has.
DIGITS = 4

#: Settings that no space may have, and why. What `not_identity` names does not change what a run is.
_OF_THE_TARGET = "the target and its labels are given, a search must not choose them"
NOT_SEARCHED = {
    "seed": "a seed is luck, not a recipe; run the best config with several seeds",
    "validator": "one validator judges all trials",
    "target": "the unseen domain is given, a search must not choose it",
    **dict.fromkeys(("data.target", "data.target_labels", "data.target_labelled"), _OF_THE_TARGET),
    **dict.fromkeys(("data.target_classes", "data.label_sets"), _OF_THE_TARGET),
    **dict.fromkeys(("data.dataset", "data.source", "data.classes", "data.domains"), "all trials need the same data"),
    "model.classifier": "class vectors are given like data; search once for each file",
}
#: Settings that no space may have on features, and why.
NOT_SEARCHED_ON_FEATURES = {
    **dict.fromkeys(UNREAD, "a run on features does not read it"),
    **dict.fromkeys(OF_MAKING, "the features are given, and this setting tells how they were made"),
}


class Range(Settings):
    """Numbers from `low` to `high`."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw the logarithm uniformly, as for a learning rate."""
    step: float | None = Field(None, gt=0)
    """Distance of neighbouring values, from `low` on; null: any value."""

    @model_validator(mode="after")
    def in_order(self):
        if self.low >= self.high:
            raise ValueError(f"low must be below high; got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: low must be above 0; got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be combined")
        if self.step is not None and not _is_whole_number((self.high - self.low) / self.step):
            raise ValueError(f"step: high must be low plus some steps; got {self.low:g}, {self.high:g}, {self.step:g}")
        return self


def _is_whole_number(steps: float) -> bool:
    return math.isclose(steps, round(steps), abs_tol=1e-6)


@dataclass(frozen=True)
class Searched:
    """A setting that a search changes: either numbers of a range, or one of several values."""

    key: str
    """Dotted key."""
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    whole: bool = False
    """Whether the numbers of the range are whole."""

    @property
    def ends(self) -> Sequence[Any]:
        """The values to check a config with: all choices, or the ends of the range."""
        if self.range is None:
            return self.choices
        return [self._number(end) for end in (self.range.low, self.range.high)]

    def _number(self, value: float) -> float | int:
        return int(value) if self.whole else value

    def distribution(self) -> Any:
        """Optuna's distribution. A choice is drawn by its place, because it may be a list or a section."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.range is None:
            return CategoricalDistribution(range(len(self.choices)))
        low, high = self.ends
        if self.whole:
            return IntDistribution(low, high, log=self.range.log, step=int(self.range.step or 1))
        return FloatDistribution(low, high, log=self.range.log, step=self.range.step)

    def value(self, drawn: Any) -> Any:
        """The setting's value for what Optuna has drawn. Numbers of a range have few digits."""
        if self.range is None:
            return self.choices[drawn]
        if self.whole:
            return int(drawn)
        low, high = self.range.low, self.range.high
        if self.range.step is not None:
            return min(float(f"{drawn:.10g}"), high)
        return min(max(float(f"{drawn:.{DIGITS}g}"), low), high)

    def drawn(self, value: Any) -> Any:
        """What Optuna must draw for this value; None if the space does not have it."""
        if self.range is None:
            return self.choices.index(value) if value in self.choices else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.range.low <= value <= self.range.high:
            return None
        if self.range.step is not None:
            return value if _is_whole_number((value - self.range.low) / self.range.step) else None
        return value

    def entry(self) -> Any:
        """The entry of a space file."""
        if self.range is None:
            return list(self.choices)
        low, high = self.ends
        entry: dict[str, Any] = {"low": low, "high": high}
        if self.range.log:
            entry["log"] = True
        if self.range.step is not None:
            entry["step"] = self._number(self.range.step)
        return entry

    def describe(self) -> str:
        """The values in words: `0.001 to 0.1 (log)`."""
        if self.range is None:
            return ", ".join(map(value_text, self.choices))
        low, high = (value_text(end) for end in self.ends)
        how = (
            "log" if self.range.log else f"step {value_text(self._number(self.range.step))}" if self.range.step else ""
        )
        return f"{low} to {high}{f' ({how})' if how else ''}"


def value_text(value: Any) -> str:
    """A value of a setting as people write it in YAML."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.{DIGITS + 2}g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


@dataclass(frozen=True)
class Space:
    """The settings that a search changes."""

    name: str
    """Name of the space, for messages: that of its file."""
    settings: tuple[Searched, ...]

    def entries(self) -> dict[str, Any]:
        """The content of a space file."""
        return {setting.key: setting.entry() for setting in self.settings}

    def values_of(self, config: RunConfig) -> dict[str, Any]:
        """The values that a config has for the settings of the space. None stands for a section that it lacks."""
        content, defaults = config.model_dump(mode="json"), option_defaults(config)
        keys = [setting.key for setting in self.settings]
        return {key: _at(content, key, defaults.get(key)) for key in keys}


def _at(content: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return default
        content = content[part]
    return content


def space_folder() -> Path:
    """The folder of uda's own spaces."""
    return CONFIGS / "spaces"


def read_space(
    space: str | Path | Mapping[str, Any], config: RunConfig, fixed: Iterable[str] = ()
) -> tuple[Space, list[str]]:
    """Read a space and check it against a config.

    Args:
        space: path of a YAML file, the name of one in configs/spaces/, or its content: dotted keys to lists of values
            or to ranges.
        config: the config whose settings the search changes.
        fixed: dotted keys that the caller has given. They are left out of the space.

    Returns:
        The space, and the keys of the file that `fixed` leaves out.

    Raises:
        ConfigError: all mistakes, one line each: unknown keys, values that the config refuses, settings that no search
            may change.
    """
    if isinstance(space, Mapping):
        name, content = "space", dict(space)
    else:
        path = find_config(space, space_folder(), "space")
        name, content = path.name, read_yaml(path, "space")
    given = tuple(fixed)
    left_out = [key for key in content if any(_overlap(str(key), other) for other in given)]
    problems, settings = [], []
    for key, entry in content.items():
        if key in left_out:
            continue
        try:
            settings.append(_setting(str(key), entry, type(config), name))
        except ConfigError as error:
            problems += str(error).split("\n")
    found = Space(name, tuple(settings))
    problems += _not_searched(found, config)
    if not content:
        problems.append(
            f"{name}: a space needs settings, such as source.optim.lr: {{low: 0.001, high: 0.1, log: true}}"
        )
    elif not settings and not problems:
        problems.append(f"{name}: nothing is left to search, because all its settings are given")
    if not problems:
        problems = _several_selectors(config, "") or _refused_values(found, config)
    if problems:
        raise ConfigError("\n".join(problems))
    return found, left_out


def _overlap(key: str, other: str) -> bool:
    """Whether two dotted keys name the same setting, or one names a section of the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _setting(key: str, entry: Any, kind: type[RunConfig], origin: str) -> Searched:
    """A setting of the space. Raises ConfigError."""
    declared: Any = kind
    for part in key.split("."):
        declared = declared_below(declared, part)
    if isinstance(entry, list):
        choices = tuple(_as_number(typed(value, declared), declared) for value in entry)
        if len(choices) < 2:
            raise ConfigError(f"{origin}: {key}: needs at least two values; a single one is a setting, {key}=...")
        if twice := [value for place, value in enumerate(choices) if value in choices[:place]]:
            raise ConfigError(f"{origin}: {key}: {value_text(twice[0])} is given twice")
        return Searched(key, choices)
    if isinstance(entry, Mapping) and entry.keys() & {"min", "max"}:
        raise ConfigError(f"{origin}: {key}: a range is {{low: ..., high: ...}}, not min and max")
    if isinstance(entry, Mapping) and entry.keys() & Range.model_fields.keys():
        try:
            found = Range.model_validate(typed(entry, Range))
        except ValidationError as error:
            raise ConfigError("\n".join(mistakes(error, Range, {}, origin, Range, (key,)))) from None
        whole = _is_whole(declared)
        if whole and any(number % 1 for number in (found.low, found.high, found.step or 0)):
            raise ConfigError(f"{origin}: {key}: this setting has whole numbers; give low, high and step as such")
        return Searched(key, range=found, whole=whole)
    if isinstance(entry, Mapping):
        example = f"{key}.{next(iter(entry), '...')}"
        raise ConfigError(f"{origin}: {key}: write settings below it with their whole name, such as {example}: ...")
    raise ConfigError(
        f"{origin}: {key}: give a list of values, [a, b], or a range, {{low: ..., high: ...}}; "
        f"got {value_text(typed(entry, declared))}"
    )


def _as_number(value: Any, declared: Any) -> Any:
    """A value of a setting for numbers. `1e-3` is a text for YAML."""
    members = get_args(declared) or (declared,)
    if isinstance(value, str) and float in members and str not in members:
        with suppress(ValueError):
            return float(value)
    return value


def _is_whole(declared: Any) -> bool:
    """Whether a setting holds whole numbers only."""
    members = get_args(declared) or (declared,)
    return int in members and float not in members


def _not_searched(space: Space, config: RunConfig) -> list[str]:
    """Messages about settings that no search may change, that the method does not read, or that overlap."""
    problems, keys = [], [setting.key for setting in space.settings]
    fixed = (*config.not_identity, "plugin_code", "bank")  # but another feature bank is another run
    refused = NOT_SEARCHED | (NOT_SEARCHED_ON_FEATURES if config.data.features is not None else {})
    for place, key in enumerate(keys):
        where = f"{space.name}: {key}"
        why = next((why for name, why in refused.items() if _overlap(key, name)), None)
        if why is None and key != "data.features" and any(_overlap(key, name) for name in fixed):
            why = "it does not change what a run is"
        if why is not None:
            problems.append(f"{where}: no setting for a search: {why}")
        problems += [f"{where}: overlaps with {other}" for other in keys[:place] if _overlap(key, other)]
        if why is None and isinstance(config, AdaptationConfig) and "method" not in keys:
            notes = unread_notes(config, [key])
            problems += [f"{space.name}: {note.removeprefix('note: ')}; leave it out" for note in notes]
    return problems


def _refused_values(space: Space, config: RunConfig) -> list[str]:
    """Messages about keys and values that the config refuses.

    Every value is tried with the first value of each other setting.
    """
    first = {setting.key: setting.ends[0] for setting in space.settings}
    problems: dict[str, None] = {}
    tried = [first, *(first | {setting.key: value} for setting in space.settings for value in setting.ends[1:])]
    for values in tried:
        try:
            found = type(config).load(config, values, origin=space.name)
            problems |= dict.fromkeys(_several_selectors(found, f"{space.name}: "))
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).split("\n"))
            continue
        if "data.features" in first:
            problems |= dict.fromkeys(_another_backbone(found, space.name))
    return list(problems)


def _another_backbone(config: RunConfig, origin: str) -> list[str]:
    """A message if a bank was made by another network than the config names."""
    try:
        for key, name in config.bank_domains:
            check_made_by(find_domain(config.data.features, name, key).made_by, config.model, config.transforms)
    except UserError as error:
        return [f"{origin}: {error} ({config.data.features})"]
    return []


def _several_selectors(config: RunConfig, origin: str) -> list[str]:
    """A message if a trial would consist of several runs, one for each selector."""
    if not isinstance(config, AdaptationConfig) or not config.branches:
        return []
    names = ", ".join(config.branches)
    return [
        f"{origin}self_training.selector: a trial has one selector, not a list ({names}); give one, and name the "
        "others in the space"
    ]
