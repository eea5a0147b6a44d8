"""Carry out many commands of `uda` in one process, one after another, for the launchers of tables.

`python -m uda.cli.worker` reads a line of JSON for each command from stdin and answers its exit code on stdout.
"""

import gc
import json
import os
import random
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from uda.cli.main import main
from uda.core.interruption import Interruption
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
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


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
