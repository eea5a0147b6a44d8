"""The runs of a table: what each is, which are missing, running them."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from uda.config import NOT_IDENTITY, Config, differing_keys, flatten, load_config
from uda.config_files import ROOT
from uda.errors import UserError
from uda.methods import METHODS
from uda.registry import nearest
from uda.report.records import read_record, source_file
from uda.tables.definition import Row, Table
from uda.tables.ledger import INNER, Ledger, Run


def recipe(config: Config) -> dict[str, Any]:
    """What a run's result depends on: its settings by dotted key, where they are not the default.

    Defaults are left out so that a new setting, which changes nothing for those who leave it alone, leaves every
    recipe the recipe that it was; the section of the other kind of method is left out because the run does not read it.
    """
    unread = "self_training" if METHODS[config.method].adapts else "adaptation"
    settings = flatten(config.model_dump(mode="json", exclude_defaults=True))
    return {key: value for key, value in settings.items() if not _below(key, (*NOT_IDENTITY, unread))}


def digest(config: Config, start: str = "") -> str:
    """Twelve hexadecimal digits that stand for a recipe, and for that of the run that it starts from."""
    text = json.dumps(recipe(config), sort_keys=True) + start
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _source_recipe(config: Config) -> dict[str, Any]:
    """The part of a recipe that decides the source model's weights."""
    after_training = ("source.adapt_batch_norm", "transforms.target")
    return {
        key: value
        for key, value in recipe(config).items()
        if _below(key, ("seed", "data", "transforms", "model", "source")) and not _below(key, after_training)
    }


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
    def run(self) -> Run:
        """What the ledger knows it by."""
        return (self.row.name, *self.pair, str(self.seed))

    @property
    def title(self) -> str:
        """What people know it by."""
        return f"{self.row.name}, {self.pair[0]} to {self.pair[1]}, seed {self.seed}"

    @property
    def is_source(self) -> bool:
        """Whether this is the model that others may start from."""
        return self.row is self.table.rows[0]

    @cached_property
    def source(self) -> "Job":
        """The table's source model of the same pair and seed."""
        return replace(self, row=self.table.rows[0])

    @cached_property
    def config(self) -> Config:
        """The run's config, as if it trained its source model by itself."""
        return load_config(self.row.cfg, self._own_overrides())

    @cached_property
    def digest(self) -> str:
        """Its recipe's digest, by which a record says whether it is still this run's."""
        return digest(self.config, self.start.digest if self.start else "")

    @cached_property
    def shares_source(self) -> bool:
        """Whether it starts from the table's source model: it has a source stage, and it is that model's own."""
        if self.is_source or self.start or not self.config.trains_source:
            return False
        return _source_recipe(self.config) == _source_recipe(self.source.config)

    @cached_property
    def start(self) -> "Job | None":
        """The run of the row that this one's row says it starts from."""
        rows = [row for row in self.table.rows if row.name == self.row.start]
        return replace(self, row=rows[0]) if rows else None

    @property
    def needs(self) -> "Job | None":
        """The run whose final model it begins with."""
        return self.start or (self.source if self.shares_source else None)

    @property
    def has_model(self) -> bool:
        """Whether it is finished and its model is there. Raises UserError as `results` does."""
        return self.weights.is_file() and self.results() is not None

    @property
    def weights(self) -> Path:
        """The weights that it ends with."""
        return self.folder / "checkpoints" / "final.safetensors"

    def _own_overrides(self) -> list[str]:
        return [
            f"data.source={self.pair[0]}",
            f"data.target={self.pair[1]}",
            f"seed={self.seed}",
            f"output={self.folder}",
            *self.row.set,
            *self.extra,
        ]

    def overrides(self) -> list[str]:
        """What the run changes in its config."""
        return [*self._own_overrides(), *([f"source.checkpoint={self.needs.weights}"] if self.needs else [])]

    def command(self) -> list[str]:
        """The command that runs it."""
        return [sys.executable, str(ROOT / "tools" / "self_train.py"), "--cfg", self.row.cfg, *self.overrides()]

    def results(self) -> dict[str, Any] | None:
        """`results.json` of a finished run, None for one that is not.

        Raises:
            UserError: the folder was made by another recipe than the table's, or cannot be read.
        """
        saved = self.folder / "config.yaml"
        if not saved.is_file():
            return None
        try:
            made_by = Config.model_validate(yaml.safe_load(saved.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"{self.folder} was made by another version or is damaged; delete it") from None
        skip = NOT_IDENTITY
        if self.needs:
            skip = (*NOT_IDENTITY, "source.checkpoint")
            made_by = made_by.model_copy(update={"source": made_by.source.model_copy(update={"checkpoint": None})})
        if digest(made_by) != digest(self.config):
            differences = "; ".join(differing_keys(self.config, made_by.model_dump(mode="json"), skip))
            raise UserError(f"{self.folder} was made by another config ({differences}); delete it")
        path = self.folder / "results.json"
        if not path.is_file():
            return None
        results = read_record(path)
        if results is None:
            raise UserError(f"{path} cannot be read; delete {self.folder}")
        return results

    def record(self) -> dict[str, object] | None:
        """The CSV row of a finished run, None for one that is not. Raises UserError as `results` does."""
        results = self.results()
        if results is None:
            return None
        environment = read_record(self.folder / "environment.json") or {}
        rounds, final = results["rounds"], results["final"]
        last = rounds[-1] if rounds else {}
        steps = results.get("steps")
        if self.needs and steps is not None:
            before = (self.needs.record() or {}).get("steps")
            steps = None if before is None else steps + before
        finished = datetime.fromtimestamp((self.folder / "results.json").stat().st_mtime, UTC)
        per_class = {name: None if share is None else round(share, 6) for name, share in final["per_class"].items()}
        return {
            "row": self.row.name,
            "config": results["config"],
            "source": self.pair[0],
            "target": self.pair[1],
            "seed": self.seed,
            "digest": self.digest,
            "source_only": results["source_only"]["class_mean"],
            "class_mean": final["class_mean"],
            "overall": final["overall"],
            "label_free": results["label_free_choice"]["class_mean"],
            "oracle_best": results["oracle_best"]["class_mean"],
            "selected": last.get("selected"),
            **{key: last.get(key) for key in INNER},
            "tp_rate_round0": rounds[0].get("tp_rate") if rounds else None,
            "steps": steps,
            "seconds": results["seconds"],
            "commit": environment.get("commit"),
            "finished": finished.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "per_class": json.dumps(per_class, ensure_ascii=False, separators=(",", ":")),
        }

    def reports(self) -> list[dict[str, object]]:
        """The validators' scores of every report of a finished run, and the oracle class mean beside them.

        A run without rounds has one, of its only model: it is a method too when validators rank methods.
        """
        results = self.results()
        if results is None:
            return []
        found = [(entry["round"], entry) for entry in results["rounds"]]
        if not found:
            found = [("source", read_record(source_file(self.folder)) or {})]
        return [
            {
                **dict(zip(("row", "source", "target", "seed"), self.run, strict=True)),
                "report": name,
                "class_mean": entry.get("class_mean"),
                **entry.get("validators", {}),
            }
            for name, entry in found
        ]


def jobs_of(table: Table, runs: Path, extra: Sequence[str] = ()) -> list[Job]:
    """Every run of a table, source models first; `extra` overrides concern them all.

    Raises:
        UserError: an extra override changes the recipe: the results would not be this table's.
    """
    for word in extra:
        key = word.partition("=")[0]
        if not _below(key, NOT_IDENTITY):
            raise UserError(f"command line: {key}: decides the result; change it in the table's rows, by `set`")
    return [
        Job(table, row, pair, seed, runs, tuple(extra))
        for row in table.rows
        for pair in table.pairs
        for seed in table.seeds
    ]


def choose_jobs(jobs: Sequence[Job], rows: str = "*", pairs: str = "*", seeds: str = "*") -> list[Job]:
    """The runs that match in all three: comma-separated patterns with `*` and `?`.

    Args:
        jobs: of one table.
        rows: names of rows, `MCD,ADR*`.
        pairs: `photo_to_sketch,*_to_cartoon`.
        seeds: `0,1`.

    Raises:
        UserError: a pattern matches nothing; the known names are listed.
    """
    chosen = list(jobs)
    for what, wanted, name_of in (
        ("rows", rows, lambda job: job.row.name),
        ("pairs", pairs, lambda job: f"{job.pair[0]}_to_{job.pair[1]}"),
        ("seeds", seeds, lambda job: str(job.seed)),
    ):
        patterns = [pattern.strip() for pattern in wanted.split(",")]
        known = list(dict.fromkeys(map(name_of, jobs)))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UserError(f"--{what}: nothing matches '{pattern}'{nearest(pattern, known)} ({', '.join(known)})")
        chosen = [job for job in chosen if any(fnmatchcase(name_of(job), pattern) for pattern in patterns)]
    return chosen


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    log: Callable[[str], None] = print,
    recorded: Ledger | None = None,
    after: Callable[[Job], None] | None = None,
) -> None:
    """Run the unfinished ones, `at_once` at a time, each after the one whose model it begins with.

    Args:
        jobs: what is wanted. A model that one of them begins with and that is not there is run as well.
        at_once: processes; they share the cores.
        log: receives a line a run.
        recorded: runs in here count as finished, if their recipe is still the same.
        after: called after each run that finished, by one thread at a time.

    Raises:
        UserError: runs that failed, with the log of each; those that do not need them are finished first.
    """
    threads = max(1, (os.cpu_count() or 1) // at_once)
    failures: list[str] = []
    one_at_a_time = threading.Lock()

    def fail(message: str) -> None:
        failures.append(message)
        log(f"FAILED {message}")

    def is_missing(job: Job) -> bool:
        try:
            return job.results() is None and not (recorded and recorded.holds(job.run, job.digest))
        except UserError as error:
            fail(f"{job.title}: {error}")
            return False

    def lacks_model(job: Job) -> bool:
        try:
            return not job.has_model
        except UserError:  # those that need it say so
            return False

    def execute(job: Job) -> None:
        started = time.monotonic()
        try:
            if job.needs and not job.needs.has_model:
                fail(f"{job.title}: the model that it begins with is missing ({job.needs.title})")
                return
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            output = job.folder.parent / f"{job.folder.name}.out"
            with open(output, "w", encoding="utf-8") as file:
                command = [*job.command(), f"runtime.threads={threads}"]
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
            results = job.results()
            if code or results is None:
                fail(f"{job.title}: exit code {code}, see {output}")
                return
            with one_at_a_time:
                if after:
                    after(job)
        except UserError as error:
            fail(f"{job.title}: {error}")
            return
        reached = results["final"]["class_mean"]
        said = "no labels" if reached is None else f"class mean {reached:.4f}"
        log(f"{job.title}: {said} in {time.monotonic() - started:.0f} s")

    todo = {job.folder: job for job in jobs if is_missing(job)}
    for job in list(todo.values()):
        while (job := job.needs) and job.folder not in todo and lacks_model(job):
            todo[job.folder] = job
    waves: list[list[Job]] = []
    while todo:
        waves.append([job for job in todo.values() if not (job.needs and job.needs.folder in todo)])
        todo = {folder: job for folder, job in todo.items() if job not in waves[-1]}
    for wave in waves:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(execute, wave))
    if failures:
        raise UserError("\n".join(failures))
