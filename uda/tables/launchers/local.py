"""The launcher `local`: processes of this machine, each of which carries out many runs, one after another."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from uda.tables.job import Job
from uda.tables.launchers.launcher import LAUNCHERS, Ended, Kills, Launcher, cores, output_of, words_of

#: Seconds after which a process that does not answer is looked at. Its end is noticed at once in most cases, but what
#: it has started may keep its pipe open.
LOOK = 0.5

#: Seconds for a worker to leave after its last run.
PATIENCE = 20.0


class Worker:
    """A process that carries out commands of `uda` one after another. The first command starts it.

    Args:
        module: module of its program.
        environment: variables that differ from those of this process.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None):
        self.module = module
        self.environment = dict(environment or {})
        self._process: subprocess.Popen | None = None
        self._answers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._plugins: object = ()
        self._asked: int | None = None

    def run(self, words: Sequence[str], output: Path, again: bool = False, plugins: object = ()) -> int:
        """Carry out a command and wait for its end.

        Args:
            words: the words after `uda`.
            output: file for what it prints.
            again: append to that file instead of writing it anew.
            plugins: the user's code that the command imports. A process never imports that of two kinds, because what
                one registers would be there for the next.

        Returns:
            The command's exit code, or that of the process if it has ended; negative: minus the signal that killed it.
        """
        if self._process is not None and (plugins != self._plugins or self._process.poll() is not None):
            self.close()
        if self._process is None:
            self._plugins = plugins
            self._start()
        request = {"words": list(words), "output": str(output), "again": again}
        with suppress(BrokenPipeError):  # it has just ended, as the answer will say
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def send_signal(self, number: int) -> None:
        """Send the process a signal. One that is just being started gets it as soon as it is there."""
        self._asked = number
        process = self._process
        if process is not None:
            process.send_signal(number)

    def close(self) -> None:
        """Let the process leave. It must not be at work."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._answers = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, **self.environment},
        )
        if self._asked is not None:
            self._process.send_signal(self._asked)
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()

    def _answer(self) -> int:
        while True:
            try:
                answer = self._answers.get(timeout=LOOK)
            except queue.Empty:
                if self._process.poll() is None:
                    continue
                with suppress(queue.Empty):
                    if (answer := self._answers.get_nowait()) is not None:
                        return answer
                answer = None
            if answer is not None:
                return answer
            code = self._process.wait()
            self.close()
            return code


def _read(process: subprocess.Popen, answers: "queue.SimpleQueue[int | None]") -> None:
    """Pass on the answers of a process, then None."""
    with suppress(ValueError):  # the pipe was closed
        for line in process.stdout:
            answers.put(json.loads(line))
    answers.put(None)


@LAUNCHERS.register("local")
class Local(Launcher):
    """Processes of this machine. They share the cores, and each has a GPU of its own if there are several."""

    def __enter__(self) -> "Local":
        self._idle: list[Worker] = []
        self._workers: list[Worker] = []
        self._changing = threading.RLock()  # reentrant, because a handler may interrupt `_worker`
        self._kills = Kills()
        return super().__enter__()

    def __exit__(self, *_) -> None:
        super().__exit__()
        with ThreadPoolExecutor(max(1, len(self._workers))) as pool:
            list(pool.map(Worker.close, self._workers))

    @property
    def threads(self) -> int:
        """Threads of each run."""
        return max(1, cores() // self.at_once)

    def launch(self, jobs: Sequence[Job], ended: Callable[[Job, Ended], None]) -> None:
        if not self._workers:
            devices = own_devices(jobs, self.at_once)
            self._workers = [Worker(self.worker, environment) for environment in devices]
            self._idle = self._workers[::-1]
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda job: self._carry_out(job, ended), jobs))

    def pass_on(self, number: int) -> None:
        for worker in self._workers:
            worker.send_signal(number)

    def _carry_out(self, job: Job, ended: Callable[[Job, Ended], None]) -> None:
        started, again = time.monotonic(), False
        with self._changing:
            worker = self._idle.pop()
        try:
            while self.stopped is None:
                self._kills.begin(job)
                code = worker.run(words_of(job, self.threads), output_of(job), again, tuple(job.config.plugins))
                end = Ended(code, time.monotonic() - started)
                if not end.by_signal or self.stopped is not None or not self._kills.may_start_again(job):
                    ended(job, end)
                    return
                again = True
        finally:
            with self._changing:
                self._idle.append(worker)


def own_devices(jobs: Sequence[Job], count: int) -> list[dict[str, str]]:
    """Variables of each of `count` processes, so that each sees one GPU. Empty if there are not several to share.

    Also empty if a config names a GPU by its number, because then the user has chosen.
    """
    chosen = any(job.config.runtime.device not in ("auto", "cuda", "cpu") for job in jobs)
    devices = [] if chosen else visible_devices()
    if len(devices) < 2:
        return [{} for _ in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} for index in range(count)]


def visible_devices() -> list[str]:
    """Names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]
