"""Shows progress: a bar on a terminal, or lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

#: Seconds between lines if there is no terminal.
SECONDS_BETWEEN_LINES = 30.0


def progress(
    items: Iterable[T], label: str, total: int, log: Callable[[str], None] | None, already: int = 0
) -> Iterator[T]:
    """Yield the `items` and show the progress, the rate and the time left.

    A bar appears after two seconds. `already` of the `total` items were done by an earlier start. Nothing is shown if
    `log` is None or quiet.
    """
    if log is None or getattr(log, "quiet", False):
        yield from items
        return
    if sys.stderr is not None and sys.stderr.isatty():
        bar = {"delay": 2, "leave": False, "dynamic_ncols": True, "file": sys.stderr}
        yield from tqdm(items, desc=label, total=total, initial=already, **bar)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, already + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            each = (now - start) / (done - already)
            pace = f"{1 / each:.1f} per second" if each <= 2 else f"{each:.0f} s each"
            log(f"{label}: {done}/{total}, {pace}, {(total - done) * each:.0f} s left")
