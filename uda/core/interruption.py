"""Handles SIGTERM and SIGINT: a run ends where its state can be saved, and within seconds in any case."""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds from the signal to the end. By default, docker kills ten seconds after the signal, and Slurm after thirty.
GRACE = 4.0

#: A second signal within this many seconds is the same signal, sent to the whole group and passed on by torchrun.
ECHO = 1.0

HOW_TO_RESUME = "the same command resumes from there"


class Interrupted(KeyboardInterrupt):
    """The run was asked to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The shell's exit code for a process that a signal ended."""
        return 128 + self.number


class Interruption:
    """Context that handles SIGINT and SIGTERM.

    A signal raises `Interrupted` at once. Within `deferred()`, it is only noted in `requested`. The code in that block
    calls `leave()` at a place where its state can be saved. A thread sees every signal, even if the main thread is in a
    kernel or a read that never returns. After `grace` seconds, or at a second signal, this thread ends the process.
    What was saved before is kept.
    """

    def __init__(self, grace: float = GRACE):
        self.grace = grace
        self.requested: int | None = None
        self._process = os.getpid()
        self._deferred = 0
        self._over = threading.Event()

    def __enter__(self) -> "Interruption":
        self._entered = threading.current_thread() is threading.main_thread()
        if self._entered:
            self._heard, tell = socket.socketpair()
            tell.setblocking(False)
            self._tell = tell
            self._old_handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._old_wakeup = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="uda signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._entered:
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            self._tell.close()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context in which a signal waits in `requested`. It is raised at the end of the outermost block."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        if not self._deferred:
            self.leave()

    def leave(self) -> None:
        """Raise `Interrupted` if there was a signal."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def ask(self, number: int) -> None:
        """Ask the run to end, as a signal with this number does. Raises `Interrupted`, now or after `deferred()`."""
        self.requested = number
        if not self._deferred:
            raise Interrupted(number)

    def _note(self, number: int, frame) -> None:
        if os.getpid() == self._process:  # else it is a new worker that does not ignore signals yet
            self.ask(number)

    def _watch(self) -> None:
        """Wait for a first signal, then until its time is up or a second signal comes."""
        with self._heard:
            number = self._next_signal(math.inf)
            if number is None:
                return
            first = time.monotonic()
            second = number
            while second is not None and time.monotonic() < first + min(ECHO, self.grace):
                second = self._next_signal(first + self.grace)
        if self._over.is_set():
            return
        why = "a second signal" if second is not None else f"no place to stop within {self.grace:g} s"
        with suppress(OSError):
            print(
                f"\ninterrupted: {why}; the run ends now. If there is a checkpoint, {HOW_TO_RESUME}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(128 + number)

    def _next_signal(self, until: float) -> int | None:
        while True:
            try:
                self._heard.settimeout(None if until == math.inf else max(0.001, until - time.monotonic()))
                byte = self._heard.recv(1)
            except (TimeoutError, OSError):
                return None
            if not byte:  # the other end was closed, so no more signals come
                return None
            if byte[0] in SIGNALS:
                return byte[0]


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Context for the start of workers. It blocks signals to a worker until the worker ignores them.

    Workers inherit the blocked signals. The main process gets its own signals at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no scheduler signals groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_main_process() -> None:
    """Make a loader's worker ignore signals, which reach every process. The worker ends with the main process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # signals that waited are now ignored
