"""The runs of a table: list them, find the missing ones, run them."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from uda.core.errors import UserError
from uda.core.files import write_text
from uda.core.registry import nearest
from uda.tables.definition import MEASURES, Table
from uda.tables.job import JOBS, Job
from uda.tables.launchers.launcher import Ended, Launcher, output_of
from uda.tables.ledger import Ledger
from uda.tables.recipe import below

#: Settings of no part in a recipe that still change more than rounding. Those of `runtime` decide how many images share
#: BatchNorm statistics. `data.features` and `model.classifier` name files, and another place may hold other ones.
DECISIVE = ("runtime.accumulate", "runtime.sync_batch_norm", "data.features", "model.classifier")


def jobs_of(table: Table, runs: Path, extra: Sequence[str] = ()) -> list[Job]:
    """All runs of a table, source models first. `extra`: overrides for all of them.

    Raises:
        UserError: an extra override changes the recipe, so the results would not belong to this table.
    """
    kind = JOBS[table.kind]
    for word in extra:
        key = word.partition("=")[0]
        if not below(key, kind.kind.not_identity) or key in DECISIVE:
            raise UserError(f"command line: {key}: changes the results; set it in the table's YAML, by `set`")
    return [
        kind(table, row, pair, seed, runs, tuple(extra))
        for row in table.rows
        for pair in table.pairs
        for seed in table.seeds
    ]


def choose_jobs(jobs: Sequence[Job], rows: str = "*", pairs: str = "*", seeds: str = "*") -> list[Job]:
    """The runs that match rows, pairs and seeds: comma-separated patterns with `*` and `?`.

    Args:
        jobs: runs of one table.
        rows: names of rows, `MCD,ADR*`.
        pairs: `photo_to_sketch,*_to_cartoon`; in domain generalisation the unseen domain, `sketch`.
        seeds: `0,1`.

    Raises:
        UserError: a pattern matches nothing. Lists the known names.
    """
    chosen = list(jobs)
    for what, wanted, name_of in (
        ("rows", rows, lambda job: job.row.name),
        ("pairs/--targets", pairs, lambda job: job.domains),
        ("seeds", seeds, lambda job: str(job.seed)),
    ):
        patterns = [pattern.strip() for pattern in wanted.split(",")]
        known = list(dict.fromkeys(map(name_of, jobs)))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UserError(f"--{what}: nothing matches '{pattern}'{nearest(pattern, known)} ({', '.join(known)})")
        chosen = [job for job in chosen if any(fnmatchcase(name_of(job), pattern) for pattern in patterns)]
    return chosen


@dataclass
class JobStatus:
    """The state of some runs before any of them is run."""

    recorded: list[Job] = field(default_factory=list)
    """Runs that are recorded with their current recipe."""
    finished: list[Job] = field(default_factory=list)
    """Runs that are finished in their folder, but not recorded."""
    missing: list[Job] = field(default_factory=list)
    """Runs that are to be run."""
    models: list[Job] = field(default_factory=list)
    """Runs that are recorded or not requested, and are still to be run: a missing run starts from their model."""
    failures: list[tuple[Job, UserError]] = field(default_factory=list)
    """Runs with an error."""

    @property
    def errors(self) -> list[str]:
        """The errors for people."""
        return lines_of(self.failures)

    @property
    def todo(self) -> list[Job]:
        """All runs that are to be run."""
        return [*self.missing, *self.models]


def status_of(jobs: Iterable[Job], recorded: Ledger | None = None) -> JobStatus:
    """Find which runs are done and which are to be run. Nothing is run or written.

    Args:
        jobs: the requested runs.
        recorded: runs in this ledger with the same recipe are done. None: only the run folders count.
    """
    found = JobStatus()
    needed: dict[Path, Job] = {}
    for job in jobs:
        try:
            digest = job.digest  # reads the config, so that an error in it is a failure of this run only
            if recorded and recorded.holds(job.run, digest):
                found.recorded.append(job)
            elif job.results() is not None:
                found.finished.append(job)
            else:
                needed |= {model.folder: model for model in _lacking_models(job)}
                found.missing.append(job)
        except UserError as error:
            found.failures.append((job, error))
    missing = {job.folder for job in found.missing}
    found.models = [model for folder, model in needed.items() if folder not in missing]
    return found


def lines_of(failures: Iterable[tuple[Job, UserError]]) -> list[str]:
    """A line for each error, with the first run that has it. A bank that is missing stops every run, and a mistake in a
    row every run that starts from its model."""
    alike: dict[str, list[Job]] = {}
    for job, error in failures:
        alike.setdefault(str(error), []).append(job)
    lines = []
    for error, found in alike.items():
        others = len(found) - 1
        more = f" and {others} other run{'s' * (others > 1)}" if others else ""
        rows = list(dict.fromkeys(job.row.name for job in found))
        if others:
            more += " of this row" if len(rows) == 1 else f" of the rows {', '.join(rows)}"
        lines.append(f"{found[0].title}{more}: {error}")
    return lines


def _lacking_models(job: Job) -> Iterator[Job]:
    """The run that `job` starts from, the run that this one starts from, and so on, until a model exists."""

    def lacks(job: Job) -> bool:
        try:
            return not job.has_model
        except UserError:  # the runs that need it report the error
            return False

    while (job := job.needs) and lacks(job):
        yield job


def run_jobs(
    jobs: Sequence[Job],
    launcher: Launcher,
    log: Callable[[str], None] = print,
    recorded: Ledger | None = None,
    after: Callable[[Job], None] | None = None,
) -> None:
    """Run the unfinished runs. A run comes after the run whose model it starts from.

    Args:
        jobs: the requested runs. Missing models that they start from are run as well.
        launcher: carries the runs out.
        log: receives one line per run.
        recorded: runs in this ledger with the same recipe count as finished.
        after: called with each run that is finished and not recorded, by one thread at a time.

    Raises:
        UserError: runs failed; names the log of each. Runs that do not need them are finished first.
        Interrupted: SIGINT or SIGTERM came. The active runs have saved and stopped.
    """
    failures: list[str] = []
    one_at_a_time = threading.RLock()

    def fail(message: str) -> None:
        with one_at_a_time:
            failures.append(message)
            log(f"FAILED {message}")

    def ready(job: Job) -> bool:
        """Whether a run can be started. Prepares its place if so."""
        try:
            if launcher.carries_out and job.needs and not job.needs.has_model:
                fail(f"{job.title}: the model that it starts from is missing ({job.needs.title})")
                return False
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            if job.start_digest:
                write_text(job.start_file, job.start_digest)
        except UserError as error:
            fail(f"{job.title}: {error}")
            return False
        return True

    def ended(job: Job, end: Ended) -> None:
        output, asked = output_of(job), launcher.stopped is not None
        try:
            results = job.results()
            if results is None and asked and end.by_signal:
                log(f"{job.title}: stopped and can be resumed, see {output}")
                return
            if results is None or (end.code and not asked):
                why = f"exit code {end.code}"
                if end.by_signal:
                    number = -end.code if end.code < 0 else end.code - 128
                    why = (
                        f"its process was killed again and again without progress, at last by {_signal_name(number)}"
                        f"{' (was there enough memory?)' * (number == signal.SIGKILL)}"
                    )
                fail(f"{job.title}: {why}, see {output}")
                return
            with one_at_a_time:
                if after:
                    after(job)
        except UserError as error:
            fail(f"{job.title}: {error}")
            return
        reached = results["final"][job.table.measure]
        said = "no labels" if reached is None else f"{MEASURES[job.table.measure]} {reached:.4f}"
        log(f"{job.title}: {said} in {end.seconds:.0f} s")

    before = status_of(jobs, recorded)
    failures += before.errors
    for line in before.errors if before.todo else []:  # else they are raised at once
        log(f"FAILED {line}")
    for job in before.finished if after else []:
        try:
            after(job)
        except UserError as error:
            fail(f"{job.title}: {error}")
    todo = {job.folder: job for job in before.todo}
    waves = _waves(todo)
    if todo:
        outputs = jobs[0].runs / jobs[0].table.name / "*" / "*" / "seed*.out"
        log(f"{len(todo)} run{'s' * (len(todo) > 1)} to do, {launcher.plan(waves, str(outputs))}")
    with launcher:
        for wave in waves:
            started = [] if launcher.stopped is not None else list(filter(ready, wave))
            launcher.launch(started, ended)
    launcher.leave()
    if failures:
        raise UserError("\n".join(failures))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _waves(todo: Mapping[Path, Job]) -> list[list[Job]]:
    """The runs in groups. A group needs only models of earlier groups. `todo`: runs by folder."""
    waves: list[list[Job]] = []
    while todo:
        wave = {folder: job for folder, job in todo.items() if not (job.needs and job.needs.folder in todo)}
        waves.append(list(wave.values()))
        todo = {folder: job for folder, job in todo.items() if folder not in wave}
    return waves
