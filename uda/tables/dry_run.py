"""The dry run of a table: what would be run, and an estimate of the time, as text for people."""

from collections.abc import Sequence
from pathlib import Path

from uda.tables.definition import Table
from uda.tables.jobs import Job, JobStatus
from uda.tables.ledger import Ledger
from uda.training.pace import rough_duration


def dry_run(table: Table, found: JobStatus, ledger: Ledger, folder: Path, others: int = 0) -> str:
    """Lines with the runs to do, their number, and their cost according to the CSV.

    Args:
        table: the table.
        found: the state of the chosen runs.
        ledger: the records of the table.
        folder: folder of its CSV.
        others: number of runs of the table that were not chosen.
    """
    csv = f"{folder / table.name}.csv"
    lines = [f"missing  {job.title}{_why(job, ledger)}{_took(job, ledger)}" for job in found.missing]
    lines += [f"model    {job.title}, which others start from{_took(job, ledger)}" for job in found.models]
    lines += [_counts(found, ledger, csv, others), *_cost(found, ledger, csv)]
    right = "" if found.failures else "configs are right, data and networks were not checked; "
    return "\n".join([*lines, f"dry run of table '{table.name}': {right}nothing was run, nothing was written"])


def _why(job: Job, ledger: Ledger) -> str:
    """Why a run is missing although the CSV has it."""
    if ledger.holds(job.run, job.digest):
        return ", again"
    return ", recorded with another recipe" if job.run in ledger.runs else ""


def _took(job: Job, ledger: Ledger) -> str:
    seconds = ledger.seconds(job.row.name)
    return "" if seconds is None else f": about {rough_duration(seconds)}"


def _counts(found: JobStatus, ledger: Ledger, csv: str, others: int) -> str:
    """Numbers of runs. With --again a recorded run may also be finished or missing, so they need not add up."""

    def recorded(jobs: Sequence[Job]) -> int:
        return sum(ledger.holds(job.run, job.digest) for job in jobs)

    known = [*found.recorded, *found.finished, *found.missing]
    new = len(found.finished) - recorded(found.finished)
    number = len(known) + len(found.failures)
    parts = [
        f"{number} of the table's {number + others}" if others else f"{number} in total",
        f"{recorded(known)} recorded in {csv}",
        f"{new} finished and to be added to it" if new else "",
        f"{len(found.missing)} missing",
        f"{len(found.models)} more to be run for their models" if found.models else "",
        f"{len(found.failures)} with errors" if found.failures else "",
    ]
    return f"runs     {', '.join(filter(None, parts))}"


def _cost(found: JobStatus, ledger: Ledger, csv: str) -> list[str]:
    """Estimated time. It names the CSV, because another machine may have made the records."""
    if not found.todo:
        return []
    seconds = [ledger.seconds(job.row.name) for job in found.todo]
    known = [value for value in seconds if value is not None]
    if not known:
        return [f"cost     unknown, because {csv} has no run of these rows"]
    unknown = len(seconds) - len(known)
    but = f"; not counted: {unknown} of rows without a record" if unknown else ""
    return [
        f"cost     about {rough_duration(sum(known))}, one run at a time, on the machine that made {csv} "
        f"(median seconds of each row's runs){but}"
    ]
