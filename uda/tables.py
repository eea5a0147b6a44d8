"""Tables of runs: which are missing, run them, one CSV row a run, Markdown from the CSV.

The first row of a table is its source model; the others start from that row's weights, pair by pair and seed by seed,
so that they differ in what is compared and in nothing else.
"""

import csv
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from uda.atomic import write_text
from uda.config import ROOT, Settings, differing_keys, load_config
from uda.errors import UserError

#: Inner metrics of the last round's selection, by their key in results.json.
INNER = ("tp_rate", "avh", "avc", "confidence", "feature_norm")
COLUMNS = (
    "row",
    "config",
    "source",
    "target",
    "seed",
    "source_only",
    "class_mean",
    "overall",
    "label_free",
    "oracle_best",
    "selected",
    *INNER,
    "tp_rate_round0",
    "seconds",
    "commit",
)


class Row(Settings):
    """One line of a table: a config and what is changed in it."""

    name: str
    """What the table calls it."""
    cfg: str
    """Config in configs/."""
    set: list[str] = Field(default_factory=list)
    """Overrides."""


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
        problems = [f"{path.name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(problems)) from None


@dataclass(frozen=True)
class Job:
    """One run of a table."""

    table: Table
    row: Row
    pair: tuple[str, str]
    seed: int
    runs: Path
    extra: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        slug = re.sub(r"[^a-z0-9]+", "_", self.row.name.lower()).strip("_")
        return self.runs / self.table.name / slug / f"{self.pair[0]}_to_{self.pair[1]}" / f"seed{self.seed}"

    @property
    def is_source(self) -> bool:
        """Whether this is the model that the others start from."""
        return self.row is self.table.rows[0]

    def overrides(self) -> list[str]:
        """What the run changes in its config."""
        words = [
            f"data.source={self.pair[0]}",
            f"data.target={self.pair[1]}",
            f"seed={self.seed}",
            f"output={self.folder}",
            *self.row.set,
            *self.extra,
        ]
        if not self.is_source:
            words.append(f"source.checkpoint={self.source.folder / 'checkpoints' / 'final.safetensors'}")
        return words

    @property
    def source(self) -> "Job":
        """The run that trains this one's source model."""
        return replace(self, row=self.table.rows[0])

    def command(self) -> list[str]:
        """The command that runs it."""
        return [sys.executable, str(ROOT / "tools" / "self_train.py"), "--cfg", self.row.cfg, *self.overrides()]

    def record(self) -> dict[str, object] | None:
        """The CSV row of a finished run, None for one that is not.

        Raises:
            UserError: the run was made by another config than the table's.
        """
        path = self.folder / "results.json"
        if not path.is_file():
            return None
        saved = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        differences = differing_keys(load_config(self.row.cfg, self.overrides()), saved)
        if differences:
            raise UserError(f"{self.folder} was made by another config ({'; '.join(differences)}); delete it")
        results = json.loads(path.read_text(encoding="utf-8"))
        environment = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
        rounds = results["rounds"]
        last = rounds[-1] if rounds else {}
        chosen, best = results["label_free_choice"], results["oracle_best"]
        return {
            "row": self.row.name,
            "config": results["config"],
            "source": self.pair[0],
            "target": self.pair[1],
            "seed": self.seed,
            "source_only": results["source_only"]["class_mean"],
            "class_mean": results["final"]["class_mean"],
            "overall": results["final"]["overall"],
            "label_free": chosen["class_mean"] if rounds else None,
            "oracle_best": best["class_mean"] if rounds else None,
            "selected": last.get("selected"),
            **{key: last.get(key) for key in INNER},
            "tp_rate_round0": rounds[0]["tp_rate"] if rounds else None,
            "seconds": results["seconds"],
            "commit": environment["commit"],
        }


def jobs_of(table: Table, runs: Path, extra: Sequence[str] = ()) -> list[Job]:
    """Every run of a table, source models first; `extra` overrides concern them all."""
    return [
        Job(table, row, pair, seed, runs, tuple(extra))
        for row in table.rows
        for pair in table.pairs
        for seed in table.seeds
    ]


def run_jobs(jobs: list[Job], at_once: int, log=print) -> None:
    """Run the unfinished ones, `at_once` at a time, source models before what needs them.

    Raises:
        UserError: runs that failed, with the log of each; those that do not need them are finished first.
    """
    threads = max(1, (os.cpu_count() or 1) // at_once)
    failures: list[str] = []

    def execute(job: Job) -> None:
        what = f"{job.row.name}, {job.pair[0]} to {job.pair[1]}, seed {job.seed}"
        if not job.is_source and job.source.record() is None:
            failures.append(f"{what}: its source model is missing")
            return
        started = time.monotonic()
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        output = job.folder.parent / f"{job.folder.name}.out"
        with open(output, "w", encoding="utf-8") as file:
            command = [*job.command(), f"runtime.threads={threads}"]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        record = job.record()
        if code or record is None:
            failures.append(f"{what}: exit code {code}, see {output}")
            log(f"FAILED {failures[-1]}")
        else:
            reached = "no labels" if record["class_mean"] is None else f"class mean {record['class_mean']:.4f}"
            log(f"{what}: {reached} in {time.monotonic() - started:.0f} s")

    for wave in (True, False):
        todo = [job for job in jobs if job.is_source is wave and job.record() is None]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(execute, todo))
    if failures:
        raise UserError("\n".join(failures))


def to_csv(records: list[dict[str, object]]) -> str:
    """CSV of the runs' records; fractions with six decimals."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in record.items()})
    return stream.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a results CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cell(values: list[str], percent: bool = True) -> str:
    numbers = [float(value) * (100 if percent else 1) for value in values if value]
    if not numbers:
        return ""
    digits = 1 if percent else 3
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


def to_markdown(records: list[dict[str, str]]) -> str:
    """Mean and sample standard deviation over seeds: class mean a pair, then the inner metrics of the last round."""
    rows = list(dict.fromkeys(record["row"] for record in records))
    pairs = list(dict.fromkeys((record["source"], record["target"]) for record in records))
    several = len(pairs) > 1

    def of(row: str, pair: tuple[str, str] | None = None) -> list[dict[str, str]]:
        return [
            record
            for record in records
            if record["row"] == row and pair in (None, (record["source"], record["target"]))
        ]

    def values(key: str, row: str, pair: tuple[str, str] | None = None) -> list[str]:
        return [record[key] for record in of(row, pair)]

    def mean_over_pairs(row: str) -> list[str]:
        """Of each seed that has every pair."""
        by_seed: dict[str, list[float]] = {}
        for record in of(row):
            if record["class_mean"]:
                by_seed.setdefault(record["seed"], []).append(float(record["class_mean"]))
        return [str(statistics.mean(found)) for found in by_seed.values() if len(found) == len(pairs)]

    head = [f"{source} to {target}" for source, target in pairs]
    head += ["mean"] if several else ["overall", "label-free choice", "oracle best"]
    lines = [
        "Class mean of the last round in %, mean ± standard deviation over seeds:",
        "",
        f"| Method | seeds | {' | '.join(head)} |",
        f"|---|---|{'---|' * len(head)}",
    ]
    for row in rows:
        cells = [_cell(values("class_mean", row, pair)) for pair in pairs]
        if several:
            cells.append(_cell(mean_over_pairs(row)))
        else:
            cells += [_cell(values(key, row)) for key in ("overall", "label_free", "oracle_best")]
        seeds = len({record["seed"] for record in of(row)})
        lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
    lines += [
        "",
        "Inner metrics of the selected images, first column apart in the last round (TP rates are oracle figures):",
        "",
        "| Method | TP rate, first round | TP rate | AVH | AVC | confidence | norm of x |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if any(values("tp_rate", row)):
            cells = [_cell(values(key, row), percent=False) for key in ("tp_rate_round0", *INNER)]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def insert_markdown(document: str, name: str, markdown: str) -> str:
    """`document` with the block between `<!-- table NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        UserError: the two marks are not there, once each and in this order.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UserError(f"no place for table '{name}': the document needs the lines {begin} and {end}, once each")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{markdown}{end}{rest.partition(end)[2]}"


def write_table(table: Table, jobs: list[Job], folder: Path, document: Path | None) -> str:
    """Write `folder/<name>.csv` from the finished runs and, where asked, the block in a document. Returns Markdown."""
    records = [record for job in jobs if (record := job.record())]
    if not records:
        raise UserError(f"table '{table.name}': no finished run in {jobs[0].runs / table.name}")
    path = folder / f"{table.name}.csv"
    write_text(path, to_csv(records))
    markdown = to_markdown(read_csv(path))
    if document is not None:
        write_text(document, insert_markdown(document.read_text(encoding="utf-8"), table.name, markdown))
    return markdown
