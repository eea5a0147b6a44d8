"""Measure the seconds and the memory of a piece of work in a fresh process."""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from uda.core.errors import UserError

# A fork of a process that has only imported the library is as clean as a new interpreter, and starts at once.
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_IMPORTED = ["uda.adaptation.run"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: A measurement makes no further calls after this many seconds.
MOST_SECONDS = 4.0


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a new process. Its memory is free again when the process ends.

    Raises UserError if the process was killed.
    """
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {function.__name__}{arguments} was killed, probably because memory ran out; use a "
                "smaller --scale"
            ) from None


def share(text: str) -> float:
    """The value of an option for a share of the full work: above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def count(text: str) -> int:
    """The value of an option for a number of repeats: at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` calls, or of fewer calls if they take long."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < MOST_SECONDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_mib(work: Callable[[], object]) -> float:
    """Peak memory of a call in MiB, beyond the memory before it. Earlier work in this process makes it inaccurate."""
    before = _forget_peak()
    work()
    return max(0.0, _memory("VmHWM") - before)


def _forget_peak() -> float:
    """MiB of memory now. On Linux, the peak mark is reset to this value."""
    try:
        _RESET.write_text("5")
    except OSError:
        return _memory("VmHWM")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    """MiB of a field of /proc/self/status; without this file, the peak so far."""
    if _STATUS.exists():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from uda.training.device import processor

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
