"""Collect finished runs in a table's CSVs, and write its documents from them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from uda.core.errors import UserError
from uda.core.files import write_text
from uda.report.markdown import has_place, insert_markdown
from uda.tables.agreement import agreement_markdown, update_agreement
from uda.tables.choice import choices_markdown
from uda.tables.contrast import contrasts_markdown
from uda.tables.definition import Table
from uda.tables.jobs import Job, lines_of
from uda.tables.latex import published_latex, to_latex
from uda.tables.ledger import INNER, Ledger, Run, read_csv
from uda.tables.markdown import (
    classes_markdown,
    differences_markdown,
    inner_markdown,
    published_markdown,
    scores_markdown,
    to_markdown,
    validator_markdown,
)
from uda.tables.variants import variants_markdown


def collect(
    table: Table,
    jobs: Sequence[Job],
    folder: Path,
    prune: bool = False,
    log: Callable[[str], None] = print,
    said: str = "",
) -> Ledger:
    """Add finished runs to the table's CSVs in `folder`. All other rows of the CSVs are kept.

    Args:
        table: the table.
        jobs: runs that may have finished. A run with a wrong config or a folder of another recipe is logged and left
            out.
        folder: folder of the CSVs.
        prune: remove rows, pairs and seeds that the table no longer has.
        log: receives a line for what was left out or removed, and for records with another recipe.
        said: errors that the user is told anyway. What is left out because of them is not logged again.

    Raises:
        UserError: no run is recorded or finished.
    """
    ledger = Ledger.read(folder, table)
    outdated: dict[str, int] = {}
    wrong: list[tuple[Job, UserError]] = []
    finished: list[Job] = []
    digests: dict[Run, str] = {}
    for job in jobs:
        try:
            digest = digests[job.run] = job.digest
        except UserError as error:
            wrong.append((job, error))
            continue
        try:
            results = job.results()
            if results is not None:
                ledger.add(job.record(results), job.reports(results))
                finished.append(job)
        except UserError as error:
            wrong.append((job, error))
        if job.run in ledger.runs and not ledger.holds(job.run, digest):
            outdated[job.row.name] = outdated.get(job.row.name, 0) + 1
    for line in lines_of((job, error) for job, error in wrong if str(error) not in said):
        log(f"left out: {line}")
    for name, count in outdated.items():
        log(f"outdated: {name}: {count} recorded with an earlier recipe; they stay until they are run again")
    if prune and (gone := ledger.prune(table)):
        log(f"removed: {', '.join(gone)}")
    if not ledger.runs:
        raise UserError(f"table '{table.name}': no finished run, and no {folder / table.name}.csv")
    ledger.write(folder, table)
    if table.agreement:
        path, rows = folder / f"{table.name}_agreement.csv", [row.name for row in table.rows]
        update_agreement(path, finished, rows, digests)
    return ledger


def blocks_of(table: Table, folder: Path) -> dict[str, str]:
    """A table's blocks of Markdown from its CSVs, by name.

    The names are `<name>`, and `<name>` followed by `_differences`, `_contrasts`, `_classes`, `_inner`, `_validators`,
    `_choices`, `_agreement`, `_scores` or `_variants`. A block without content is empty.
    """
    records = read_csv(folder / f"{table.name}.csv")
    blocks = {table.name: to_markdown(records, table.reference, table.measure)}
    blocks[f"{table.name}_differences"] = differences_markdown(records, table.reference, table.measure)
    blocks[f"{table.name}_contrasts"] = contrasts_markdown(records, table.contrasts, table.measure)
    blocks[f"{table.name}_classes"] = classes_markdown(records, table.measure)
    blocks[f"{table.name}_inner"] = inner_markdown(records) if INNER[0] in table.columns else ""
    path = folder / f"{table.name}_reports.csv"
    reports = read_csv(path) if path.is_file() else []
    blocks[f"{table.name}_validators"] = validator_markdown(reports, table.measure) if reports else ""
    blocks[f"{table.name}_choices"] = choices_markdown(reports, table.choices, table.measure)
    path = folder / f"{table.name}_agreement.csv"
    blocks[f"{table.name}_agreement"] = agreement_markdown(read_csv(path)) if path.is_file() else ""
    # The held-out images of a run show the unseen domains of other runs, so a choice over all runs would use labels.
    left_out = table.kind == "generalization"
    blocks[f"{table.name}_scores"] = "" if left_out else scores_markdown(reports, table.measure)
    blocks[f"{table.name}_variants"] = variants_markdown(records, table.reference, table.measure) if left_out else ""
    return blocks


def write_documents(table: Table, folder: Path, documents: Sequence[Path] = ()) -> str:
    """Write `folder/<name>.tex`, and the table's blocks in the documents that have a place for them.

    Returns:
        All of the table's Markdown.

    Raises:
        UserError: no document has a place for any block.
    """
    latex = to_latex(read_csv(folder / f"{table.name}.csv"), table.reference, table.measure)
    write_text(folder / f"{table.name}.tex", latex)
    blocks = blocks_of(table, folder)
    _fill(documents, blocks)
    return "\n".join(filter(None, blocks.values()))


def write_published(name: str, folder: Path, documents: Sequence[Path] = ()) -> str:
    """Write `folder/<name>.tex` and each document's block `<name>_published` from the CSV of published figures.

    Raises:
        UserError: there is no such CSV (names the known ones), or no document has such a block.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.csv"))) or "none"
        raise UserError(f"{path}: no published figures of that name (known: {known})")
    records = read_csv(path)
    write_text(folder / f"{name}.tex", published_latex(records))
    markdown = published_markdown(records)
    _fill(documents, {f"{name}_published": markdown})
    return markdown


def _fill(documents: Sequence[Path], blocks: Mapping[str, str]) -> None:
    """Write the blocks in the documents that have a place for them. Raises UserError if there is no place for any."""
    texts = {document: document.read_text(encoding="utf-8") for document in documents}
    if texts and not any(has_place(text, name) for text in texts.values() for name in blocks):
        insert_markdown(next(iter(texts.values())), next(iter(blocks)), "")  # raises the error
    for document, text in texts.items():
        for name in blocks:
            if has_place(text, name):
                text = insert_markdown(text, name, blocks[name])
        write_text(document, text)
