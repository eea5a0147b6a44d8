"""How fast is uda beside the least that the work can cost?

Every benchmark is a contest: our code against a floor, a bare hand-written PyTorch version of the work that no
toolkit can undercut. Both run in one process, turn about, so that a busy machine slows both alike; the figures
are medians, and `ratio` is floor / ours (1.00: no overhead). Peak memory is measured apart, in a fresh process
for each side, and counts what the work takes on top of its inputs.

    python tools/bench.py                                 # all of them
    python tools/bench.py --only select_1000000x12 --repeats 5
    python tools/bench.py --scale 0.01                    # a hundredth of the work: does it run?
    python tools/bench.py --json results/bench.json --into README.md
"""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from uda.atomic import write_json, write_text
from uda.benchmarks import BENCHMARKS
from uda.errors import UserError
from uda.tables import insert_markdown


@dataclass(frozen=True)
class Row:
    """One benchmark's figures."""

    name: str
    seconds: float
    """Ours, median, per unit of work."""
    floor_seconds: float
    """The floor's, likewise."""
    ratio: float
    """floor_seconds / seconds."""
    bar: float | None
    """The ratio that is good enough, if there is one."""
    peak_mib: float
    """Ours: most memory held at any time beyond the inputs."""
    floor_peak_mib: float
    """The floor's, likewise."""


def _peak_mib() -> float:
    """This process's largest resident set so far."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / (2**20 if sys.platform == "darwin" else 2**10)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_contest(name: str, scale: float, repeats: int) -> tuple[float, float, float | None]:
    """Median seconds per unit of work: ours, the floor's; and the bar. One warm-up each, then turn about."""
    contest = BENCHMARKS[name](scale)
    contest.floor(), contest.ours()
    seconds: dict[str, list[float]] = {"ours": [], "floor": []}
    for repeat in range(repeats):
        # Who goes first alternates too: the second finds other caches than the first.
        for side in ("ours", "floor") if repeat % 2 else ("floor", "ours"):
            seconds[side].append(_seconds(getattr(contest, side)) / contest.per_call)
    return statistics.median(seconds["ours"]), statistics.median(seconds["floor"]), contest.bar


def measure_peak(name: str, scale: float, side: Literal["ours", "floor"]) -> float:
    """MiB that one call holds at its peak beyond what building its inputs took. Needs a fresh process."""
    contest = BENCHMARKS[name](scale)
    before = _peak_mib()
    getattr(contest, side)()
    return _peak_mib() - before


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a new interpreter, which takes its memory with it when it ends."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run(name: str, scale: float, repeats: int) -> Row:
    """Time one benchmark and measure its memory."""
    try:
        seconds, floor_seconds, bar = _in_fresh_process(time_contest, name, scale, repeats)
        peaks = [_in_fresh_process(measure_peak, name, scale, side) for side in ("ours", "floor")]
    except BrokenProcessPool:
        raise UserError(f"{name}: its process was killed, most likely for want of memory; try --scale 0.1") from None
    return Row(name, seconds, floor_seconds, floor_seconds / seconds, bar, *peaks)


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


HEADER = f"{'benchmark':<24}{'ours':>12}{'floor':>12}{'ratio':>8}{'bar':>7}{'peak':>12}{'floor peak':>13}"


def table_line(row: Row) -> str:
    """One row of the terminal's table."""
    bar = "-" if row.bar is None else f"{row.bar:.2f}"
    verdict = "  below the bar" if row.bar is not None and row.ratio < row.bar else ""
    return (
        f"{row.name:<24}{_readable(row.seconds):>12}{_readable(row.floor_seconds):>12}{row.ratio:>8.3f}{bar:>7}"
        f"{row.peak_mib:>8,.0f} MiB{row.floor_peak_mib:>9,.0f} MiB{verdict}"
    )


def to_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| benchmark | bare / ours | bar | ours | bare | peak memory, ours / bare |", "|---|---|---|---|---|---|"]
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        times = f"{_readable(row.seconds)} | {_readable(row.floor_seconds)}"
        memory = f"{row.peak_mib:,.0f} / {row.floor_peak_mib:,.0f} MiB"
        lines.append(f"| `{row.name}` | {row.ratio:.2f} | {bar} | {times} | {memory} |")
    return "\n".join(lines) + "\n"


def _readable(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.3f} ms"


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must lie above 0 and at most at 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="print the benchmarks, a line each, and end")
    parser.add_argument("--only", metavar="NAME", action="append", help="run this one only; may be given several times")
    parser.add_argument("--repeats", type=_count, default=5, help="timed calls of each side (default: 5)")
    parser.add_argument("--scale", type=_share, default=1.0, help="share of the full amount of work (default: 1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file too")
    parser.add_argument("--into", metavar="FILE", type=Path, help="and into this document's bench block")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the command line names. Returns the exit code: 0, or 2 for a mistake of the user's."""
    options = parse_arguments(arguments)
    if options.list:
        for name, line in BENCHMARKS.describe():
            print(f"{name:<24}{line}")
        return 0
    try:
        names = options.only or sorted(BENCHMARKS)
        for name in names:
            BENCHMARKS[name]
        print(", ".join(f"{key} {value}" for key, value in environment().items()))
        print(HEADER, flush=True)
        rows = []
        for name in names:
            rows.append(run(name, options.scale, options.repeats))
            print(table_line(rows[-1]), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        content = {
            "environment": environment(),
            "scale": options.scale,
            "repeats": options.repeats,
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.json, content)
    if options.into:
        document = options.into.read_text(encoding="utf-8")
        write_text(options.into, insert_markdown(document, "bench", to_markdown(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
