"""One run of a table: where it lies, what it is made by, what the table records of it."""

import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from uda.config import Config, RunConfig, differing_keys, load_config
from uda.config_files import ROOT
from uda.errors import UserError
from uda.generalization.config import GeneralizationConfig
from uda.generalization.report import of_the_last_stage
from uda.records import SOURCE, read_record
from uda.tables.definition import TOGETHER, Row, Table, name_of
from uda.tables.ledger import INNER, RUN, Run
from uda.tables.recipe import digest, source_recipe


@dataclass(frozen=True)
class Job(ABC):
    """Base: one run of a table. A subclass says what kind of run it is."""

    table: Table
    row: Row
    pair: tuple[str, str]
    seed: int
    runs: Path
    extra: tuple[str, ...] = ()

    kind: ClassVar[type[RunConfig]]
    """What configures the run."""
    tool: ClassVar[str]
    """What runs it, in tools/."""

    # To be said by a subclass

    @property
    @abstractmethod
    def setting(self) -> list[str]:
        """The overrides that choose its domains."""

    @abstractmethod
    def figures(self, results: Mapping[str, Any]) -> dict[str, object]:
        """What its CSV row says that rows of other kinds do not."""

    @abstractmethod
    def judged(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        """Of each report its name, its record, and what the scores say that choose without labels of the target."""

    @property
    def needs(self) -> "Job | None":
        """The run whose final model it begins with."""
        return None

    @property
    def start_digest(self) -> str:
        """The digest of the run that its row says it starts from; empty for none."""
        return ""

    def by_itself(self, config: RunConfig) -> RunConfig:
        """The config that a run was made by, as if it began with no other run's model."""
        return config

    # What all have

    @property
    def domains(self) -> str:
        """Name of its domains in paths and patterns, without the slashes of folders of one's own."""
        return _in_paths("_to_".join(self.pair))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        slug = re.sub(r"[^a-z0-9]+", "_", self.row.name.lower()).strip("_")
        return self.runs / self.table.name / slug / self.domains / f"seed{self.seed}"

    @property
    def run(self) -> Run:
        """What the ledger knows it by."""
        return (self.row.name, *self.pair, str(self.seed))

    @property
    def title(self) -> str:
        """What people know it by."""
        return f"{self.row.name}, {name_of(self.pair)}, seed {self.seed}"

    @cached_property
    def config(self) -> RunConfig:
        """The run's config, as if it began with no other run's model."""
        return load_config(self.row.cfg, self._own_overrides(), self.kind)

    @cached_property
    def digest(self) -> str:
        """Its recipe's digest, by which a record says whether it is still this run's."""
        return digest(self.config, self.start_digest)

    @property
    def start_file(self) -> Path:
        """Beside its folder, the `start_digest` that it was run with: its config names a path alone."""
        return self.folder.parent / f"{self.folder.name}.start"

    @property
    def has_model(self) -> bool:
        """Whether it is finished and its model is there. Raises UserError as `results` does."""
        return self.weights.is_file() and self.results() is not None

    @property
    def weights(self) -> Path:
        """The weights that it ends with."""
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
        """What the run changes in its config."""
        return self._own_overrides()

    def command(self) -> list[str]:
        """The command that runs it."""
        return [sys.executable, str(ROOT / "tools" / self.tool), "--cfg", self.row.cfg, *self.overrides()]

    def results(self) -> dict[str, Any] | None:
        """`results.json` of a finished run, None for one that is not.

        Raises:
            UserError: the folder was made by another recipe than the table's, or cannot be read.
        """
        saved = self.folder / "config.yaml"
        if not saved.is_file():
            return None
        try:
            made_by = self.kind.model_validate(yaml.safe_load(saved.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"{self.folder} was made by another version or is damaged; delete it") from None
        made_by = self.by_itself(made_by)
        if digest(made_by) != digest(self.config):
            differences = "; ".join(differing_keys(self.config, made_by.model_dump(mode="json")))
            raise UserError(f"{self.folder} was made by another config ({differences}); delete it")
        if self.start_file.is_file() and self.start_file.read_text(encoding="utf-8") != self.start_digest:
            raise UserError(f"{self.folder} began with the model of a row whose recipe was another then; delete it")
        path = self.folder / "results.json"
        if not path.is_file():
            return None
        try:
            return read_record(path)
        except UserError as error:
            raise UserError(f"{error}; delete {self.folder}") from None

    def record(self) -> dict[str, object] | None:
        """The CSV row of a finished run, None for one that is not. Raises UserError as `results` does."""
        results = self.results()
        if results is None:
            return None
        environment = read_record(self.folder / "environment.json")
        finished = datetime.fromtimestamp((self.folder / "results.json").stat().st_mtime, UTC)
        final, steps = results["final"], results.get("steps")
        if self.needs and steps is not None:
            before = (self.needs.record() or {}).get("steps")
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
            "commit": environment.get("commit"),
            "finished": finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "per_class": json.dumps(per_class, ensure_ascii=False, separators=(",", ":")),
        }

    def reports(self) -> list[dict[str, object]]:
        """The label-free scores of every report of a finished run, and the oracle measure beside them."""
        results = self.results()
        measure = self.table.measure
        return [
            {**dict(zip(RUN, self.run, strict=True)), "report": name, measure: entry.get(measure), **scores}
            for name, entry, scores in (self.judged(results) if results is not None else [])
        ]


class AdaptationJob(Job):
    """A run from a source to a target domain."""

    kind = Config
    tool = "self_train.py"

    @property
    def setting(self) -> list[str]:
        keys = ("data.source", "data.target")
        return [f"{key}={_override(names)}" for key, names in zip(keys, self.pair, strict=True)]

    @property
    def is_source(self) -> bool:
        """Whether this is the model that others may start from."""
        return self.row is self.table.rows[0]

    @cached_property
    def source(self) -> "AdaptationJob":
        """The table's source model of the same pair and seed."""
        return replace(self, row=self.table.rows[0])

    @property
    def start_digest(self) -> str:
        return self.start.digest if self.start else ""

    @cached_property
    def shares_source(self) -> bool:
        """Whether it starts from the table's source model: it has a source stage, and it is that model's own."""
        if self.is_source or self.start or not self.config.trains_source:
            return False
        return source_recipe(self.config) == source_recipe(self.source.config)

    @cached_property
    def start(self) -> "AdaptationJob | None":
        """The run of the row that this one's row says it starts from."""
        rows = [row for row in self.table.rows if row.name == self.row.start]
        return replace(self, row=rows[0]) if rows else None

    @property
    def needs(self) -> "AdaptationJob | None":
        return self.start or (self.source if self.shares_source else None)

    def by_itself(self, config: Config) -> Config:
        if not self.needs:
            return config
        return config.model_copy(update={"source": config.source.model_copy(update={"checkpoint": None})})

    def overrides(self) -> list[str]:
        return [*self._own_overrides(), *([f"source.checkpoint={self.needs.weights}"] if self.needs else [])]

    def figures(self, results: Mapping[str, Any]) -> dict[str, object]:
        rounds = results["rounds"]
        last = rounds[-1] if rounds else {}
        return {
            "source_only": results["source_only"]["class_mean"],
            "label_free": results["label_free_choice"]["class_mean"],
            "oracle_best": results["oracle_best"]["class_mean"],
            "selected": last.get("selected"),
            **{key: last.get(key) for key in INNER},
            "tp_rate_round0": rounds[0].get("tp_rate") if rounds else None,
        }

    def judged(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        """A run without rounds has one, of its only model: it is a method too when validators rank methods."""
        found = [(entry["round"], entry) for entry in results["rounds"]]
        if not found:
            found = [("source", read_record(self.folder / SOURCE))]
        return [(name, entry, entry.get("validators", {})) for name, entry in found]


class GeneralizationJob(Job):
    """A run that leaves one domain out. What chooses among its reports are the held-out images of the seen domains."""

    kind = GeneralizationConfig
    tool = "generalize.py"

    @property
    def setting(self) -> list[str]:
        return [f"target={self.pair[1]}"]

    @property
    def domains(self) -> str:
        return _in_paths(self.pair[1])

    def figures(self, results: Mapping[str, Any]) -> dict[str, object]:
        return {
            "validation": results["final"]["validation"],
            "validation_choice": results["validation_choice"]["overall"],
            "oracle_best": results["oracle_best"]["overall"],
        }

    def judged(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        rounds = of_the_last_stage(results["rounds"])
        return [(entry["round"], entry, {"validation": entry["validation"]}) for entry in rounds]


def _in_paths(name: str) -> str:
    """The name of a domain, which may be a folder of one's own, as a part of a path."""
    return name.replace(TOGETHER, "+").replace("/", "_")


def _override(names: str) -> str:
    """One domain as it is, several as a list."""
    several = names.split(TOGETHER)
    return json.dumps(several, ensure_ascii=False) if len(several) > 1 else names


#: What runs each kind of table.
JOBS: dict[str, type[Job]] = {"adaptation": AdaptationJob, "generalization": GeneralizationJob}
