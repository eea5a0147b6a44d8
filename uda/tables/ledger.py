"""The two CSVs of a table: one row per finished run, and one row per report of a run.

A run is identified by its row, pair and seed. A record stays until the same run is done again, with the same or a
changed recipe. Only `prune` removes rows that the table's YAML no longer has.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from uda.core.errors import UserError
from uda.core.files import write_text
from uda.tables.definition import Table

#: Inner metrics of the last round's selection, by key in results.json.
INNER = ("tp_rate", "avh", "avc", "confidence", "feature_norm")
#: Columns that identify a run of a table.
RUN = ("row", "source", "target", "seed")
Run = tuple[str, ...]


def report_columns(measure: str) -> tuple[str, ...]:
    """First columns of a report, with the measure of its table. One column per validator follows."""
    return (*RUN, "report", measure)


def run_of(record: Mapping[str, object]) -> Run:
    """The run that a record belongs to."""
    return tuple(str(record[key]) for key in RUN)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a results CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def to_csv(records: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Records as CSV: fractions with six decimals, unknown values empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in record.items()})
    return stream.getvalue()


@dataclass
class Ledger:
    """All records of a table's runs, as text."""

    runs: dict[Run, dict[str, str]]
    """The record of each run."""
    reports: dict[Run, list[dict[str, str]]]
    """The reports of each run, in order."""

    @classmethod
    def read(cls, folder: Path, table: Table) -> "Ledger":
        """Read a table's CSVs, `folder/<name>.csv` and `<name>_reports.csv`. Missing files count as empty.

        Raises:
            UserError: a CSV has unknown columns, which would be lost when it is written again.
        """
        ledger = cls({}, {})
        columns = table.columns
        path = folder / f"{table.name}.csv"
        if path.is_file():
            for record in read_csv(path):
                foreign = [str(key) for key in record if key not in columns]
                if foreign:
                    raise UserError(f"{path}: unknown columns {', '.join(foreign)}, written by another version")
                ledger.runs[run_of(record)] = {key: record.get(key) or "" for key in columns}
        path = folder / f"{table.name}_reports.csv"
        if path.is_file():
            for record in read_csv(path):
                ledger.reports.setdefault(run_of(record), []).append(record)
        return ledger

    def add(self, record: Mapping[str, object], reports: Iterable[Mapping[str, object]]) -> None:
        """Record a finished run of the table's current recipe, unless a later run of this recipe is recorded."""
        run = run_of(record)
        (new,) = _as_text([record], tuple(record))
        old = self.runs.get(run)
        if old and old["digest"] == new["digest"]:
            if old["finished"] > new["finished"]:
                return
            if old["finished"] == new["finished"] and not new["steps"]:  # the run that it started from was deleted
                new["steps"] = old["steps"]
        self.runs[run] = new
        reports = list(reports)
        columns = list(dict.fromkeys(key for report in reports for key in report))
        self.reports[run] = _as_text(reports, columns)

    def holds(self, run: Run, digest: str) -> bool:
        """Whether this run is recorded with this recipe."""
        return run in self.runs and self.runs[run]["digest"] == digest

    def seconds(self, row: str) -> float | None:
        """Median duration of a row's recorded runs of any recipe; None if no record has one."""
        known = [float(run["seconds"]) for run in self.runs.values() if run["row"] == row and run["seconds"]]
        return median(known) if known else None

    def prune(self, table: Table) -> list[str]:
        """Remove the runs that the table no longer has. Returns the names of their rows."""
        gone = [run for run in self.runs if None in _place(run, table)]
        for run in gone:
            del self.runs[run]
            self.reports.pop(run, None)
        return list(dict.fromkeys(run[0] for run in gone))

    def write(self, folder: Path, table: Table) -> None:
        """Write both CSVs in the table's order of rows, pairs and seeds. Those that it no longer has come last."""

        def place(run: Run) -> tuple:
            return tuple((index is None, index or 0) for index in _place(run, table))

        order = sorted(self.runs, key=place)
        write_text(folder / f"{table.name}.csv", to_csv((self.runs[run] for run in order), table.columns))
        reports = [report for run in order for report in self.reports.get(run, [])]
        path = folder / f"{table.name}_reports.csv"
        if reports or path.is_file():
            first = report_columns(table.measure)
            columns = tuple(dict.fromkeys([*first, *(key for report in reports for key in report)]))
            write_text(path, to_csv(reports, columns))


def _as_text(records: Iterable[Mapping[str, object]], columns: Sequence[str]) -> list[dict[str, str]]:
    """Records as text, as they are after writing and reading."""
    return list(csv.DictReader(io.StringIO(to_csv(records, columns))))


def _place(run: Run, table: Table) -> tuple[int | None, ...]:
    """Index of a run's row, pair and seed in the table; None for one that the table does not have."""
    name, source, target, seed = run
    parts = ([row.name for row in table.rows], table.pairs, [str(seed) for seed in table.seeds])
    wanted = (name, (source, target), seed)
    return tuple(known.index(part) if part in known else None for known, part in zip(parts, wanted, strict=True))
