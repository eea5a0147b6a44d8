"""Run a table's missing runs, add them to its CSV, and write its Markdown and LaTeX."""

import argparse
import math
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from uda.cli.command_line import OUTPUT_CLOSED, CommandParser, say, tell_interrupted
from uda.cli.lists import listing, table_names
from uda.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uda.tables import Job, Table

#: Seconds between two collections while runs are carried out.
SECONDS_BETWEEN_COLLECTIONS = 10.0
#: The names of launchers. Importing `uda.tables.LAUNCHERS` would take seconds.
LAUNCHER_NAMES = ("local", "submitit", "print")

EXAMPLES = (
    ("run what is missing, add it to results/digits.csv", "digits --jobs 2"),
    ("list what is missing, run nothing", "digits --dry-run"),
    ("run a part of the table", "digits --rows 'MCD,ADR*' --seeds 0"),
    ("add finished runs, write the CSV and a document's tables", "digits --collect --into README.md"),
    ("write a table of published figures, results/published/", "visda2017 --published"),
    ("all runs on the CPU", "pacs --jobs 1 -- runtime.device=cpu"),
    ("as jobs of Slurm, 20 at a time", "pacs --launcher submitit --jobs 20 --slurm partition=gpu --slurm gpus=1"),
    ("domain generalisation with these unseen domains", "rotated_digits --targets m0,m75"),
    ("print the tables", "--list"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Run a table's missing runs, add them to its CSV, and write its Markdown and LaTeX.",
        EXAMPLES,
        "A run whose row is in the CSV is not run again, unless its recipe has changed or --again is given. Each run "
        "is added to the CSV when it ends. Rows stay there until their run is made again, so a table can grow over "
        "days and machines.",
    )
    parser.add_argument("table", nargs="?", offers=table_names, help="a table: a name in configs/tables/, or a path")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1); they share the cores")
    parser.add_argument(
        "--launcher",
        default="local",
        choices=LAUNCHER_NAMES,
        help="local: processes of this machine (default); submitit: jobs of Slurm, needs the extra cluster; print: "
        "print the commands, run nothing",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what each job of Slurm gets: partition, account, qos, constraint, exclude, nodelist, time (minutes or "
        "h:mm:ss), gpus, cpus, memory (GB); may be repeated",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="runs of each job of Slurm, one after another (default: as many as take about ten minutes)",
    )
    parser.add_argument(
        "--rows", default="*", metavar="NAMES", help="run these rows only: names with * and ?, separated by commas"
    )
    parser.add_argument(
        "--pairs",
        "--targets",
        default="*",
        metavar="NAMES",
        help="run these pairs only, such as photo_to_*; for domain generalisation, these unseen domains",
    )
    parser.add_argument("--seeds", default="*", metavar="SEEDS", help="run these seeds only, such as 0,1")
    parser.add_argument(
        "--again", action="store_true", help="also run what is in the CSV, if its run folder was deleted"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check configs (no data, no networks), list missing runs and their time, stop",
    )
    parser.add_argument("--prune", action="store_true", help="drop rows from the CSV that the table no longer has")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/tables"), help="folder of the runs (default runs/tables)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the CSV (default results)")
    parser.add_argument(
        "--into",
        type=Path,
        action="append",
        metavar="FILE",
        help="also fill the marked blocks of this document; may be repeated",
    )
    instead.add_argument("--collect", action="store_true", help="run nothing, write what is finished")
    instead.add_argument("--published", action="store_true", help="write a table of published figures instead")
    parser.add_overrides("change runtime and report settings of all runs")
    parser.add_list(["tables"], listing)
    parser.set_defaults(run=partial(_run, parser))


class _Collector:
    """Collects finished runs now and then, because a large CSV takes a while to write: in 5 % of the time at most.

    Runs that still wait at the end are in their folders, and are collected there.
    """

    def __init__(self, table: "Table", folder: Path, log: "Callable[[str], None]"):
        self.table, self.folder, self.log = table, folder, log
        self._waiting: list[Job] = []
        self._next = -math.inf

    def __call__(self, job: "Job") -> None:
        from uda.tables import collect

        self._waiting.append(job)
        if (begun := time.monotonic()) >= self._next:
            collect(self.table, self._waiting, self.folder, log=self.log)
            ended = time.monotonic()
            self._waiting, self._next = [], ended + max(SECONDS_BETWEEN_COLLECTIONS, 20 * (ended - begun))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    from uda.kinds import register_tables
    from uda.tables import (
        LAUNCHERS,
        Ledger,
        choose_jobs,
        collect,
        dry_run,
        jobs_of,
        load_table,
        run_jobs,
        status_of,
        write_documents,
        write_published,
    )
    from uda.training.run_folder import code_commit

    register_tables()
    if options.table is None:
        parser.error("name a table; `--list` prints all tables")
    unread = threading.Event()

    def stop() -> None:  # as Ctrl-C does: runs in progress save and stop
        unread.set()
        os.kill(os.getpid(), signal.SIGINT)

    log = partial(say, closed=stop)
    try:
        if options.published:
            print(write_published(options.table, options.results / "published", options.into or []), end="")
            return 0
        table = load_table(options.table)
        jobs = jobs_of(table, options.runs, options.overrides)
        failed = ""
        if not options.collect:
            chosen = choose_jobs(jobs, options.rows, options.pairs, options.seeds)
            ledger = Ledger.read(options.results, table)
            recorded = None if options.again else ledger
            if options.dry_run:
                found = status_of(chosen, recorded)
                log(dry_run(table, found, ledger, options.results, len(jobs) - len(chosen)))
                if found.failures:
                    raise UserError("\n".join(found.errors))
                return 0
            launcher = LAUNCHERS[options.launcher](
                max(1, options.jobs), slurm=options.slurm, chunk=options.chunk, seconds=ledger.seconds
            )
            if not launcher.carries_out:  # stdout has the commands only
                run_jobs(chosen, launcher, log=partial(print, file=sys.stderr), recorded=recorded)
                return 0
            if (code_commit() or "").endswith("-dirty"):
                log("note: the code has uncommitted changes; the rows of these runs will say -dirty")
            try:
                run_jobs(
                    chosen,
                    launcher,
                    log=log,
                    recorded=recorded,
                    after=_Collector(table, options.results, log),
                )
            except UserError as error:
                failed = str(error)
        try:
            collect(table, jobs, options.results, options.prune, log=log, said=failed)
            print(write_documents(table, options.results, options.into or []), end="")
        except UserError as error:
            failed = failed or str(error)
        if failed:
            raise UserError(failed)
    except KeyboardInterrupt as interrupt:
        code, _ = tell_interrupted(interrupt, "the same command resumes with the missing runs")
        return OUTPUT_CLOSED if unread.is_set() else code
    return 0
