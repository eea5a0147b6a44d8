"""Tables of scores: an image a row, written as CSV or Parquet and read again."""

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
    """Names of the images, each one once."""
    labels: tuple[str, ...]
    """Class that each image shows."""
    predicted: tuple[str, ...]
    """Class that the classifier says."""
    scores: Mapping[str, np.ndarray]
    """By name (N,) float64."""
    others: tuple[str, ...] = ()
    """Columns of its file that were not asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: where the classifier is right."""
        return np.array(self.labels) == np.array(self.predicted)


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table as CSV, or as Parquet where the path ends so: image, label, predicted, and a column a score.

    Raises UserError for Parquet without pyarrow.
    """
    columns = {"image": table.ids, "label": table.labels, "predicted": table.predicted, **table.scores}
    if path.suffix == ".parquet":
        arrow, parquet = _parquet()
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.table({name: list(values) for name, values in columns.items()}), sink)
        write_bytes(path, sink.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values()), strict=True))
    write_text(path, text.getvalue())


def read_scores(path: Path, names: Sequence[str] | None = None) -> ScoreTable:
    """Read what `write_scores` wrote, or any table with a column `image` and columns of numbers.

    Args:
        path: a .csv, or a .parquet.
        names: columns to read as scores where they are there; None: all but `image`, `label` and `predicted`.

    Raises:
        UserError: no such file, no column `image`, an image twice, a score that is no finite number.
    """
    if not path.is_file():
        raise UserError(f"`tables`: no such file: {path}")
    if path.suffix == ".parquet":
        arrow, parquet = _parquet()
        try:
            columns = {name: list(values) for name, values in parquet.read_table(path).to_pydict().items()}
        except arrow.ArrowInvalid as error:
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
            raise UserError(f"{path}, line {uneven}: not as many cells as the head has")
        twice = next((name for name in head if head.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns are called '{twice}'")
        columns = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    if not columns.get("image"):
        raise UserError(f"{path}: no rows, or no column 'image'; `uda hardness score` writes such a table")
    ids = tuple(map(str, columns["image"]))
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{path}: the image {twice} stands twice")
    empty = ("",) * len(ids)
    labels, predicted = (tuple(map(str, columns.get(key, empty))) for key in ("label", "predicted"))
    texts = ("image", "label", "predicted")
    wanted = [name for name in columns if (name not in texts if names is None else name in names)]
    if "" in wanted:
        raise UserError(
            f"{path}: column {list(columns).index('') + 1} has no name: leave it out (pandas: index=False), or name "
            "the scores by `scores`"
        )
    numbers = {name: columns[name] for name in wanted}
    others = tuple(name for name in columns if name not in (*texts, *wanted))
    scores = {name: _numbers(values, name, path) for name, values in numbers.items()}
    return ScoreTable(ids, labels, predicted, scores, others)


def named_tables(words: Sequence[str], names: Sequence[str] | None = None) -> dict[str, ScoreTable]:
    """Tables from `file` or `name=file` words, by name.

    A run's folder stands for the scores.csv in it, whose name is the run's and its seed's; else it is the file's, or
    its folder's where files are named alike.

    Raises UserError for two of one name, and as `read_scores` does.
    """
    found: dict[str, Path] = {}
    split = [("", word) if Path(word).exists() or "=" not in word else word.split("=", 1) for word in words]
    files = [Path(os.path.expanduser(file)) for _, file in split]
    paths = [file / "scores.csv" if file.is_dir() else file for file in files]
    stems = [path.stem for path in paths]
    for (given, _), path, stem in zip(split, paths, stems, strict=True):
        name = given or _run_of(path) or (stem if stems.count(stem) == 1 else path.absolute().parent.name)
        if name in found:
            raise UserError(f"`tables`: {found[name]} and {path} would both be '{name}'; give names: NAME=FILE")
        found[name] = path
    return {name: read_scores(path, names) for name, path in found.items()}


def _run_of(path: Path) -> str | None:
    """The run in whose folder a table lies, by its config."""
    try:
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        return f"{config['name']}, seed {config['seed']}"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _numbers(values: Sequence[object], name: str, path: Path) -> np.ndarray:
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: column '{name}' is not of numbers ({error}); `scores` names those that are") from None
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UserError(f"{path}: column '{name}' has {found[row]} in row {row + 1}: a score must be a finite number")
    return found


def _parquet():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet needs pyarrow: pip install "uda-toolkit[parquet]", or name a .csv file') from None
    return pyarrow, pyarrow.parquet
