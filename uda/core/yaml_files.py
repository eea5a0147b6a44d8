"""Merges YAML files, their `_base_` and `key=value` overrides into one mapping, and explains mistakes in it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.core.resources import CONFIGS
from uda.core.settings import Settings
from uda.core.typed_yaml import declared_below, load_yaml, read_word, section_at, typed


class ConfigError(UserError):
    """One or more mistakes in a config, one per line."""


def find_config(name: str | Path, folder: Path = CONFIGS, what: str = "config") -> Path:
    """Path of a config: a file, or one of uda's own configs by name.

    Args:
        name: with or without `.yaml`.
        folder: the folder of uda's own configs.
        what: the word for such a file in messages.

    Raises:
        ConfigError: there is no such file. The message has the nearest name.
    """
    path = Path(os.path.expanduser(name))
    # `configs/tables/digits.yaml` names uda's own table in every folder, as `digits` does.
    candidates = [path, folder / path, CONFIGS / path, CONFIGS.parent / path]
    candidates += [candidate.with_name(candidate.name + ".yaml") for candidate in candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(p.name for p in folder.glob("*.yaml"))
    ends = [] if f"{path.stem}.yaml" in known else [name for name in known if name.endswith(f"_{path.stem}.yaml")]
    # Endings are alike, so they would make all names similar.
    near = nearest(path.stem, [name.removesuffix(".yaml") for name in known]).replace("'?", ".yaml'?")
    hint = f", did you mean {_either(ends)}?" if ends else near
    known_or_nearest = hint or f" (known: {', '.join(known)})"
    raise ConfigError(f"{name}: no such {what}: it is neither a file nor one of uda's own {what}s{known_or_nearest}")


def read_yaml(path: Path, what: str = "config") -> dict[str, Any]:
    """The content of a YAML file with keys and values, for `typed`.

    Args:
        path: the file.
        what: the word for such a file in messages.

    Raises:
        ConfigError: the file cannot be read, is not YAML or holds something else.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        kind = type(typed(content, Any)).__name__
        raise ConfigError(f"{path}: a {what} is a mapping of keys to values, but this is a {kind}")
    return content


