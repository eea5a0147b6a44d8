"""Tables of runs: find and run missing runs, record each run as a CSV row, write Markdown and LaTeX from the CSV.

The CSV is committed and keeps the row of every finished run from any machine, so run folders may be deleted. If the
first row trains a source model and adapts nothing, rows with the same source stage start from its weights of the same
pair and seed. Thus they differ only in what is compared.
"""

from uda.tables.collect import blocks_of, collect, write_documents, write_published
from uda.tables.definition import Row, Table, load_table
from uda.tables.dry_run import dry_run
from uda.tables.job import Job
from uda.tables.jobs import JobStatus, choose_jobs, jobs_of, run_jobs, status_of
from uda.tables.latex import published_latex, to_latex
from uda.tables.launchers import LAUNCHERS, Launcher
from uda.tables.ledger import INNER, Ledger, read_csv, to_csv
from uda.tables.markdown import (
    classes_markdown,
    differences_markdown,
    inner_markdown,
    published_markdown,
    scores_markdown,
    to_markdown,
    validator_markdown,
)

__all__ = [
    "INNER",
    "LAUNCHERS",
    "Job",
    "JobStatus",
    "Launcher",
    "Ledger",
    "Row",
    "Table",
    "blocks_of",
    "choose_jobs",
    "classes_markdown",
    "collect",
    "differences_markdown",
    "dry_run",
    "inner_markdown",
    "jobs_of",
    "load_table",
    "published_latex",
    "published_markdown",
    "read_csv",
    "run_jobs",
    "scores_markdown",
    "status_of",
    "to_csv",
    "to_latex",
    "to_markdown",
    "validator_markdown",
    "write_documents",
    "write_published",
]
