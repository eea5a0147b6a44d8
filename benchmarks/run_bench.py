"""Compare the speed of uda with bare code that does the same work.

Every benchmark is a contest between our code and a floor, a bare hand-written version of the work. Each side runs in
its own process, because malloc's settings are those of a process. The sides are called alternately, so that a busy
machine slows both. The figures are medians. `ratio` is floor / ours (1.00: no overhead). Peak memory is the memory of a
side's first call beyond its inputs.
"""

import argparse
import contextlib
import fnmatch
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks import BENCHMARKS
from benchmarks.measure import count, machine, share
from uda.cli.command_line import CommandParser, run_command
from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.report.markdown import insert_markdown, markdown_table


@dataclass(frozen=True)
class Row:
    """The figures of a benchmark."""

    name: str
    seconds: float
    """Our median seconds per unit of work."""
    floor_seconds: float
    """The floor's median seconds per unit of work."""
    ratio: float
    """floor_seconds / seconds."""
    bar: float | None
    """The smallest ratio that is good enough; None: no requirement."""
    limit_seconds: float | None
    """Our longest time per unit of work; None: no limit."""
    peak_mib: float
    """Our peak memory beyond the inputs."""
    floor_peak_mib: float
    """The floor's peak memory beyond the inputs."""

    @property
    def verdict(self) -> str:
        """What is wrong with the figures; empty if nothing is wrong."""
        if self.bar is not None and self.ratio < self.bar:
            return "below the bar"
        if self.limit_seconds is not None and self.seconds > self.limit_seconds:
            return "above its limit"
        return ""


SideName = Literal["ours", "floor"]


def _peak_mib() -> float:
    """The peak resident set of this process plus that of its largest ended child process."""
    amounts = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(amounts) / (2**20 if sys.platform == "darwin" else 2**10)


def serve(name: str, scale: float, side: SideName, pipe: Connection) -> None:
    """Run one side in its process.

    At the first request, it builds the contest, makes one call and sends its peak memory. At each later request, it
    makes a call and sends its time.
    """
    if not pipe.recv():
        return
    # This process was spawned. Loaders must start their workers with the default method, as in a user's process.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        contest = BENCHMARKS[name](scale)
        work = getattr(contest, side)
        prepare = contest.before_ours if side == "ours" else lambda: None
        prepare()
        before = _peak_mib()
        work()
    except UserError as error:
        pipe.send(error)
        return
    pipe.send({"peak": _peak_mib() - before, "bar": contest.bar, "limit": contest.limit_seconds})
    while pipe.recv():
        prepare()
        start = time.perf_counter()
        work()
        pipe.send((time.perf_counter() - start) / contest.per_call)


