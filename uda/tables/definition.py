"""The definition of a table: its YAML in configs/tables/."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, ValidationError, model_validator

from uda.core.registry import Registry, UnknownNameError, nearest
from uda.core.resources import CONFIGS
from uda.core.settings import Settings
from uda.core.typed_yaml import typed
from uda.core.yaml_files import ConfigError, find_config, mistakes, read_config


class Row(Settings):
    """A row of a table: a config and its overrides."""

    name: str
    """Name of the row in the table."""
    cfg: str
    """Config in configs/."""
    set: list[str] = Field(default_factory=list)
    """Overrides of the config."""
    start: str | None = None
    """Another row. Runs start from its final model of the same pair and seed, and its steps are added."""


#: Separator between the names of several sources or targets.
TOGETHER = " + "
#: Name for the source of a run that leaves one domain out.
THE_OTHERS = "the others"
#: Figures that tables compare rows by, and their names for people.
MEASURES = {"class_mean": "class mean", "overall": "accuracy"}


class Table(Settings):
    """Base of a comparison: rows x domains x seeds. A subclass defines the domains."""

    measure: ClassVar[str]
    """Key of the figure that rows are compared by."""
    columns: ClassVar[tuple[str, ...]]
    """Columns of the CSV."""

    name: str
    """Name of the CSV and of the folder of runs."""
    kind: str
    """Kind of table, which decides the kind of its runs."""
    seeds: list[int] = Field(min_length=1)
    """Seeds of every row."""
    set: list[str] = Field(default_factory=list)
    """Overrides of every row. A row's own overrides come after them."""
    rows: list[Row] = Field(min_length=1)
    """The rows. If the source model is the first one, others start from it."""
    reference: str | None = None
    """The row that the others are compared with."""
    agreement: bool = False
    """Whether to measure how far final models of different seeds agree, a score of a recipe without target labels."""
    contrasts: list[tuple[str, str]] = Field(default_factory=list)
    """Pairs of rows that are compared pair by pair, the reference second."""
    choices: list[list[str]] = Field(default_factory=list)
    """Lists of rows among whose final models each validator chooses, run by run."""

    @model_validator(mode="after")
    def rows_that_are_there(self) -> "Table":
        """Check that names are unique, and that a row starts from a row above it."""
        names = [row.name for row in self.rows]
        for index, row in enumerate(self.rows):
            if row.name in names[:index]:
                raise ValueError(f"two rows '{row.name}'")
            if row.start is not None and row.start not in names[:index]:
                raise ValueError(f"row '{row.name}' starts from '{row.start}', but no row above it has this name")
        for name in [self.reference, *(name for group in (*self.contrasts, *self.choices) for name in group)]:
            if name is not None and name not in names:
                raise ValueError(f"no row '{name}' to compare with{nearest(name, names)}")
        return self


def csv_columns(*figures: str) -> tuple[str, ...]:
    """Columns of a table's CSV: the run, the `figures` of that kind of run, and how the run was made."""
    made = ("steps", "seconds", "commit", "finished", "per_class")
    return ("row", "config", "source", "target", "seed", "digest", *figures, *made)


#: Classes of tables, by kind.
TABLES: Registry[type[Table]] = Registry("kind of table")


def name_of(pair: tuple[str, str]) -> str:
    """Name of a pair of domains for people: `photo to sketch`. In domain generalisation it is the unseen domain."""
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
