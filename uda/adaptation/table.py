"""Tables of adaptations: their definition, the columns of their CSV, and the row of a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, field_validator

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.tables.definition import TABLES, TOGETHER, Table, csv_columns
from uda.tables.job import JOBS, Job
from uda.tables.ledger import INNER
from uda.tables.recipe import below, recipe
from uda.training.records import SOURCE, read_record

COLUMNS = csv_columns(
    *(
        "source_only",
        "class_mean",
        "overall",
        "label_free",
        "oracle_best",
        "selected",
        *INNER,
        "tp_rate_round0",
        "flipped",
    )
)


@TABLES.register("adaptation")
class AdaptationTable(Table):
    """Runs from a source to a target domain, compared by class mean."""

    measure = "class_mean"
    columns = COLUMNS

    kind: Literal["adaptation"] = "adaptation"
    pairs: list[tuple[str, str]] = Field(min_length=1)
    """Pairs of source and target. Several domains in one place are a list."""

    @field_validator("pairs", mode="before")
    @classmethod
    def several_in_one(cls, pairs: object) -> object:
        """Join a list of domains to one name, `photo + cartoon`."""
        if not isinstance(pairs, list):
            return pairs
        return [
            [TOGETHER.join(map(str, names)) if isinstance(names, list) else names for names in pair]
            if isinstance(pair, list)
            else pair
            for pair in pairs
        ]


@JOBS.register("adaptation")
class AdaptationJob(Job):
    """A run from a source to a target domain."""

    kind = AdaptationConfig
    subcommand = "adapt"

    @property
    def setting(self) -> list[str]:
        keys = ("data.source", "data.target")
        return [f"{key}={_override(names)}" for key, names in zip(keys, self.pair, strict=True)]

    @property
    def is_source(self) -> bool:
        """Whether this run is the source model that other runs may start from: the first row, if it adapts nothing."""
        method = ADAPTATION_METHODS[self.config.method]
        return self.row is self.table.rows[0] and not (method.rounds or method.adapts)

    @cached_property
    def source(self) -> "AdaptationJob":
        """The first row's run of the same pair and seed."""
        return replace(self, row=self.table.rows[0])

    @property
    def start_digest(self) -> str:
        return self.start.digest if self.start else ""

    @cached_property
    def shares_source(self) -> bool:
        """Whether this run starts from the table's source model, because its source stage has the same recipe."""
        if self.is_source or self.start or not self.config.trains_source or not self.source.is_source:
            return False
        return source_recipe(self.config) == source_recipe(self.source.config)

    @cached_property
    def start(self) -> "AdaptationJob | None":
        """The run of the row that is named in this row's `start`."""
        rows = [row for row in self.table.rows if row.name == self.row.start]
        return replace(self, row=rows[0]) if rows else None

    @property
    def needs(self) -> "AdaptationJob | None":
        return self.start or (self.source if self.shares_source else None)

    def by_itself(self, config: AdaptationConfig) -> AdaptationConfig:
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
            "flipped": last["flipped"] / last["selected"] if last.get("flipped") is not None else None,
        }

    def reports_of(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        """The models of the run that validators rank. A run without rounds has one, its source model."""
        found = [(entry["round"], entry) for entry in results["rounds"]]
        if not found:
            found = [("source", read_record(self.folder / SOURCE))]
        return [(name, entry, entry.get("validators", {})) for name, entry in found]


def source_recipe(config: AdaptationConfig) -> dict[str, Any]:
    """The part of a recipe that determines the source model's weights."""
    after_training = ("source.adapt_batch_norm", "transforms.target")
    return {
        key: value
        for key, value in recipe(config).items()
        if below(key, ("seed", "data", "bank", "transforms", "model", "class_vectors", "source"))
        and not below(key, after_training)
    }


def _override(names: str) -> str:
    """Value of a setting: one domain as text, several as a list."""
    several = names.split(TOGETHER)
    return json.dumps(several, ensure_ascii=False) if len(several) > 1 else names
