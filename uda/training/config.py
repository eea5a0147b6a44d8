"""The configuration of a run: YAML files and `key=value` overrides become one typed, frozen object.

A config file holds only what differs from its `_base_` (one path or a list, relative to the file). All mistakes are
reported at once, each with its file, its key and the nearest known name.
"""

import hashlib
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.core.settings import PathText, Settings
from uda.core.typed_yaml import typed
from uda.core.yaml_files import (
    ConfigError,
    dotted,
    find_config,
    merge,
    mistakes,
    origin_of,
    parse_overrides,
    read_config,
)
from uda.data.settings import TransformSettings
from uda.models.settings import ModelSettings
from uda.training.settings import EmaSettings, ReportSettings, RuntimeSettings

#: Config classes of the commands of `uda`, by command.
CONFIG_CLASSES: Registry[type[Settings]] = Registry("kind of config")


class RunConfig(Settings, ABC):
    """Settings that every kind of run has."""

    default_folder: ClassVar[str] = "runs/{name}/seed{seed}"
    not_identity: ClassVar[tuple[str, ...]] = (
        *("runtime", "report", "output", "plugins", "name"),
        *("data.root", "data.cache", "data.store", "data.store_gb", "data.features"),
        "model.classifier",
    )
    """Sections and keys that define how or where a run is computed. They do not change what the run is."""
    length: ClassVar[tuple[str, ...]] = ()
    """Keys for the length of a run that earlier training does not depend on. Such a run can be made longer."""
    totals: ClassVar[tuple[str, ...]] = ()
    """Keys for the length of a run that its schedules depend on. Such a run cannot be made longer."""

    name: str
    """Name of the run, used in its folder's path. The default is the name of the config file."""
    method: str
    """The training method."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of this method only: the fields of its `Options`."""
    seed: int = Field(0, ge=0)
    """Seed of all randomness."""
    output: PathText | None = None
    """Run folder; null: the default of this kind of run. {name}, {seed} and the names of domains are filled in."""
    plugins: list[PathText] = Field(default_factory=list)
    """Your own Python files that register selectors, regularisers, backbones etc. Relative to the config file."""
    plugin_code: dict[str, str] = Field(default_factory=dict)
    """Digest of each plugin file, by file name; filled in by `load`. A run with changed code is a different run."""
    bank: str = ""
    """What the feature bank is, wherever it lies; filled in by `load`. A run on another bank is a different run."""
    class_vectors: str = ""
    """What the file `model.classifier` is, wherever it lies; filled in by `load`. Other vectors are a different run."""
    transforms: TransformSettings = TransformSettings()
    model: ModelSettings = ModelSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def as_many_channels(self):
        if len(self.transforms.mean) != len(self.transforms.std):
            raise ValueError("transforms.mean and transforms.std: need the same number of channels")
        return self

    @classmethod
    def load(
        cls,
        name: "str | Path | Self",
        overrides: Iterable[str] | Mapping[str, Any] = (),
        origin: str = "command line",
        saved: bool = False,
        origins: Mapping[str, str] | None = None,
    ) -> Self:
        """Read, merge and validate a config, and import its plugins.

        Args:
            name: path of a YAML file, the name of one in configs/, or a config that overrides are to change.
            overrides: `key=value` words, as `uda.core.typed_yaml.read_word` reads them, or values by dotted key.
            origin: where the overrides come from, for messages.
            saved: whether the file is the config.yaml of a run folder, which may be of an older version.
            origins: where single overrides come from in place of `origin`, by dotted key.

        Raises:
            ConfigError: all mistakes, one line each: file, key, what is wrong, the nearest known name.
        """
        if isinstance(name, RunConfig):
            path, content, found_in = Path(name.name), name.model_dump(exclude_unset=True), {}
        else:
            path = find_config(name)
            content, found_in = read_config(path)
            if saved:
                content = of_this_version(content)
        changes, problems = parse_overrides(overrides, cls, origin)
        origins = found_in | {key: origin_of(key, origins or {}, origin) for key in dotted(changes)}
        content.setdefault("name", path.stem)
        refuse_another_kind(cls, content, path)
        untyped = merge(content, changes)
        merged = typed(untyped, cls)
        config, codes, damaged_plugins = None, {}, []
        try:
            plugins = merged.get("plugins")
            for plugin in plugins if isinstance(plugins, list) else []:
                file = Path(str(plugin)).name
                codes[file] = codes.get(file, "") + load_plugin(str(plugin))  # two plugins may have the same file name
        except UserError as error:
            damaged_plugins.append(f"{origin_of('plugins', origins, path.name)}: {error}")
        for place, (given, declared) in _described(cls, merged).items():  # after plugins, which may register a method
            if given:
                *sections, last = place.split(".")
                section, as_read = merged, untyped
                for part in sections:
                    section, as_read = section[part], as_read[part]
                section[last] = typed(as_read[last], declared)
        try:
            config = cls.model_validate(merged)
        except ValidationError as error:
            problems += mistakes(error, cls, origins, path.name)
        problems += damaged_plugins
        problems += _check_names(cls, merged, origins, path.name)
        bank = merged.get("bank", "") if saved else ""  # the bank of a saved run may be gone
        if config is not None and config.data.features is not None and not saved:
            from uda.data.banks import identity  # imports torch

            try:
                bank = identity(config.data.features, config.bank_domains)
            except UserError as error:
                key = next(
                    (key for key, _ in config.bank_domains if str(error).startswith(f"{key}: ")), "data.features"
                )
                problems.append(f"{origin_of(key, origins, path.name)}: {error}")
        vectors = merged.get("class_vectors", "") if saved else ""
        if config is not None and config.vectors_file is not None and not saved:
            from uda.models import class_vectors  # imports torch

            try:
                vectors = class_vectors.identity(config.vectors_file)
            except UserError as error:
                problems.append(f"{origin_of('model.classifier', origins, path.name)}: {error}")
        if problems:
            raise ConfigError("\n".join(problems))
        return config.model_copy(update={"plugin_code": codes, "bank": bank, "class_vectors": vectors})

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        """Dotted keys that hold a name of a registry, or a list of such names."""
        from uda.models.losses import LOSSES

        return {"model.loss": LOSSES}

    @classmethod
    def methods(cls) -> Registry:
        """The methods of this kind of run."""
        return cls.registries()["method"]

    @classmethod
    def option_kinds(cls) -> Mapping[str, Mapping[str, type[Settings]]]:
        """The settings that `<key>_options` has for each name, by the dotted key of the name."""
        from uda.models.losses import LOSSES

        return {"method": {name: method.Options for name, method in cls.methods().items()}, "model.loss": LOSSES}

    @classmethod
    def wrong_names(cls, content: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Wrong names in a config that no registry can check: each key with its error."""
        return []

    @property
    @abstractmethod
    def domains(self) -> Mapping[str, str]:
        """Names of domains that fill the template of the run folder, by field."""

    @property
    def vectors_file(self) -> str | None:
        """The file of class vectors that the classifier starts from; None without one."""
        return self.model.classifier

    @property
    def ema(self) -> EmaSettings:
        """The teacher's settings."""
        return self.training.ema

    @property
    def bank_domains(self) -> Sequence[tuple[str, str]]:
        """The domains that a run reads from a feature bank, each with the setting that names it."""
        return ()

    @property
    def start(self) -> str | None:
        """Weights that the run starts from, a file or a run folder; None: its own initial weights."""
        return None

    @property
    def unread(self) -> tuple[str, ...]:
        """Config sections that the run's method does not read."""
        return ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        template = self.output or self.default_folder
        fields = {"name": self.name, "seed": str(self.seed), **self.domains}
        for field, value in fields.items():
            template = template.replace("{" + field + "}", value.replace("/", "_"))
        return Path(template)

    def to_yaml(self) -> str:
        """The resolved config as YAML, as in the run's `config.yaml`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_plugin(path: str | Path) -> str:
    """Import a user's Python file once, so that its names are registered.

    Returns a digest of its content, twelve hexadecimal digits. Raises UserError if the file cannot be imported, or has
    changed since it was imported.
    """
    path = Path(os.path.expanduser(path)).resolve()
    if not path.is_file():
        raise UserError(f"plugins: no such file: {path}")
    code = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    name = f"uda_plugin_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        if sys.modules[name].__code_digest__ != code:
            raise UserError(f"plugins: {path.name} has changed since this process imported it; restart Python")
        return code
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    module.__code_digest__ = code
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"plugins: {path.name} cannot be imported: {type(error).__name__}: {error}") from error
    return code


def refuse_another_kind(kind: type[Settings], content: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError if a config has sections or keys that this kind lacks and another kind has them all."""
    if knows(kind, content):
        return
    for command, other in CONFIG_CLASSES.items():
        if knows(other, content):
            raise ConfigError(f"{path.name}: this config is for `uda {command}`; run it with that command")


def knows(kind: type[Settings], content: Mapping[str, Any]) -> bool:
    """Whether a kind of config has all sections and keys of `content`."""
    if not content.keys() <= kind.model_fields.keys():
        return False
    sections = {key: kind.model_fields[key].annotation for key, value in content.items() if isinstance(value, Mapping)}
    return all(
        content[key].keys() <= section.model_fields.keys()
        for key, section in sections.items()
        if isinstance(section, type) and issubclass(section, Settings)
    )


def _check_names(
    kind: type[RunConfig], content: Mapping[str, Any], origins: Mapping[str, str], default: str
) -> list[str]:
    """Errors of names that must be in a registry. They are collected, so that all mistakes are reported together."""
    problems = []
    for key, registry in kind.registries().items():
        value: Any = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        for name in value if isinstance(value, list) else [value]:
            several = [part.strip() for part in str(name).split(",")]
            if len(several) > 1 and set(several) <= registry.keys():
                where = f"{origin_of(key, origins, default)}: {key}"
                problems.append(f"{where}: a list of names is written [{','.join(several)}], in quotes; got '{name}'")
            elif isinstance(name, str) and name not in registry:
                try:
                    registry[name]
                except UserError as error:
                    problems.append(f"{origin_of(key, origins, default)}: {key}: {error}")
    problems += [f"{origin_of(key, origins, default)}: {key}: {error}" for key, error in kind.wrong_names(content)]
    return problems + _check_options(kind, content, origins, default)


def _described(
    kind: type[RunConfig], content: Mapping[str, Any]
) -> dict[str, tuple[Mapping[str, Any], type[Settings]]]:
    """The options of the method, of the loss etc., each with the type that declares them, by dotted key."""
    found = {}
    for key, described_by in kind.option_kinds().items():
        *sections, last = key.split(".")
        values, fields = content, kind.model_fields
        for section in sections:
            values, fields = values.get(section, {}), fields[section].annotation.model_fields
            values = values if isinstance(values, Mapping) else {}
        name, options = values.get(last, fields[last].default), values.get(f"{last}_options", {})
        if isinstance(name, str) and name in described_by and isinstance(options, Mapping):
            found[f"{key}_options"] = options, described_by[name]
    return found


def _check_options(
    kind: type[RunConfig], content: Mapping[str, Any], origins: Mapping[str, str], default: str
) -> list[str]:
    problems = []
    for place, (options, known) in _described(kind, content).items():
        try:
            known.model_validate(options)
        except ValidationError as error:
            if known.model_fields or not options:
                problems += mistakes(error, kind, origins, default, known, tuple(place.split(".")))
                continue
            what = place.removesuffix("_options")
            problems.append(
                f"{origin_of(place, origins, default)}: {place}: this {what} has no options, but {', '.join(options)} "
                f"is given; remove {place}"
            )
        except UserError as error:  # an unknown name in a registry
            problems.append(f"{origin_of(place, origins, default)}: {place}: {error}")
    return problems


def of_this_version(saved: Any) -> Any:
    """The content of a run folder's config.yaml, in which keys of older versions have become today's.

    Raises UserError if it has a setting that no longer exists.
    """
    training = saved.get("training") if isinstance(saved, Mapping) else None
    if isinstance(training, Mapping) and "frozen_backbone" in training:
        if typed(training["frozen_backbone"], bool) is not False:
            raise UserError(
                "training.frozen_backbone: the run is of an older version of uda; make a feature bank with `uda bank`, "
                "and start the run again with data.features"
            )
        saved = {**saved, "training": {key: value for key, value in training.items() if key != "frozen_backbone"}}
    report = saved.get("report") if isinstance(saved, Mapping) else None
    if not isinstance(report, Mapping) or "tensorboard" not in report:
        return saved
    kept = {key: value for key, value in report.items() if key != "tensorboard"}
    wanted = typed(report["tensorboard"], bool) is not False
    return {**saved, "report": {"loggers": ["tensorboard"] if wanted else [], **kept}}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def option_defaults(config: RunConfig) -> dict[str, Any]:
    """Default values of the options of the method, of the loss etc., by dotted key.

    A config of another version may name a method or loss that is not registered. Such a one has no entries.
    """
    found = {}
    for key, described_by in type(config).option_kinds().items():
        name: Any = config
        for part in key.split("."):
            name = getattr(name, part)
        if name in described_by:
            found[f"{key}_options"] = described_by[name]
    # In JSON mode, because YAML has lists and not tuples.
    return flatten({key: kind.model_construct().model_dump(mode="json") for key, kind in found.items()})


def differing_keys(config: RunConfig, saved: Mapping[str, Any], skip: Iterable[str] | None = None) -> list[str]:
    """Keys in which a saved config differs from this one, as `key: saved -> now`.

    `skip`: sections and keys to ignore; None: `not_identity`.
    """
    skip = config.not_identity if skip is None else skip
    defaults = option_defaults(config)
    now, then = defaults | flatten(config.model_dump(mode="json")), defaults | flatten(saved)
    return [
        f"{key}: {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not any(key == k or key.startswith(k + ".") for k in skip)
    ]
