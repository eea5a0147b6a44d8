"""What all launchers share: how a run ended, the signals of the table's process, and runs whose process was killed."""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import ClassVar, Self

from uda.core.errors import UserError
from uda.core.interruption import SIGNALS, Interrupted
from uda.core.registry import Registry
from uda.tables.job import Job

#: Module of the program that carries out many commands of `uda` in one process.
WORKER = "uda.cli.worker"

#: A run fails when its process was killed this many times and the run came no further.
MOST_KILLS = 3

#: It also fails when its process was killed this many times before the run began. The run is rarely the cause of that.
MOST_EARLY_KILLS = 10


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Exit code of its command. Negative: minus the number of the signal that killed its process."""
    seconds: float
    """Time that it took in this process; 0 if unknown."""

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended it. A shell's code for this is 128 + its number."""
        return self.code < 0 or self.code > 128


@dataclass
class Kills:
    """Counts how often the process of a run was killed, and forgets it when the run has come further."""

    _kills: Counter[Path] = field(default_factory=Counter)
    _early: Counter[Path] = field(default_factory=Counter)
    _reached: dict[Path, set[str]] = field(default_factory=dict)
    _logged: dict[Path, int] = field(default_factory=dict)

    def begin(self, job: Job) -> None:
        """Note what a run has reached before its process is started."""
        self._reached[job.folder], self._logged[job.folder] = _checkpoints(job), _logged(job)

    def may_start_again(self, job: Job) -> bool:
        """Count a kill of the run. Returns False if it was killed too often without progress."""
        if _checkpoints(job) != self._reached[job.folder]:
            self._kills[job.folder] = self._early[job.folder] = 0
        begun = _logged(job) != self._logged[job.folder]
        (self._kills if begun else self._early)[job.folder] += 1
        return self._kills[job.folder] < MOST_KILLS and self._early[job.folder] < MOST_EARLY_KILLS


def _checkpoints(job: Job) -> set[str]:
    """Names of the checkpoints of a run, which have their numbers and checksums in them."""
    return {path.name for path in (job.folder / "checkpoints").glob("state-*.pt")}


def _logged(job: Job) -> int:
    """Length of a run's log, which grows when the run is begun or resumed."""
    try:
        return (job.folder / "log.txt").stat().st_size
    except OSError:
        return 0


class Launcher(ABC):
    """Base of launchers. It is a context, in which SIGINT and SIGTERM are passed on to all runs in progress.

    A signal is kept in `stopped`, and no run starts after it. Runs save and stop on both signals, so `launch` soon
    returns, and `leave` then raises `Interrupted`. Ctrl-C in a terminal also reaches the processes of this machine
    directly. A second signal at the same time does no harm (`uda.core.interruption`).

    Args:
        at_once: number of runs at a time, or of jobs of a scheduler.
        slurm: `key=value` words for a launcher that uses Slurm.
        chunk: number of runs of a job of a scheduler; None: the launcher decides.
        seconds: tells how long a run of a row takes, by the row's name; None if unknown.
        worker: module of the program that carries out the commands.

    Raises:
        UserError: a setting is wrong, or this launcher does not have it.
    """

    carries_out: ClassVar[bool] = True
    """Whether runs are carried out. False: they are only shown, and there is nothing to collect."""

    schedules: ClassVar[bool] = False
    """Whether it has jobs of a scheduler, for which there are `slurm` and `chunk`."""

    def __init__(
        self,
        at_once: int,
        slurm: Sequence[str] = (),
        chunk: int | None = None,
        seconds: Callable[[str], float | None] = lambda row: None,
        worker: str = WORKER,
    ):
        if (slurm or chunk is not None) and not self.schedules:
            raise UserError("--slurm and --chunk are for --launcher submitit")
        if chunk is not None and chunk < 1:
            raise UserError(f"--chunk: must be 1 or more; got {chunk}")
        self.at_once = at_once
        self.slurm = slurm
        self.chunk = chunk
        self.seconds = seconds
        self.worker = worker
        self.stopped: int | None = None

    # Defined by a subclass

    @abstractmethod
    def launch(self, jobs: Sequence[Job], ended: Callable[[Job, Ended], None]) -> None:
        """Carry out runs that do not need one another.

        Args:
            jobs: the runs.
            ended: called with each run that has ended, from any thread. It is not called for runs that were not begun
                because a signal came.
        """

    @abstractmethod
    def pass_on(self, number: int) -> None:
        """Ask all runs in progress to save and stop. It is called within a signal handler."""

    # Common to all

    def plan(self, waves: Sequence[Sequence[Job]], outputs: str) -> str:
        """What will be done with the runs, for people. `outputs`: a pattern of the files with what they print."""
        return f"{self.at_once} at a time, output in {outputs}"

    def __enter__(self) -> Self:
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.stopped is not None:
            raise Interrupted(self.stopped)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped = number
        self.pass_on(number)


#: Classes of launchers, by name.
LAUNCHERS: Registry[type[Launcher]] = Registry("launcher")


def output_of(job: Job) -> Path:
    """File for what the command of a run prints."""
    return job.folder.parent / f"{job.folder.name}.out"


def words_of(job: Job, threads: int) -> list[str]:
    """The words after `uda` of a run that has this many threads."""
    return [*job.words(), f"runtime.threads={threads}"]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
