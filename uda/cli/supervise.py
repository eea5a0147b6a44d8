"""Carry out several runs in order, and report how each ended: finished, with a mistake, or interrupted."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from uda.cli.command_line import say, say_at_once, tell_interrupted, tell_mistake
from uda.core.errors import UserError
from uda.core.interruption import HOW_TO_RESUME, Interruption
from uda.core.version import __version__
from uda.core.yaml_files import find_config

if TYPE_CHECKING:
    from uda.core.distributed import Ranks
    from uda.training.config import RunConfig
    from uda.training.run_folder import RunLog
    from uda.training.session import Session

C = TypeVar("C", bound="RunConfig")

SIGPIPE = getattr(signal, "SIGPIPE", signal.SIGTERM)  # Windows has no SIGPIPE

#: Largest delay, in seconds, between the arrivals of a signal at two processes of a job.
LATER_BY = 0.5


def supervise(
    configs: Callable[[], Sequence[C]],
    run: "Callable[[C, RunLog, Ranks, Interruption], Session]",
    act: "Callable[[Session, RunLog], None]",
    after: "Callable[[Ranks], None]" = lambda ranks: None,
    files: Sequence[str] = (),
) -> int:
    """Carry out runs in order, and print how they ended.

    Args:
        configs: reads the configs. Raises UserError for mistakes in them.
        run: makes the run of a config.
        act: carries a run out.
        after: called when all runs are done.
        files: names of the configs, for the first line. It is printed at once, because importing torch takes seconds.

    Returns:
        The exit code: 0 done, 2 a user's mistake, 128 + signal interrupted.
    """
    announce(files)
    with Interruption() as interruption:
        try:
            import uda.kinds  # noqa: F401  (a config of another command is told by its kind)
            from uda.core.distributed import start

            wanted = configs()

            with start(wanted[0].runtime.device) as ranks:
                code = 0
                for config in wanted:
                    code = code or _carry_out(config, run, act, ranks, interruption)
                if not code:
                    after(ranks)
                ranks.in_order = code == 0
                return code
        except UserError as error:
            return tell_mistake(error)
        except KeyboardInterrupt as interrupt:
            return tell_interrupted(interrupt, "no run was started")[0]


def announce(files: Sequence[str]) -> None:
    """Print the first line of a command, before torch is imported, if all its configs are there."""
    if os.environ.get("RANK", "0") == "0" and _all_found(files):  # torchrun numbers its processes by RANK
        say_at_once(f"uda {__version__}: {', '.join(files)}; loading PyTorch ...")


def _all_found(files: Sequence[str]) -> bool:
    """Whether there are configs and none is missing. A missing one is told at once, and nothing else."""
    try:
        return bool([find_config(file) for file in files])
    except UserError:
        return False


def _carry_out(
    config: C,
    run: "Callable[[C, RunLog, Ranks, Interruption], Session]",
    act: "Callable[[Session, RunLog], None]",
    ranks: "Ranks",
    interruption: Interruption,
) -> int:
    from uda.core.distributed import RankLostError
    from uda.training.device import set_up_process
    from uda.training.run_folder import RunLog

    log = RunLog(not ranks.is_main, partial(say, closed=lambda: interruption.ask(SIGPIPE)))
    session = None
    try:
        try:
            set_up_process(config.runtime)
            session = run(config, log, ranks, interruption)
            session.command = sys.argv
            act(session, log)
        except RankLostError:
            with interruption.deferred():  # the signal that ended the other process may reach this one too
                time.sleep(LATER_BY)
            raise
    except UserError as error:
        log.note(f"error: {error}")
        return _mistake(error, ranks)
    except KeyboardInterrupt as interrupt:
        if session is not None and not session.finished and session.checkpoints.newest is not None:
            left = f"saved at {session.reached}; {HOW_TO_RESUME}"
        else:  # no checkpoint has been read or written
            earlier = any((config.folder / "checkpoints").glob("state-*.pt"))
            left = f"there is a checkpoint of an earlier start; {HOW_TO_RESUME}" if earlier else "nothing was saved yet"
        code, message = tell_interrupted(interrupt, left, silent=log.silent)
        log.note(message)
        return code
    return 0


def _mistake(error: UserError, ranks: "Ranks") -> int:
    if ranks.is_main:
        return tell_mistake(error)
    # In most cases rank 0 meets the same error, prints it and ends the job.
    time.sleep(2)
    return tell_mistake(error, f"[process {ranks.rank}] ")
