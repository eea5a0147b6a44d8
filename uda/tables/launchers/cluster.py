"""The launcher `submitit`: jobs of Slurm, or of this machine where there is no Slurm.

A job carries out several runs if they are short. It writes down how each ended, in a file that the table's process
reads. So a run whose job was killed or preempted is submitted again, and its row is never written twice.
"""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from uda.core.errors import UserError
from uda.core.settings import Settings
from uda.core.typed_yaml import typed
from uda.core.yaml_files import ConfigError, mistakes, parse_overrides
from uda.tables.job import Job
from uda.tables.launchers.launcher import LAUNCHERS, Ended, Kills, Launcher, cores, output_of, words_of
from uda.tables.launchers.local import own_devices
from uda.training.run_folder import is_locked, locked

#: A job has as many runs as take about this many seconds together.
JOB_SECONDS = 600.0

#: An array has at most this many jobs. Slurm's own limit is 1001.
MOST_JOBS = 1000

#: File with the numbers of the jobs that a process of a table has submitted to Slurm.
JOBS = "jobs.txt"

#: Seconds between two looks at the jobs: of this machine, of Slurm.
LOOK_HERE, LOOK_AT_SLURM = 0.1, 5.0

#: Seconds before the end of its time at which Slurm tells a job, so that its run is saved.
WARNING = 120

#: Seconds that cancelled jobs have for saving their runs.
PATIENCE = 60.0

#: Seconds after which a job that Slurm has preempted is given up. Until then Slurm may start it again by itself.
REQUEUED_BY_THEN = 600.0


def _minutes(value: object) -> object:
    """Minutes from what Slurm takes for a time: minutes, hours:minutes:seconds, days-hours:minutes:seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", str(value))
    if match is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:  # minutes:seconds
        return max(1, hours)
    return max(1, (days * 24 + hours) * 60 + minutes + math.ceil(seconds / 60))


def _gigabytes(value: object) -> object:
    """A number of gigabytes from 32, 32G or 32GB."""
    match = re.fullmatch(r"([\d.]+) ?(?:G|GB)", str(value), re.IGNORECASE)
    return float(match[1]) if match else value


class SlurmSettings(Settings):
    """What each job asks Slurm for."""

    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes that are not used."""
    nodelist: str | None = None
    """Nodes that are used."""
    time: Annotated[int, BeforeValidator(_minutes)] = Field(240, ge=1)
    """Minutes, or hours:minutes:seconds. A run that needs more is saved in time and goes on in another job."""
    gpus: int = Field(0, ge=0)
    """GPUs of a job."""
    cpus: int = Field(4, ge=1)
    """Cores of a job."""
    memory: Annotated[float | None, BeforeValidator(_gigabytes)] = Field(None, gt=0)
    """Gigabytes of memory of a job; null: what Slurm gives."""


def read_slurm(words: Sequence[str]) -> SlurmSettings:
    """The settings that `key=value` words give. Raises ConfigError with all mistakes."""
    values, problems = parse_overrides(words, SlurmSettings, "--slurm")
    try:
        settings = SlurmSettings.model_validate(typed(values, SlurmSettings))
    except ValidationError as error:
        problems += mistakes(error, SlurmSettings, {}, "--slurm")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def submitit() -> Any:
    """The package. Raises UserError if it is not installed."""
    try:
        return import_module("submitit")
    except ImportError as error:
        raise UserError(
            f'--launcher submitit needs the package submitit ({error}); pip install "uda-toolkit[cluster]", or in a '
            'checkout pip install -e ".[cluster]"'
        ) from None


@dataclass
class Submitted:
    """A job of the scheduler with the runs that it carries out."""

    jobs: list[Job]
    """Its runs."""
    record: Path
    """File in which it writes down the begin and the end of each."""
    slot: int
    """Its place among those of this machine."""
    handle: Any = None
    """submitit's job."""
    ended: set[int] = field(default_factory=set)
    """Numbers of the runs that have ended."""
    begun: set[int] = field(default_factory=set)
    """Numbers of the runs that have begun."""
    preempted_at: float | None = None
    _read: int = 0

    def news(self) -> Iterator[tuple[int, Ended]]:
        """The runs that have ended since the last call."""
        with suppress(FileNotFoundError):
            content = self.record.read_bytes()
            content = content[: content.rfind(b"\n") + 1]
            lines, self._read = content[self._read :].splitlines(), len(content)
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # the job was killed while it wrote this line, and then started again
                    continue
                number = entry["run"]
                self.begun.add(number)
                if "code" in entry and number not in self.ended:
                    self.ended.add(number)
                    yield number, Ended(entry["code"], entry["seconds"])

    @property
    def left(self) -> list[Job]:
        """The runs that have not ended."""
        return [job for number, job in enumerate(self.jobs) if number not in self.ended]


