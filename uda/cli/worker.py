"""Carry out many commands of `uda` in one process, one after another, for the launchers of tables.

`python -m uda.cli.worker` reads a line of JSON for each command from stdin and answers its exit code on stdout.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from uda.cli.main import main
from uda.core.interruption import Interrupted, Interruption
from uda.core.resources import PACKAGE


def carry_out(words: Sequence[str], output: Path, again: bool = False) -> int:
    """Carry out a command as a process of its own would.

    Args:
        words: the words after `uda`.
        output: file for what it prints, on both streams.
        again: append to that file instead of writing it anew.

    Returns:
        The exit code.
    """
    with _printing_to(output, again), _as_in_a_new_process([str(PACKAGE / "__main__.py"), *words]):
        try:
            return main(words)
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except Exception:
            traceback.print_exc()
            return 1


@contextmanager
def _printing_to(output: Path, again: bool) -> Iterator[None]:
    """Context in which stdout and stderr are a file, also for code that is not Python's, and for child processes."""
    before = [os.dup(stream) for stream in (1, 2)]
    try:
        with open(output, "a" if again else "w", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk
                stream.flush()
        for stream, old in zip((1, 2), before, strict=True):
            os.dup2(old, stream)
            os.close(old)


@contextmanager
def _as_in_a_new_process(arguments: list[str]) -> Iterator[None]:
    """Context that leaves the settings of the process as it has found them, and frees what was left in memory.

    Names that plugins register stay: the launchers give a process only commands with the same plugins.
    """
    import numpy as np
    import torch

    variables, given = dict(os.environ), sys.argv
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():  # entering it makes Python forget which warnings it has shown
        pass
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = given
        os.environ.clear()
        os.environ.update(variables)
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        torch.set_rng_state(generators[2])
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        gc.collect()
        if not gc.get_freeze_count():  # what the first command has imported need not be looked at after each
            gc.freeze()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


@dataclass
class Chunk:
    """Commands that a job of submitit carries out, one after another.

    It writes down the begin and the end of each. A job that is started again after it was preempted, by Slurm or by
    submitit, goes on with the first command that has not ended.
    """

    words: list[list[str]]
    """The words after `uda` of each command."""
    outputs: list[str]
    """For each command the file for what it prints."""
    again: list[bool]
    """Whether to append to that file."""
    record: str
    """File that gets a line of JSON for each begin and end."""
    variables: dict[str, str | None] = field(default_factory=dict)
    """Variables of the environment; None: not set."""
    table: int | None = None
    """Process of the table on this machine. The job ends when that process or submitit's ends."""

    carry_out = staticmethod(carry_out)

    def __call__(self) -> None:
        """Carry out the commands. After a signal the process ends, when the command has saved its run."""
        for name, value in self.variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if self.table is not None:
            threading.Thread(target=_end_after, args=(self.table, os.getppid()), daemon=True).start()
        number, requeue = _preemption(), None
        asked: list[int] = []
        if number is not None:
            requeue = signal.getsignal(number)
            signal.signal(number, lambda number, frame: (asked.append(number), os.kill(os.getpid(), signal.SIGTERM)))
        try:
            with Interruption():
                self._carry_out_all()
        except KeyboardInterrupt as interrupt:
            if asked and callable(requeue):
                requeue(number, None)  # submitit puts the job back into the queue and ends the process
            sys.exit(getattr(interrupt, "exit_code", 130))

    def checkpoint(self) -> object:
        """What a job does after submitit has put it back into the queue: the same. The record tells what is left."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _carry_out_all(self) -> None:
        begun, ended = self._of_before()
        for run, (words, output) in enumerate(zip(self.words, self.outputs, strict=True)):
            if run in ended:
                continue
            self._note(run=run)
            started = time.monotonic()
            code = self.carry_out(words, Path(output), self.again[run] or run in begun)
            if code > 128:
                raise Interrupted(code - 128)
            self._note(run=run, code=code, seconds=time.monotonic() - started)

    def _of_before(self) -> tuple[set[int], set[int]]:
        """Numbers of the commands that an earlier start of the job began and ended."""
        begun, ended = set(), set()
        with suppress(FileNotFoundError):
            for line in Path(self.record).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # it was killed while it wrote this line
                    entry = json.loads(line)
                    (ended if "code" in entry else begun).add(entry["run"])
        return begun, ended

    def _note(self, **entry: object) -> None:
        with open(self.record, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _preemption() -> int | None:
    """The signal by which submitit learns that the job's time ends; None without it."""
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
    return None if number in (None, signal.SIGTERM) else number


def _end_after(table: int, parent: int) -> None:
    """End the process at once when its parent has ended, and let it save when the table's process has."""
    asked = False
    while os.getppid() == parent:
        time.sleep(0.2)
        try:
            os.kill(table, 0)
        except ProcessLookupError:
            if not asked:
                os.kill(os.getpid(), signal.SIGTERM)
            asked = True
    os._exit(1)


def _apart() -> tuple[TextIO, TextIO]:
    """The process's stdin and stdout as files of their own. No command reads or writes them by mistake."""
    commands, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return commands, answers


def work() -> int:
    """Carry out the commands of stdin until it ends. A signal between two commands ends the process."""
    commands, answers = _apart()
    try:
        with Interruption():
            for line in commands:
                code = carry_out(**json.loads(line))
                print(code, file=answers, flush=True)
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "exit_code", 130)
    except BrokenPipeError:  # the launcher was killed
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(work())
