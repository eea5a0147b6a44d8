"""Tables of domain generalisation: their definition, the columns of their CSV, and the row of a run."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from uda.generalization.config import GeneralizationConfig
from uda.generalization.results import of_the_last_stage
from uda.tables.definition import TABLES, THE_OTHERS, Table, csv_columns
from uda.tables.job import JOBS, Job, in_paths

COLUMNS = csv_columns("class_mean", "overall", "validation", "validation_choice", "oracle_best")


@TABLES.register("generalization")
class GeneralizationTable(Table):
    """Runs with one unseen domain, compared by the overall accuracy on it, as is usual in the field."""

    measure = "overall"
    columns = COLUMNS

    kind: Literal["generalization"] = "generalization"
    targets: list[str] = Field(min_length=1)
    """The unseen domains, each left out in turn."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The unseen domains as pairs of a ledger."""
        return [(THE_OTHERS, target) for target in self.targets]

    @model_validator(mode="after")
    def each_by_itself(self) -> "GeneralizationTable":
        """Check that no target is named twice and that no row starts from another row."""
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: a domain is named twice")
        for row in self.rows:
            if row.start is not None:
                raise ValueError(f"row '{row.name}' has `start`; runs of domain generalisation cannot use it")
        return self


@JOBS.register("generalization")
class GeneralizationJob(Job):
    """A run with one unseen domain. The held-out images of the seen domains choose among its reports."""

    kind = GeneralizationConfig
    subcommand = "generalize"

    @property
    def setting(self) -> list[str]:
        return [f"target={self.pair[1]}"]

    @property
    def domains(self) -> str:
        return in_paths(self.pair[1])

    def figures(self, results: Mapping[str, Any]) -> dict[str, object]:
        return {
            "validation": results["final"]["validation"],
            "validation_choice": results["validation_choice"]["overall"],
            "oracle_best": results["oracle_best"]["overall"],
        }

    def reports_of(self, results: Mapping[str, Any]) -> list[tuple[object, Mapping[str, Any], Mapping[str, Any]]]:
        rounds = of_the_last_stage(results["rounds"])
        return [(entry["round"], entry, {"validation": entry["validation"]}) for entry in rounds]