class Side:
    """One side of a benchmark in its own process."""

    def __init__(self, name: str, scale: float, side: SideName):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, scale, side, theirs))
        self._process.start()
        theirs.close()  # so that this process notices the end of the other one

    def ask(self) -> Any:
        """Send a request to the process and return its answer.

        The first answer has the peak memory of the first call. Later answers are the seconds of a call per unit of
        work.

        Raises:
            UserError: the process failed or ended.
        """
        try:
            self._pipe.send(True)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            killed = "was killed, probably because memory ran out; try --scale 0.1"
            ended = "ended with the error above"
            fate = killed if self._process.exitcode < 0 else ended
            raise UserError(f"{self.name}: its process {fate}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # the process has already ended
            self._pipe.send(False)
        self._process.join(5)
        self._process.kill()


def run(name: str, scale: float, repeats: int) -> Row:
    """Measure one benchmark."""
    sides: dict[SideName, Side] = {}
    seconds: dict[SideName, list[float]] = {"ours": [], "floor": []}
    first: dict[SideName, dict[str, Any]] = {}
    try:
        sides |= {side: Side(name, scale, side) for side in ("ours", "floor")}
        first |= {side: sides[side].ask() for side in sides}  # one after the other, so that peaks do not add up
        for repeat in range(repeats):
            for side in ("ours", "floor") if repeat % 2 else ("floor", "ours"):
                seconds[side].append(sides[side].ask())
    finally:
        for process in sides.values():
            process.close()
    ours, floor = statistics.median(seconds["ours"]), statistics.median(seconds["floor"])
    return Row(
        name,
        ours,
        floor,
        floor / ours,
        first["ours"]["bar"],
        first["ours"]["limit"],
        first["ours"]["peak"],
        first["floor"]["peak"],
    )


EXAMPLES = (
    ("run all benchmarks", ""),
    ("run a part of them", "--only 'train_*' --repeats 7"),
    ("test them with a hundredth of the work", "--scale 0.01"),
    ("write the committed figures", "--json results/bench.json --into docs/speed.md"),
)

HEADER = f"{'benchmark':<46}{'ours':>12}{'floor':>12}{'ratio':>8}{'bar':>7}{'peak':>12}{'floor peak':>13}"


def table_line(row: Row) -> str:
    """One row of the terminal's table."""
    bar = "-" if row.bar is None else f"{row.bar:.2f}"
    return (
        f"{row.name:<46}{_readable(row.seconds):>12}{_readable(row.floor_seconds):>12}{row.ratio:>8.3f}{bar:>7}"
        f"{row.peak_mib:>8,.0f} MiB{row.floor_peak_mib:>9,.0f} MiB  {row.verdict}"
    ).rstrip()


def to_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = []
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        if row.limit_seconds is not None:
            bar = f"{row.limit_seconds:g} s"
        times = _readable(row.seconds), _readable(row.floor_seconds)
        memory = f"{row.peak_mib:,.0f} / {row.floor_peak_mib:,.0f} MiB"
        ratio = f"**{row.ratio:.2f}, {row.verdict}**" if row.verdict else f"{row.ratio:.2f}"
        lines.append([f"`{row.name}`", ratio, bar, *times, memory])
    return markdown_table(["benchmark", "bare / ours", "bar", "ours", "bare", "peak memory, ours / bare"], lines)


def machines(rows: Iterable[dict[str, Any]]) -> str:
    """The machines on which the rows were measured, one per line."""
    texts = [", ".join(f"{key} {value}" for key, value in row.get("environment", {}).items()) for row in rows]
    counts = Counter(text for text in texts if text)
    return "".join(f"* {count} of {len(texts)} rows: {text}.\n" for text, count in counts.most_common())


def _readable(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.3f} ms"


def parse_arguments(
    arguments: Sequence[str] | None = None, program: str = "python -m benchmarks.run_bench"
) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(prog=program)
    parser.explain(__doc__, EXAMPLES)
    parser.add_argument("--list", action="store_true", help="print the benchmarks, one per line, and stop")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="run these benchmarks only, such as 'train_*'; may be repeated",
    )
    parser.add_argument("--repeats", type=count, default=5, help="timed calls of each side (default: 5)")
    parser.add_argument("--scale", type=share, default=1.0, help="share of the full amount of work (default: 1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to this file")
    parser.add_argument("--into", metavar="FILE", type=Path, help="also write the figures into this document's block")
    return parser.parse_args(arguments)


def chosen(patterns: list[str] | None) -> list[str]:
    """The benchmarks that match `--only`; without it, all. Raises UserError if a pattern matches none."""
    names: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        matching = fnmatch.filter(sorted(BENCHMARKS), pattern)
        if not matching:
            BENCHMARKS[pattern]
        names |= dict.fromkeys(matching)
    return list(names)


def main(arguments: Sequence[str] | None = None, program: str = "python -m benchmarks.run_bench") -> int:
    """Run the benchmarks of the command line. Returns the exit code. Raises UserError."""
    options = parse_arguments(arguments, program)
    if options.list:
        for name, line in BENCHMARKS.describe():
            print(f"{name:<46}{line}")
        return 0
    names = chosen(options.only)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(HEADER, flush=True)
    rows = []
    for name in names:
        rows.append(run(name, options.scale, options.repeats))
        print(table_line(rows[-1]), flush=True)
        _write(options, rows)  # after each row, because all benchmarks take long and may be interrupted
    return 0


def _write(options: argparse.Namespace, rows: list[Row]) -> None:
    """Write the rows, and keep the file's rows of other benchmarks."""
    how = {"scale": options.scale, "repeats": options.repeats, "environment": machine()}
    written = {row.name: asdict(row) | how for row in rows}
    if options.json:
        earlier = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else []
        written = {row["name"]: row for row in earlier if row["name"] in BENCHMARKS} | written
        write_json(options.json, [written[name] for name in sorted(written)])
    if options.into:
        known = [Row(**{field.name: row[field.name] for field in fields(Row)}) for _, row in sorted(written.items())]
        document = options.into.read_text(encoding="utf-8")
        document = insert_markdown(document, "bench-machines", machines(written.values()))
        write_text(options.into, insert_markdown(document, "bench", to_markdown(known)))


if __name__ == "__main__":
    sys.exit(run_command(main))
