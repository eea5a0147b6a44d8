"""A run of a table: its folder, its config and command, and its record."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.core.resources import DISTRIBUTION
from uda.tables.definition import TOGETHER, Row, Table, name_of
from uda.tables.ledger import RUN, Run
from uda.tables.recipe import digest
from uda.training.config import RunConfig, differing_keys, of_this_version
from uda.training.records import read_record


@dataclass(frozen=True)
class Job(ABC):
    """Base of a run of a table. A subclass defines the kind of run."""

    table: Table
    row: Row
    pair: tuple[str, str]
    seed: int
    runs: Path
    extra: tuple[str, ...] = ()

    kind: ClassVar[type[RunConfig]]
    """Config class of the run."""
    subcommand: ClassVar[str]
    """Command of the run: `uda <subcommand>`."""

    # Defined by a subclass

    @property
    @abstractmethod
    def setting(self) -> list[str]:
        """The overrides that choose its domains."""

    @abstractmethod
    def figures(self, results: Mapping[str, Any]) -> dict[str, object]:
        """Columns of its CSV row that other kinds of table do not have."""

    @abstractmethod
    def reports_of(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        """For each report its name, its record, and its scores without target labels."""

    @property
    def needs(self) -> "Job | None":
        """The run whose final model this run starts from; None if there is none."""
        return None

    @property
    def start_digest(self) -> str:
        """The digest of the run that its row names in `start`; empty for none."""
        return ""

    def by_itself(self, config: RunConfig) -> RunConfig:
        """A run's saved config without the model of another run that it started from."""
        return config

    # Common to all kinds

    @property
    def domains(self) -> str:
        """Name of its domains in paths and patterns, without slashes."""
        return in_paths("_to_".join(self.pair))

    @property
    def folder(self) -> Path:
        """The run folder."""
        slug = re.sub(r"[^a-z0-9]+", "_", self.row.name.lower()).strip("_")
        return self.runs / self.table.name / slug / self.domains / f"seed{self.seed}"

    @property
    def run(self) -> Run:
        """Identity of the run in the ledger."""
        return (self.row.name, *self.pair, str(self.seed))

    @property
    def title(self) -> str:
        """Name of the run for people."""
        return f"{self.row.name}, {name_of(self.pair)}, seed {self.seed}"

    @cached_property
    def config(self) -> RunConfig:
        """The run's config, without the model of another run that it starts from."""
        table = f"table {self.table.name}"
        row = f"{table}, row {self.row.name}"
        places = {table: self.setting, f"{table}, set": self.table.set, row: self.row.set, "command line": self.extra}
        origins = {word.partition("=")[0]: place for place, words in places.items() for word in words}
        return self.kind.load(self.row.cfg, self._own_overrides(), row, origins=origins)

    @cached_property
    def digest(self) -> str:
        """Digest of its recipe. A record with another digest is outdated."""
        return digest(self.config, self.start_digest)

    @property
    def start_file(self) -> Path:
        """File beside its folder with the `start_digest` of the run, because its config only names a path."""
        return self.folder.parent / f"{self.folder.name}.start"

    @property
    def has_model(self) -> bool:
        """Whether the run is finished and its model exists. Raises UserError as `results` does."""
        return self.weights.is_file() and self.results() is not None

    @property
    def weights(self) -> Path:
        """File of its final weights."""
        return self.folder / "checkpoints" / "final.safetensors"

    def _own_overrides(self) -> list[str]:
        return [
            *self.setting,
            f"seed={self.seed}",
            f"output={self.folder}",
            *self.table.set,
            *self.row.set,
            *self.extra,
        ]

    def overrides(self) -> list[str]:
        """All overrides of the run."""
        return self._own_overrides()

    def words(self) -> list[str]:
        """The words after `uda` of the command of the run."""
        return [self.subcommand, "--cfg", self.row.cfg, *self.overrides()]

    def results(self) -> dict[str, Any] | None:
        """`results.json` of a finished run; None if it is not finished.

        Raises:
            UserError: the folder was made by another recipe than the table's, or cannot be read.
        """
        saved = self.folder / "config.yaml"
        if not saved.is_file():
            return None
        try:
            made_by = self.kind.model_validate(of_this_version(yaml.safe_load(saved.read_text(encoding="utf-8"))))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"{self.folder} was made by another version or is damaged; delete it") from None
        made_by = self.by_itself(made_by)
        if digest(made_by) != digest(self.config):
            differences = "; ".join(differing_keys(self.config, made_by.model_dump(mode="json")))
            raise UserError(f"{self.folder} was made by another config ({differences}); delete it")
        if self.start_file.is_file() and self.start_file.read_text(encoding="utf-8") != self.start_digest:
            raise UserError(f"{self.folder} started from the model of a row whose recipe has changed since; delete it")
        path = self.folder / "results.json"
        if not path.is_file():
            return None
        try:
            return read_record(path)
        except UserError as error:
            raise UserError(f"{error}; delete {self.folder}") from None

    def record(self, results: Mapping[str, Any]) -> dict[str, object]:
        """The CSV row of a finished run with these `results`. Raises UserError as `results` does."""
        environment = read_record(self.folder / "environment.json")
        finished = datetime.fromtimestamp((self.folder / "results.json").stat().st_mtime, UTC)
        final, steps = results["final"], results.get("steps")
        if self.needs and steps is not None:
            found = self.needs.results()
            before = found and self.needs.record(found)["steps"]
            steps = None if before is None else steps + before
        per_class = {name: None if share is None else round(share, 6) for name, share in final["per_class"].items()}
        return {
            **dict(zip(RUN, self.run, strict=True)),
            "config": results["config"],
            "digest": self.digest,
            "class_mean": final["class_mean"],
            "overall": final["overall"],
            **self.figures(results),
            "steps": steps,
            "seconds": results["seconds"],
            "commit": environment.get("commit") or f"{DISTRIBUTION} {environment['uda']}",
            "finished": finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "per_class": json.dumps(per_class, ensure_ascii=False, separators=(",", ":")),
        }

    def reports(self, results: Mapping[str, Any]) -> list[dict[str, object]]:
        """The label-free scores and the oracle measure of every report of a finished run with these `results`."""
        measure = self.table.measure
        return [
            {**dict(zip(RUN, self.run, strict=True)), "report": name, measure: entry.get(measure), **scores}
            for name, entry, scores in self.reports_of(results)
        ]


def in_paths(name: str) -> str:
    """The name of a domain as a part of a path. The name may be that of a user's folder."""
    return name.replace(TOGETHER, "+").replace("/", "_")


#: Class of the runs of each kind of table.
JOBS: Registry[type[Job]] = Registry("kind of table")
