"""What a table compares: its YAML in configs/tables/."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, ValidationError, model_validator

from uda.core.registry import Registry, UnknownNameError, nearest
from uda.core.resources import CONFIGS
from uda.core.settings import Settings
from uda.core.typed_yaml import typed
from uda.core.yaml_files import ConfigError, find_config, mistakes, read_config


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


#: Between the names of several sources or targets.
TOGETHER = " + "
#: What stands as the source of a run that leaves one domain out.
THE_OTHERS = "the others"
#: The figures that tables compare rows by, as people call them.
MEASURES = {"class_mean": "class mean", "overall": "accuracy"}


class Table(Settings):
    """Base of a comparison: rows x domains x seeds. A subclass says what the domains are."""

    measure: ClassVar[str]
    """Key of the figure that rows are compared by."""
    columns: ClassVar[tuple[str, ...]]
    """Columns of its CSV."""

    name: str
    """Name of the CSV and of the folder of runs."""
    kind: str
    """What its runs do."""
    seeds: list[int] = Field(min_length=1)
    """Seeds of every row."""
    set: list[str] = Field(default_factory=list)
    """Overrides of every row; a row's own come after them."""
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


def csv_columns(*figures: str) -> tuple[str, ...]:
    """Columns of a table's CSV: whose row it is, the `figures` of that kind of run, how it was made."""
    made = ("steps", "seconds", "commit", "finished", "per_class")
    return ("row", "config", "source", "target", "seed", "digest", *figures, *made)


#: Tables by what their runs do.
TABLES: Registry[type[Table]] = Registry("kind of table")


def name_of(pair: tuple[str, str]) -> str:
    """What people call a pair of domains: `photo to sketch`; of domain generalisation the domain that is left out."""
    source, target = pair
    return target if source == THE_OTHERS else f"{source} to {target}"


def load_table(name: str | Path) -> Table:
    """Read a table's YAML, by path or by a name in configs/tables/. Raises ConfigError with every mistake."""
    path = find_config(name, CONFIGS / "tables", "table")
    content, origins = read_config(path)
    content = {"name": path.stem, "kind": "adaptation", **content}
    kind = typed(content["kind"], str)
    try:
        declared = TABLES[kind]
        return declared.model_validate(typed(content, declared))
    except UnknownNameError as error:
        raise ConfigError(f"{path.name}: kind: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(mistakes(error, declared, origins, path.name))) from None
