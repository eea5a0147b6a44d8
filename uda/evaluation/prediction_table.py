"""The table of a network's predictions, with one row per image, as CSV or Parquet.

The columns are `path`, `prediction` (class name), `probability` (softmax of that class), `avc` and `avh` of that class,
the five best classes with their probabilities, and `error`. An image that cannot be read has a row with its path and
its error only.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from uda.core.errors import UserError
from uda.core.files import atomic_path
from uda.models.network import Prediction
from uda.selection import angular
from uda.selection.selectors import target_scores

#: Name of the table in a run folder.
PREDICTIONS = "predictions.csv"

#: The number of best classes in a row, if the network has that many.
TOP = 5

#: Rows that are computed or held at a time.
_ROWS = 4096
#: Rows of a Parquet row group.
_GROUP_ROWS = 1 << 14

Row = tuple[str | float | None, ...]
Write = Callable[[Sequence[Row]], None]


def prediction_columns(num_classes: int) -> tuple[str, ...]:
    """The names of the columns for K classes."""
    places = range(1, min(TOP, num_classes) + 1)
    best = (*(f"class_{place}" for place in places), *(f"probability_{place}" for place in places))
    return "path", "prediction", "probability", "avc", "avh", *best, "error"


def prediction_rows(
    ids: Sequence[str], prediction: Prediction, classes: Sequence[str], problems: Mapping[int, str] | None = None
) -> list[Row]:
    """The rows of N images.

    Args:
        ids: N names.
        prediction: the network's output. Each row of the table depends only on its own row.
        classes: K class names. Of equal logits, the first class is the better one.
        problems: why images could not be read, by their number. Their rows of `prediction` are ignored.
    """
    features, logits, weight = map(torch.from_numpy, (prediction.features, prediction.logits, prediction.weight))
    if len(ids) != len(logits):
        raise ValueError(f"{len(logits)} predictions for {len(ids)} images")
    best = np.argsort(-prediction.logits, axis=1, kind="stable")[:, :TOP]
    labels = best[:, 0]
    probabilities = np.take_along_axis(target_scores("softmax", features, logits, weight).numpy(), best, 1)
    with torch.no_grad():
        avc = np.take_along_axis(angular.avc(features, weight).numpy(), best[:, :1], 1)[:, 0]
        avh = angular.avh(features, weight, torch.from_numpy(labels)).numpy()
    names = np.array(classes, dtype=object)[best].tolist()
    found = zip(ids, names, probabilities.tolist(), avc.tolist(), avh.tolist(), strict=True)
    rows: list[Row] = [(name, best[0], p[0], c, h, *best, *p, None) for name, best, p, c, h in found]
    for number, problem in (problems or {}).items():
        rows[number] = (ids[number], *[None] * (len(rows[number]) - 2), problem)
    return rows


def write_predictions(path: Path, ids: Sequence[str], prediction: Prediction, classes: Sequence[str]) -> None:
    """Write the table of N images that have been predicted. Errors are those of `prediction_writer`."""
    with prediction_writer(path, len(classes)) as write:
        for start in range(0, len(ids), _ROWS):
            part = slice(start, start + _ROWS)
            features, logits = prediction.features[part], prediction.logits[part]
            write(prediction_rows(ids[part], Prediction(features, logits, prediction.weight), classes))


def check_table_name(path: Path) -> None:
    """Raise UserError unless the path ends in .csv or .parquet."""
    if path.suffix.lower() not in (".csv", ".parquet") or path.is_dir():
        raise UserError(f"`out`: {path}: name a file that ends in .csv or .parquet")


@contextmanager
def prediction_writer(out: Path | TextIO, num_classes: int) -> Iterator[Write]:
    """A function that appends rows to a table.

    A file is written atomically: it gets its name at the end of the block. CSV is written row by row. Parquet is
    written in row groups.

    Args:
        out: a path that ends in .csv or .parquet, or an open text file, which gets CSV.
        num_classes: K.

    Raises:
        UserError: the path has another ending, or the file cannot be written.
    """
    columns = prediction_columns(num_classes)
    if not isinstance(out, Path):
        yield _csv_writer(out, columns)
        return
    check_table_name(out)
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".parquet":
            with _parquet_writer(temporary, columns) as write:
                yield write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                yield _csv_writer(file, columns)


def _csv_writer(file: TextIO, columns: Sequence[str]) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            cells = [_cell(value) for value in row]
            # Python before 3.13 does not quote a carriage return, which readers take for the end of the line.
            (quoting if any("\r" in cell for cell in cells) else writer).writerow(cells)

    return write


def _cell(value: str | float | None) -> str:
    """A value as text. 9 significant digits represent a float32 exactly."""
    return "" if value is None else value if isinstance(value, str) else f"{value:.9g}"


@contextmanager
def _parquet_writer(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    numbers = ("probability", "avc", "avh")
    types = [pyarrow.float64() if name.startswith(numbers) else pyarrow.string() for name in columns]
    schema = pyarrow.schema(list(zip(columns, types, strict=True)))
    held: list[Row] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def write_group(rows: Sequence[Row]) -> None:
            arrays = [pyarrow.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

        def write(rows: Sequence[Row]) -> None:
            held.extend(rows)
            while len(held) >= _GROUP_ROWS:
                write_group(list(islice(held, _GROUP_ROWS)))
                del held[:_GROUP_ROWS]

        yield write
        if held:
            write_group(held)