@LAUNCHERS.register("submitit")
class Submitit(Launcher):
    """Slurm arrays, by the package submitit; without Slurm, processes of this machine."""

    schedules = True

    def __init__(self, at_once: int, **settings):
        super().__init__(at_once, **settings)
        self.settings = read_slurm(self.slurm)
        self.submitit = submitit()
        self._asked = threading.Event()
        self._running: list[Submitted] = []
        self._begun: set[Path] = set()
        self._kills = Kills()
        self._executor = None
        self._keep_logs = False

    def launch(self, jobs: Sequence[Job], ended: Callable[[Job, Ended], None]) -> None:
        if not jobs:
            return
        if self._executor is None:
            self._open(jobs)
        waiting = deque(self._chunks(jobs))
        try:
            while (waiting or self._running) and self.stopped is None:
                self._submit(waiting)
                self._asked.wait(LOOK_HERE if self._here else LOOK_AT_SLURM)
                for submitted in list(self._running):
                    self._look(submitted, waiting, ended)
        finally:
            self._cancel(ended)

    def pass_on(self, number: int) -> None:
        self._asked.set()

    def __exit__(self, *_) -> None:
        super().__exit__()
        if self._executor is None:
            return
        if self._lock is not None:
            self._lock.close()
        if self._keep_logs:
            (self._folder / JOBS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, jobs: Sequence[Job]) -> None:
        folders = (jobs[0].runs / jobs[0].table.name / ".submitit").absolute()
        self._folder = folders / f"{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._folder.mkdir(parents=True)
        self._lock = locked(self._folder, "--runs", "another folder")
        wanted = self.settings
        # A run that needs more time than a job has is no error, so there may be any number of jobs for it.
        often = {"slurm_max_num_timeout": 10**6, "local_max_num_timeout": 10**6}
        self._executor = self.submitit.AutoExecutor(self._folder, **often)
        self._here = self._executor.cluster != "slurm"
        self._executor.update_parameters(
            name=f"uda-{jobs[0].table.name}",
            timeout_min=wanted.time,
            mem_gb=wanted.memory,
            cpus_per_task=wanted.cpus,
            gpus_per_node=wanted.gpus or None,
            stderr_to_stdout=True,
            slurm_partition=wanted.partition,
            slurm_account=wanted.account,
            slurm_qos=wanted.qos,
            slurm_constraint=wanted.constraint,
            slurm_exclude=wanted.exclude,
            slurm_nodelist=wanted.nodelist,
            slurm_signal_delay_s=WARNING,
            slurm_array_parallelism=self.at_once,
        )
        self._devices = own_devices(jobs, self.at_once) if self._here else [{}]
        _cancel_those_of_before(folder for folder in folders.iterdir() if folder != self._folder)

    @property
    def _threads(self) -> int:
        return max(1, cores() // self.at_once) if self._here else self.settings.cpus

    def _chunks(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The runs of each job: the given number, or as many as take JOB_SECONDS."""
        known = {name: self.seconds(name) for name in {job.row.name for job in jobs}}
        fair = math.ceil(len(jobs) / self.at_once)  # each of those at a time gets one
        chunk: list[Job] = []
        seconds = 0.0
        for job in jobs:
            full = len(chunk) >= fair or seconds >= JOB_SECONDS
            if self.chunk is not None:
                full = len(chunk) >= self.chunk
            if chunk and (full or chunk[0].config.plugins != job.config.plugins):
                yield chunk
                chunk, seconds = [], 0.0
            chunk.append(job)
            own = known[job.row.name]
            seconds += JOB_SECONDS if own is None else own
        if chunk:
            yield chunk

    def _submit(self, waiting: "deque[list[Job]]") -> None:
        """Submit what waits: an array if Slurm has no job of ours, else no more than may run beside those it has.

        Slurm keeps the number at a time within an array, but not over several.
        """
        most = MOST_JOBS
        if self._here or self._running:
            most = min(most, self.at_once - len(self._running))
        new = []
        while waiting and len(new) < most:
            taken = {submitted.slot for submitted in [*self._running, *new]}
            slot = next(number for number in range(len(taken) + 1) if number not in taken)
            new.append(Submitted(waiting.popleft(), self._folder / f"{uuid.uuid4().hex}.jsonl", slot))
        if not new:
            return
        functions = [self._function(submitted) for submitted in new]
        try:
            with _without_ctrl_c():
                if len(new) > 1 and not self._here:
                    handles = self._executor.submit_array(functions)
                else:
                    handles = [self._executor.submit(function) for function in functions]
        except self.submitit.core.utils.FailedJobError as error:  # of sbatch, too
            why = (str(error).strip() or "no reason was given").splitlines()[-1]
            raise UserError(f"--launcher submitit: the jobs were refused: {why}") from None
        for submitted, handle in zip(new, handles, strict=True):
            submitted.handle = handle
            self._running.append(submitted)
        with open(self._folder / JOBS, "a", encoding="utf-8") as file:
            file.writelines(f"{handle.job_id}\n" for handle in handles if not self._here)

    def _function(self, submitted: Submitted) -> Callable[[], None]:
        """What a job carries out."""
        for job in submitted.jobs:
            self._kills.begin(job)
        variables = {}
        if self._here:  # submitit's local jobs see the first GPUs, or none
            own = self._devices[submitted.slot % len(self._devices)]
            variables = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"), **own}
        return import_module(self.worker).Chunk(
            words=[words_of(job, self._threads) for job in submitted.jobs],
            outputs=[str(output_of(job)) for job in submitted.jobs],
            again=[job.folder in self._begun for job in submitted.jobs],
            record=str(submitted.record),
            variables=variables,
            table=os.getpid() if self._here else None,
        )

    def _look(self, submitted: Submitted, waiting: "deque[list[Job]]", ended: Callable[[Job, Ended], None]) -> None:
        """Pass on which runs of a job have ended. What a job left when it ended is submitted again."""
        over = self._is_over(submitted)
        if over and not self._here and not submitted.handle.paths.result_pickle.exists():
            _take_out_of_queue([submitted.handle.job_id])  # Slurm may have started it again, or may do so
        for number, end in submitted.news():
            ended(submitted.jobs[number], end)
        self._begun |= {submitted.jobs[number].folder for number in submitted.begun}
        if not over:
            return
        self._running.remove(submitted)
        left = submitted.left
        if not left:
            return
        self._keep_logs = True
        if error := self._error(submitted):
            for job in left:
                _add(job, error)
                ended(job, Ended(1, 0.0))
            return
        _add(left[0], f"uda table: job {submitted.handle.job_id} ended early, see {submitted.handle.paths.stdout}")
        if not self._kills.may_start_again(left[0]):
            ended(left.pop(0), Ended(-signal.SIGKILL, 0.0))
        if left:
            waiting.append(left)

    def _is_over(self, submitted: Submitted) -> bool:
        if submitted.handle.done():
            return True
        if self._here or submitted.handle.state != "PREEMPTED":
            submitted.preempted_at = None
            return False
        submitted.preempted_at = submitted.preempted_at or time.monotonic()
        return time.monotonic() - submitted.preempted_at > REQUEUED_BY_THEN

    @staticmethod
    def _error(submitted: Submitted) -> str | None:
        """The error with which a job's own code ended, if this is why it ended."""
        if not submitted.handle.paths.result_pickle.exists():
            return None
        error = submitted.handle.exception()
        return None if error is None else str(error)

    def _cancel(self, ended: Callable[[Job, Ended], None]) -> None:
        """Let all runs in progress save and stop, and pass on how they have ended."""
        running, self._running = self._running, []
        if self._here:
            _end_here(running)
        else:
            _take_out_of_queue([submitted.handle.job_id for submitted in running])
        for submitted in running:
            for number, end in submitted.news():
                ended(submitted.jobs[number], end)
            for number in submitted.begun - submitted.ended:
                ended(submitted.jobs[number], Ended(128 + signal.SIGTERM, 0.0))


def _end_here(running: Sequence[Submitted]) -> None:
    """Ask jobs of this machine to save their runs, and wait until they have ended. submitit leaves a run one second."""
    for submitted in running:
        if not submitted.handle.done():
            with suppress(ProcessLookupError):
                os.kill(int(submitted.handle.job_id), signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not all(submitted.handle.done() for submitted in running):
        time.sleep(LOOK_HERE)


def _cancel_those_of_before(folders: Iterable[Path]) -> None:
    """Cancel the jobs of processes of tables that were killed, on any machine. Their runs are saved.

    Without Slurm, jobs notice by themselves that the table's process has ended.

    Args:
        folders: those of all other processes of the table. One that is at work has a lock.
    """
    left = [folder for folder in folders if (folder / JOBS).is_file() and is_locked(folder) is False]
    numbers = [number for folder in left for number in (folder / JOBS).read_text(encoding="utf-8").split()]
    if numbers and shutil.which("scancel") is None:  # Slurm is on another machine
        return
    _take_out_of_queue(numbers)
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)


def _take_out_of_queue(numbers: Sequence[str]) -> None:
    """Cancel jobs of Slurm, and wait until they have saved their runs and ended."""
    if not numbers:
        return
    subprocess.run(["scancel", *numbers], check=False, capture_output=True)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        command = ["squeue", "--noheader", "--jobs", ",".join(numbers)]
        if not subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip():
            return
        time.sleep(1)


def _add(job: Job, text: str) -> None:
    """Add a line to what the command of a run has printed."""
    with open(output_of(job), "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Context in which processes are started that Ctrl-C does not reach. submitit would kill their runs after it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
