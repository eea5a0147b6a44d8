"""SIGTERM and SIGINT: leave at the next place where a run can be left, and within seconds whatever happens."""

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

#: Seconds from the signal to the end; whoever asks for the end often kills after ten (docker) or thirty (Slurm).
GRACE = 4.0

#: A second signal so soon is the first one come twice: to the whole group, and passed on by torchrun.
ECHO = 1.0

HOW_TO_GO_ON = "the same command goes on from there"


class Interrupted(KeyboardInterrupt):
    """The run was asked to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that a signal ended."""
        return 128 + self.number


class Interruption:
    """Takes SIGINT and SIGTERM while it is entered.

    A signal raises `Interrupted` at once, but within `deferred()` it is only noted in `requested`: the code there comes
    to a place where state can be saved, and calls `leave()`. A thread sees every signal, also while the main thread
    is deep in a kernel or a read that never returns: after `grace` seconds, or at a second signal, it ends the process,
    and what was saved before stands.
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
        """Within, a signal waits in `requested`; at the end of the outermost block it is raised."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        if not self._deferred:
            self.leave()

    def leave(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def ask(self, number: int) -> None:
        """Ask the run to end, as the signal of this number does. Raises `Interrupted`, within `deferred()` later."""
        self.requested = number
        if not self._deferred:
            raise Interrupted(number)

    def _note(self, number: int, frame) -> None:
        if os.getpid() == self._process:  # else a worker just forked, not yet deaf by itself
            self.ask(number)

    def _watch(self) -> None:
        """Wait for a first signal, then for its time to be up or a second one."""
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
                f"\ninterrupted: {why}, ending now with the last checkpoint as it is: {HOW_TO_GO_ON}",
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
            if not byte:  # the other end was closed: no more signals are taken
                return None
            if byte[0] in SIGNALS:
                return byte[0]


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Around the start of workers: a signal that reaches one before it leaves them to the main process waits till then.

    Blocked signals are inherited. The main process gets its own, if one comes, at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, whose schedulers signal no groups
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_main_process() -> None:
    """In a loader's worker: Ctrl-C and schedulers reach every process, but workers end with the main one."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what waited meanwhile is ignored