def read_config(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged content of a config file and its bases, for `typed`, and the file that each dotted key is from."""
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path.name}: _base_ forms a circle: {' -> '.join(p.name for p in (*chain, path))}")
    content = read_yaml(path)
    if isinstance(content.get("plugins"), list):
        plugins = typed(content["plugins"], list[str])
        content["plugins"] = [str(path.parent / os.path.expanduser(str(plugin))) for plugin in plugins]
    bases = typed(content.pop("_base_", []), str | list[str])
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path.name}: _base_: must be a path or a list of paths; got {bases!r}")
    for base in bases:
        places = [place / os.path.expanduser(base) for place in (path.parent, CONFIGS)]
        base_path = next((place for place in places if place.is_file()), None)
        if base_path is None:
            raise ConfigError(f"{path.name}: _base_: no such file: {base} (beside {path.name} or among uda's configs)")
        values, names = read_config(base_path, (*chain, path))
        merged = merge(merged, values)
        origins |= names
    origins |= dict.fromkeys(dotted(content), path.name)
    return merge(merged, content), origins


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` changed by `change`, section by section. A `batch` replaces one of the other form (mixed or not).

    Options belong to the name beside them, as `loss_options` to `loss`. Another name leaves those of the base behind.
    """
    renamed = {f"{key}_options" for key, value in change.items() if value != base.get(key)}
    merged = {key: value for key, value in base.items() if key not in renamed}
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key == "batch" and ("mixed" in value) != ("mixed" in old):
                old = {}
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def dotted(content: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def parse_overrides(
    overrides: Iterable[str] | Mapping[str, Any], kind: type[Settings], origin: str = "command line"
) -> tuple[dict[str, Any], list[str]]:
    """Nested values of overrides, for `typed`, and messages about what is wrong with them.

    Args:
        overrides: `key.sub=value` words, read by the types that `kind` declares, or a mapping of dotted keys to values.
        kind: the config that they change.
        origin: where they are from, for messages.
    """
    problems: list[str] = []
    if isinstance(overrides, Mapping):
        pairs = [(str(key), _plain(value)) for key, value in overrides.items()]
    else:
        pairs = [(key, read_word(text, _declared(kind, key))) for key, text in _pairs(overrides, problems, origin)]
    values: dict[str, Any] = {}
    for key, value in pairs:
        branch = value
        for place in reversed(key.split(".")):
            branch = {place: branch}
        values = _merge_overrides(values, branch)
    return values, problems


def _declared(kind: type[Settings], key: str) -> Any:
    """The type of the setting at a dotted key."""
    declared: Any = kind
    for place in key.split("."):
        declared = declared_below(declared, place)
    return declared


def _plain(value: Any) -> Any:
    """A value as YAML has it, with paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _pairs(overrides: Iterable[str], problems: list[str], origin: str) -> Iterable[tuple[str, str]]:
    """Keys and texts of `key=value` words. Other words go to `problems`, with words that a space has split off."""
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        apart = ""
        if equals and key and key != key.strip():  # 'seed = 1', in quotes
            apart, text = key.strip(), text.strip()
        elif equals and key and not text and words and "=" not in words[0]:  # seed= 1
            apart, text = key, words.pop(0)
            word = f"{word} {text}"
        elif not equals and words and words[0].startswith("="):  # seed = 1, seed =1
            apart = key
            while words and ("=" not in words[0] or words[0].startswith("=")) and not text:
                word, text = f"{word} {words[0]}", words.pop(0).removeprefix("=")
        elif not equals and "." in word and words and not re.search(r"=|[a-z]\.[a-z]", words[0]):  # training.steps 1
            apart, text = word, words.pop(0)
            word = f"{word} {text}"
        if equals and key and not apart:
            yield key, text
        else:
            example = f"did you mean {apart}={text}?" if apart else "for example seed=1"
            if not apart and word.endswith("]"):  # [a, b] without quotes
                example += "; a list with spaces in it needs quotes"
            elif not apart and word.endswith((".yaml", ".yml")):
                example += f"; is it a config? --cfg {word}"
            problems.append(f"{origin}: '{word}': overrides are written key=value, {example}")


def _merge_overrides(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            base[key] = _merge_overrides(base[key], value)
        else:
            base[key] = value
    return base


def origin_of(key: str, origins: Mapping[str, str], default: str) -> str:
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return default


def _places_of(key: str, section: type[Settings], prefix: str = "") -> list[str]:
    """Dotted places of all settings with this name."""
    places = []
    for name, field in section.model_fields.items():
        if name == key:
            places.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            places += _places_of(key, field.annotation, f"{prefix}{name}.")
    return places


#: Other programs' names of settings, and ours.
_MEANT = {"learning_rate": "lr", "wd": "weight_decay", "scheduler": "schedule", "optimizer": "name"}


def _either(names: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def mistakes(
    error: ValidationError,
    config: type[Settings],
    origins: Mapping[str, str],
    default: str,
    root: type[Settings] | None = None,
    at: tuple[str, ...] = (),
) -> list[str]:
    """The errors that pydantic found in a config, one line each.

    Args:
        error: pydantic's error.
        config: the class of the config.
        origins: the file or other origin of each value, by dotted key.
        default: the origin of all other values.
        root: the section that was validated, if it is not part of `config`.
        at: the place of that section.
    """
    return [_explain(entry, config, origins, default, root, at) for entry in error.errors()]


def _explain(
    error: Mapping[str, Any],
    config: type[Settings],
    origins: Mapping[str, str],
    default: str,
    root: type[Settings] | None,
    at: tuple[str, ...],
) -> str:
    location = [*at, *(str(part) for part in error["loc"])]
    key = ".".join(location)
    where = f"{origin_of(key, origins, default)}: {key}" if key else default
    if error["type"] == "extra_forbidden":
        section = root or section_at(config, [*at, *error["loc"]][:-1])
        if section and location[-1] in section.gone:
            return f"{where}: {section.gone[location[-1]]}"
        known = sorted(section.model_fields) if section else []
        elsewhere = [] if root else _places_of(location[-1], config)
        beside = nearest(location[-1], known, cutoff=0.85 if elsewhere else 0.6)
        if not beside and _MEANT.get(location[-1]) in known:
            beside = f", did you mean '{_MEANT[location[-1]]}'?"
        hint = beside or (f", did you mean {_either(elsewhere)}?" if elsewhere else "")
        there_are = f" (known: {', '.join(known)})" if known else " (there are none)"
        return f"{where}: unknown key{hint or there_are}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: must be a section of keys, not a value; got {error['input']!r}"
    if error["type"] == "too_short":
        least = error["ctx"]["min_length"]
        return f"{where}: needs at least {least} entries, written [a,b]; got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message[0].lower()}{message[1:]}; got {error['input']!r}"
