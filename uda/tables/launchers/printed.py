"""The launcher `print`: the runs as commands for a shell, for schedulers that uda does not know."""

import shlex
from collections.abc import Callable, Sequence

from uda.tables.job import Job
from uda.tables.launchers.launcher import LAUNCHERS, Ended, Launcher


@LAUNCHERS.register("print")
class Print(Launcher):
    """One command a line. Nothing is run."""

    carries_out = False

    def plan(self, waves: Sequence[Sequence[Job]], outputs: str) -> str:
        first, starts = 1, []
        for wave in waves[:-1]:
            first += len(wave)
            starts.append(first)
        places = " and ".join(f"line {start}" for start in starts)
        return "a command each, for this folder" + (
            f"; the runs from {places} on start from models of the runs before, which must have ended" * bool(starts)
        )

    def launch(self, jobs: Sequence[Job], ended: Callable[[Job, Ended], None]) -> None:
        for job in jobs:
            print(shlex.join(["uda", *job.words()]), flush=True)

    def pass_on(self, number: int) -> None:
        """There is no run in progress."""
