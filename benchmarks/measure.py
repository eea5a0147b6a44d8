"""Seconds and memory of a piece of work, measured where nothing else disturbs them."""

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

# A process forked from one that has imported the library and done nothing else: as clean as a new interpreter, and
# ready in no time.
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_IMPORTED = ["uda.adaptation.run"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: Work that takes long is called no more often than fits into so many seconds.
MOST_SECONDS = 4.0


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a new process, which takes its memory with it when it ends.

    Raises UserError when that process was killed.
    """
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {function.__name__}{arguments} was killed, most likely for want of memory; take a "
                "smaller --scale"
            ) from None


def share(text: str) -> float:
    """An option that says how much of the full work to do: above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must lie above 0 and at most at 1")
    return value


def count(text: str) -> int:
    """An option that is a number of repeats: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of up to `repeats` calls, of fewer where they take long."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < MOST_SECONDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that one call holds at its peak beyond what was held before it; work done before in this process blurs it."""
    before = _forget_peak()
    work()
    return max(0.0, _memory("VmHWM") - before)


def _forget_peak() -> float:
    """MiB held now; where the system can (Linux), its highest mark is set back to that."""
    try:
        _RESET.write_text("5")
    except OSError:
        return _memory("VmHWM")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    """MiB of a field of /proc/self/status, the highest mark so far where there is no such file."""
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
