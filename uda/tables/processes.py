"""Child processes that end with the one that started them."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from uda.core.interruption import SIGNALS, Interrupted


class Processes:
    """Runs commands, from any thread. While it is entered, SIGINT and SIGTERM go on to all of them.

    A signal is passed on and noted in `stopped`; nothing starts from then on. Runs save and leave on both signals, so
    whoever waits for them is soon free, and `leave` then raises what a signal means. Ctrl-C in a terminal reaches the
    children as well; that they hear it twice at once does no harm (`uda.core.interruption`).
    """

    def __init__(self):
        self.stopped: int | None = None
        self._children: set[subprocess.Popen] = set()
        self._changing = threading.RLock()  # a handler may run within `run`'s own lines

    def __enter__(self) -> "Processes":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], output: TextIO) -> int | None:
        """The exit code of a command whose outputs go to `output`; None, and no process, after a signal."""
        with self._changing:
            if self.stopped is not None:
                return None
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            self._children.add(child)
            if self.stopped is not None:  # by a handler that ran in this thread, between these lines
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
