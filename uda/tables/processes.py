"""Child processes that stop when their parent is stopped."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from uda.core.interruption import SIGNALS, Interrupted


class Processes:
    """Context that runs commands from any thread and passes SIGINT and SIGTERM on to all of them.

    A signal is kept in `stopped`, and no command starts after it. Runs save and stop on both signals, so waiting
    threads soon continue, and `leave` then raises `Interrupted`. Ctrl-C in a terminal also reaches the children
    directly. A second signal at the same time does no harm (`uda.core.interruption`).
    """

    def __init__(self):
        self.stopped: int | None = None
        self._children: set[subprocess.Popen] = set()
        self._changing = threading.RLock()  # reentrant, because a handler may interrupt `run`

    def __enter__(self) -> "Processes":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], output: TextIO) -> int | None:
        """Run a command with its outputs in `output`. Returns its exit code. After a signal it returns None at once."""
        with self._changing:
            if self.stopped is not None:
                return None
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            self._children.add(child)
            if self.stopped is not None:  # a handler ran in this thread after the first check
                child.send_signal(self.stopped)
        try:
            return child.wait()
        finally:
            with self._changing:
                self._children.discard(child)

    def leave(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.stopped is not None:
            raise Interrupted(self.stopped)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with self._changing:
            self.stopped = number
            for child in self._children:
                child.send_signal(number)
