"""Tables of domain generalisation: their definition, the columns of their CSV, and how a run becomes a row of it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from uda.generalization.config import GeneralizationConfig
from uda.generalization.report import of_the_last_stage
from uda.tables.definition import TABLES, THE_OTHERS, Table, csv_columns
from uda.tables.job import JOBS, Job, in_paths

COLUMNS = csv_columns("class_mean", "overall", "validation", "validation_choice", "oracle_best")


@TABLES.register("generalization")
class GeneralizationTable(Table):
    """Runs that leave one domain out, compared by plain accuracy on it, as the field does."""

    measure = "overall"
    columns = COLUMNS

    kind: Literal["generalization"] = "generalization"
    targets: list[str] = Field(min_length=1)
    """Domains that are left out, each in turn."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The unseen domains, as a ledger names them."""
        return [(THE_OTHERS, target) for target in self.targets]

    @model_validator(mode="after")
    def each_by_itself(self) -> "GeneralizationTable":
        """No domain is left out twice, and no row starts from another."""
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: a domain stands twice")
        for row in self.rows:
            if row.start is not None:
                raise ValueError(f"row '{row.name}' starts from another; runs of domain generalisation do not")
        return self


@JOBS.register("generalization")
class GeneralizationJob(Job):
    """A run that leaves one domain out. What chooses among its reports are the held-out images of the seen domains."""

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
