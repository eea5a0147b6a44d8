"""What a table compares: its YAML in configs/tables/."""

from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from uda.config_files import ROOT
from uda.errors import UserError
from uda.registry import nearest
from uda.settings import Settings


class Row(Settings):
    """One line of a table: a config and what is changed in it."""

    name: str
    """What the table calls it."""
    cfg: str
    """Config in configs/."""
    set: list[str] = Field(default_factory=list)
    """Overrides."""
    start: str | None = None
    """Another row, whose final model of the same pair and seed it begins with; its steps count too."""


class Table(Settings):
    """A comparison: rows x pairs of domains x seeds."""

    name: str
    """Name of the CSV and of the folder of runs."""
    seeds: list[int] = Field(min_length=1)
    """Seeds of every row."""
    pairs: list[tuple[str, str]] = Field(min_length=1)
    """Source and target domains."""
    rows: list[Row] = Field(min_length=1)
    """The source model first."""
    reference: str | None = None
    """The row that the others are compared with."""

    @model_validator(mode="after")
    def rows_that_are_there(self) -> "Table":
        """Names are unique, and a row starts from one above it."""
        names = [row.name for row in self.rows]
        for index, row in enumerate(self.rows):
            if row.name in names[:index]:
                raise ValueError(f"two rows '{row.name}'")
            if row.start is not None and row.start not in names[:index]:
                raise ValueError(f"row '{row.name}' starts from '{row.start}', which is no row above it")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"no row '{self.reference}' to compare with{nearest(self.reference, names)}")
        return self


def load_table(path: str | Path) -> Table:
    """Read a table's YAML. Raises UserError with what is wrong."""
    path = Path(path)
    if not path.is_file():
        path = ROOT / "configs" / "tables" / f"{path.stem}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UserError(f"{path.name}: no such table in configs/tables/ (known: {known})")
    try:
        return Table.model_validate({"name": path.stem, **yaml.safe_load(path.read_text(encoding="utf-8"))})
    except ValidationError as error:
        found = [(path.name, ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        problems = [": ".join(filter(None, parts)) for parts in found]
        raise UserError("\n".join(problems)) from None
