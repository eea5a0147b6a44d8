"""From finished runs to a table's files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from uda.atomic import write_text
from uda.errors import UserError
from uda.tables.definition import Table
from uda.tables.jobs import Job
from uda.tables.latex import published_latex, to_latex
from uda.tables.ledger import Ledger, read_csv
from uda.tables.markdown import has_place, insert_markdown, published_markdown, to_markdown, validator_markdown


def collect(
    table: Table, jobs: Iterable[Job], folder: Path, prune: bool = False, log: Callable[[str], None] = print
) -> Ledger:
    """Add the finished ones of these runs to the table's CSVs in `folder`, which keep all other rows that they have.

    Args:
        table: whose CSVs.
        jobs: runs that may have finished; a folder that another recipe made is reported and left out.
        folder: of the CSVs.
        prune: forget the rows, pairs and seeds that the table no longer has.
        log: receives what was left out or forgotten, and which records are of another recipe than the table's now.

    Raises:
        UserError: nothing is recorded and nothing finished.
    """
    ledger = Ledger.read(folder, table.name)
    outdated: dict[str, int] = {}
    for job in jobs:
        try:
            record = job.record()
            if record is not None:
                ledger.add(record, job.reports())
        except UserError as error:
            log(f"left out: {job.title}: {error}")
        if job.run in ledger.runs and not ledger.holds(job.run, job.digest):
            outdated[job.row.name] = outdated.get(job.row.name, 0) + 1
    for name, count in outdated.items():
        log(f"outdated: {name}: {count} recorded by another recipe than the table has now; they stay until run anew")
    if prune and (gone := ledger.prune(table)):
        log(f"forgotten: {', '.join(gone)}")
    if not ledger.runs:
        raise UserError(f"table '{table.name}': no finished run, and no {folder / table.name}.csv")
    ledger.write(folder, table)
    return ledger


def write_document(name: str, folder: Path, document: Path | None = None) -> str:
    """Write `folder/<name>.tex` and the document's blocks from the table's CSVs. Returns all of its Markdown.

    The blocks are `<!-- table <name> -->`, and `<!-- table <name>_validators -->` if the document has it.
    """
    records = read_csv(folder / f"{name}.csv")
    write_text(folder / f"{name}.tex", to_latex(records))
    markdown, validators = to_markdown(records), ""
    reports = folder / f"{name}_reports.csv"
    if reports.is_file():
        validators = validator_markdown(read_csv(reports))
    if document is not None:
        text = insert_markdown(document.read_text(encoding="utf-8"), name, markdown)
        if validators and has_place(text, f"{name}_validators"):
            text = insert_markdown(text, f"{name}_validators", validators)
        write_text(document, text)
    return f"{markdown}\n{validators}" if validators else markdown


def write_published(name: str, folder: Path, document: Path | None = None) -> str:
    """Write `folder/<name>.tex` and the document's block `<name>_published` from the CSV of published figures.

    Raises:
        UserError: there is no such CSV; the known ones are named.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.csv"))) or "none"
        raise UserError(f"{path}: no published figures of that name (known: {known})")
    records = read_csv(path)
    write_text(folder / f"{name}.tex", published_latex(records))
    markdown = published_markdown(records)
    if document is not None:
        text = insert_markdown(document.read_text(encoding="utf-8"), f"{name}_published", markdown)
        write_text(document, text)
    return markdown
