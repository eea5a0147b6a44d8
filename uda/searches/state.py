"""What a search is: config, space and judge, and its trials so far."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uda.core.errors import UserError
from uda.core.resources import CONFIGS
from uda.core.typed_yaml import typed
from uda.core.yaml_files import dotted, find_config, merge, parse_overrides
from uda.searches.runs import kind_of, validator_of
from uda.searches.space import read_space
from uda.searches.trials import Trial, trial_folder
from uda.tables.recipe import below
from uda.training.config import RunConfig, flatten

#: The caller's changes that the best config does not have. Where the data are is kept.
NOT_KEPT = ("runtime", "report", "output", "name", "plugins", "plugin_code", "bank")


class SearchState:
    """A search without the means to run it. The arguments are those of `Search`."""

    def __init__(
        self,
        config: str | Path | RunConfig,
        space: str | Path | Mapping[str, Any],
        trials: int,
        validator: str | None = None,
        folder: str | Path | None = None,
        overrides: Iterable[str] | Mapping[str, Any] = (),
        pruning: bool = True,
    ):
        self.kind = kind_of(config)
        overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
        self.given = typed(parse_overrides(overrides, self.kind.config)[0], self.kind.config)
        if "output" in self.given:
            raise UserError("output: a search has a folder of its own; choose it by `folder`")
        self.config_name = None if isinstance(config, RunConfig) else config
        self.config = self.kind.config.load(config, overrides)
        self.validator = validator_of(self.config, self.kind, validator)
        every = list(dotted(self.given))
        leaves = [key for key in every if not any(other.startswith(f"{key}.") for other in every)]
        self.space, self.left_out = read_space(space, self.config, leaves)
        own = self.config.folder
        self.folder = Path(os.path.expanduser(folder)) if folder is not None else own.with_name(f"search_{own.name}")
        self.wanted = trials
        self.pruning = pruning
        self.trials: list[Trial] = []

    @property
    def finished(self) -> bool:
        """Whether all wanted trials have ended."""
        return sum(trial.ended for trial in self.trials) >= self.wanted

    def config_of(self, trial: Trial) -> RunConfig:
        """The config of a trial's run. Raises ConfigError for values that do not fit together."""
        changes = {} if trial.number == 0 else dict(trial.values)
        changes |= {"output": str(trial_folder(self.folder, trial.number)), "report.page": False, "report.loggers": []}
        if self.kind.command == "adapt":
            changes["validator"] = self.validator
        return self.kind.config.load(self.config, changes, origin=self.space.name)

    def changes(self) -> dict[str, Any]:
        """The caller's changes of the config by dotted key."""
        return flatten(self.given)

    def best_content(self, best: Trial) -> dict[str, Any]:
        """The content of the best trial's config file: the base, the caller's changes and the best values."""
        kind, name = self.kind.config, f"{self.config.name}_best"
        changed = parse_overrides({} if best.number == 0 else best.values, kind)[0]
        if self.kind.command == "adapt":
            changed = merge({"validator": self.validator}, changed)
        if self.config.plugins:  # those of a config file are relative to that file
            changed["plugins"] = [os.path.abspath(plugin) for plugin in self.config.plugins]
        if self.config_name is None:
            left_out = {"plugin_code", "bank", "output", "name"}
            whole = self.config.model_dump(mode="json", exclude_unset=True, exclude=left_out)
            return {"name": name, **merge(whole, changed)}
        kept = {key: value for key, value in flatten(self.given).items() if not below(key, NOT_KEPT)}
        return {"_base_": self._base(), "name": name, **merge(parse_overrides(kept, kind)[0], changed)}

    def _base(self) -> str:
        """The path of the config for `_base_`: its name if it is uda's own, else relative to the search's folder."""
        path = find_config(self.config_name).resolve()
        if path.is_relative_to(CONFIGS.resolve()):
            return path.relative_to(CONFIGS.resolve()).as_posix()
        return Path(os.path.relpath(path, self.folder.resolve())).as_posix()
