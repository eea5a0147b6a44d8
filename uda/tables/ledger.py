"""The two CSVs of a table, which only grow: a row a finished run, and a row a report of a run.

A run is known by its row, pair and seed. What was recorded once stays until the same run is made anew, by this recipe
or by a changed one; rows that the table's YAML no longer has go with `prune` alone.
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

#: Inner metrics of the last round's selection, by their key in results.json.
INNER = ("tp_rate", "avh", "avc", "confidence", "feature_norm")
#: What tells one run of a table from another.
RUN = ("row", "source", "target", "seed")
Run = tuple[str, ...]


def report_columns(measure: str) -> tuple[str, ...]:
    """Columns of a report, with the measure of its table; one column a validator follows."""
    return (*RUN, "report", measure)


def run_of(record: Mapping[str, object]) -> Run:
    """The run that a record belongs to."""
    return tuple(str(record[key]) for key in RUN)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a results CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def to_csv(records: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """CSV of records; fractions with six decimals, what is not known empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in record.items()})
    return stream.getvalue()


@dataclass
class Ledger:
    """All that is recorded of a table's runs, as text."""

    runs: dict[Run, dict[str, str]]
    """A run's record."""
    reports: dict[Run, list[dict[str, str]]]
    """The reports of a run, in their order."""

    @classmethod
    def read(cls, folder: Path, table: Table) -> "Ledger":
        """From a table's CSVs, `folder/<name>.csv` and `<name>_reports.csv`; empty where they are not there.

        Raises:
            UserError: a CSV has columns that are not ours, so that writing it again would lose them.
        """
        ledger = cls({}, {})
        columns = table.columns
        path = folder / f"{table.name}.csv"
        if path.is_file():
            for record in read_csv(path):
                foreign = [str(key) for key in record if key not in columns]
                if foreign:
                    raise UserError(f"{path}: unknown columns {', '.join(foreign)}; another version wrote it")
                ledger.runs[run_of(record)] = {key: record.get(key) or "" for key in columns}
        path = folder / f"{table.name}_reports.csv"
        if path.is_file():
            for record in read_csv(path):
                ledger.reports.setdefault(run_of(record), []).append(record)
        return ledger

    def add(self, record: Mapping[str, object], reports: Iterable[Mapping[str, object]]) -> None:
        """Take in a finished run of the table's present recipe, unless the same recipe is recorded from later on."""
        run = run_of(record)
        (new,) = _as_text([record], tuple(record))
        old = self.runs.get(run)
        if old and old["digest"] == new["digest"]:
            if old["finished"] > new["finished"]:
                return
            if old["finished"] == new["finished"] and not new["steps"]:  # the run that it began from is gone by now
                new["steps"] = old["steps"]
        self.runs[run] = new
        reports = list(reports)
        columns = list(dict.fromkeys(key for report in reports for key in report))
        self.reports[run] = _as_text(reports, columns)

    def holds(self, run: Run, digest: str) -> bool:
        """Whether this run is recorded, by this recipe."""
        return run in self.runs and self.runs[run]["digest"] == digest

    def seconds(self, row: str) -> float | None:
        """Median of what the recorded runs of a row took, by any recipe; None where no record says it."""
        known = [float(run["seconds"]) for run in self.runs.values() if run["row"] == row and run["seconds"]]
        return median(known) if known else None

    def prune(self, table: Table) -> list[str]:
        """Forget the runs that the table no longer has; returns their rows' names."""
        gone = [run for run in self.runs if None in _place(run, table)]
        for run in gone:
            del self.runs[run]
            self.reports.pop(run, None)
        return list(dict.fromkeys(run[0] for run in gone))

    def write(self, folder: Path, table: Table) -> None:
        """Both CSVs, in the table's order: rows, pairs, seeds; of each, those that it no longer has come last."""

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
    """Records as they are once they were written and read again."""
    return list(csv.DictReader(io.StringIO(to_csv(records, columns))))


def _place(run: Run, table: Table) -> tuple[int | None, ...]:
    """Index of a run's row, pair and seed in the table, None for what the table does not have."""
    name, source, target, seed = run
    parts = ([row.name for row in table.rows], table.pairs, [str(seed) for seed in table.seeds])
    wanted = (name, (source, target), seed)
    return tuple(known.index(part) if part in known else None for known, part in zip(parts, wanted, strict=True))
