"""Markdown documents with marked places, which a command fills with tables."""

from collections.abc import Iterable, Sequence

from uda.core.errors import UserError

_RULES = {"l": "---", "r": "---:"}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table in Markdown, with a newline at its end.

    Args:
        head: titles of the columns.
        rows: cells. Each row has as many as there are titles.
        align: one letter per column, `l` for left or `r` for right. Empty: all left.
    """
    rules = [_RULES[side] for side in align or "l" * len(head)]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def has_place(document: str, name: str) -> bool:
    """Whether a document has a place for this table."""
    return f"<!-- table {name} -->" in document


def insert_markdown(document: str, name: str, markdown: str) -> str:
    """`document` with the text between `<!-- table NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        UserError: the document does not have each mark once, in this order.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UserError(f"no place for table '{name}': the document needs the lines {begin} and {end}, once each")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{markdown}{end}{rest.partition(end)[2]}"
