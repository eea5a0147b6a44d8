"""Tables of scores with one row per image: write and read them as CSV or Parquet."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from uda.core.errors import UserError
from uda.core.files import write_bytes, write_text


@dataclass(frozen=True)
class ScoreTable:
    """Scores of N images."""

    ids: tuple[str, ...]
    """Names of the images, without duplicates."""
    labels: tuple[str, ...]
    """Class of each image."""
    predicted: tuple[str, ...]
    """Class that the classifier predicts for each image."""
    scores: Mapping[str, np.ndarray]
    """Arrays (N,) float64 by name."""
    others: tuple[str, ...] = ()
    """Columns of the file that were not read as scores."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, (N,) bool."""
        return np.array(self.labels) == np.array(self.predicted)


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table as CSV, or as Parquet if the path ends in .parquet.

    The columns are image, label, predicted and one per score.
    """
    columns = {"image": table.ids, "label": table.labels, "predicted": table.predicted, **table.scores}
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), sink)
        write_bytes(path, sink.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values()), strict=True))
    write_text(path, text.getvalue())


def read_scores(path: Path, names: Sequence[str] | None = None) -> ScoreTable:
    """Read a table of `write_scores`, or any table with a column `image` and columns of numbers.

    Args:
        path: a .csv or .parquet file.
        names: columns to read as scores, if they exist; None: all except `image`, `label` and `predicted`.

    Raises:
        UserError: the file or the column `image` does not exist, an image is named twice, or a score is not a finite
            number.
    """
    if not path.is_file():
        raise UserError(f"`tables`: no such file: {path}")
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            columns = {name: list(values) for name, values in parquet.read_table(path).to_pydict().items()}
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from None
    else:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                lines = [(reader.line_num, row) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table: {error}") from None
        head, rows = (lines[0][1] if lines else []), [row for _, row in lines[1:]]
        uneven = next((number for number, row in lines if len(row) != len(head)), None)
        if uneven is not None:
            raise UserError(f"{path}, line {uneven}: the number of cells differs from that of the first line")
        twice = next((name for name in head if head.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns have the name '{twice}'")
        columns = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    if not columns.get("image"):
        raise UserError(f"{path}: no rows, or no column 'image'; `uda hardness score` writes tables of scores")
    ids = tuple(map(str, columns["image"]))
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{path}: the image {twice} is named twice")
    empty = ("",) * len(ids)
    labels, predicted = (tuple(map(str, columns.get(key, empty))) for key in ("label", "predicted"))
    texts = ("image", "label", "predicted")
    wanted = [name for name in columns if (name not in texts if names is None else name in names)]
    if "" in wanted:
        raise UserError(
            f"{path}: column {list(columns).index('') + 1} has no name; remove it (pandas: index=False), or name the "
            "scores in `scores`"
        )
    numbers = {name: columns[name] for name in wanted}
    others = tuple(name for name in columns if name not in (*texts, *wanted))
    scores = {name: _numbers(values, name, path) for name, values in numbers.items()}
    return ScoreTable(ids, labels, predicted, scores, others)


def named_tables(words: Sequence[str], names: Sequence[str] | None = None) -> dict[str, ScoreTable]:
    """Read tables from `file` or `name=file` words. Returns them by name.

    A folder stands for the scores.csv in it. Without `name=`, the name of a run's table is the run's name and seed.
    The name of another table is its file's name, or its folder's name if several files have the same name.

    Raises UserError for two tables with the same name, and as `read_scores` does.
    """
    found: dict[str, Path] = {}
    split = [("", word) if Path(word).exists() or "=" not in word else word.split("=", 1) for word in words]
    files = [Path(os.path.expanduser(file)) for _, file in split]
    paths = [file / "scores.csv" if file.is_dir() else file for file in files]
    stems = [path.stem for path in paths]
    for (given, _), path, stem in zip(split, paths, stems, strict=True):
        name = given or _run_of(path) or (stem if stems.count(stem) == 1 else path.absolute().parent.name)
        if name in found:
            raise UserError(f"`tables`: {found[name]} and {path} have the same name '{name}'; give names: NAME=FILE")
        found[name] = path
    return {name: read_scores(path, names) for name, path in found.items()}


def _run_of(path: Path) -> str | None:
    """Name and seed of the run in whose folder a table is; None if it is not in a run folder."""
    try:
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        return f"{config['name']}, seed {config['seed']}"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _numbers(values: Sequence[object], name: str, path: Path) -> np.ndarray:
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: column '{name}' has values that are not numbers ({error}); name the columns of scores in `scores`"
        ) from None
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UserError(f"{path}: column '{name}' has {found[row]} in row {row + 1}; a score must be a finite number")
    return found
