"""Markdown: tables, and marked places of a document that a command fills."""

from uda.core.errors import UserError


def has_place(document: str, name: str) -> bool:
    """Whether a document has a block for this table."""
    return f"<!-- table {name} -->" in document


def insert_markdown(document: str, name: str, markdown: str) -> str:
    """`document` with the block between `<!-- table NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        UserError: the two marks are not there, once each and in this order.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UserError(f"no place for table '{name}': the document needs the lines {begin} and {end}, once each")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{markdown}{end}{rest.partition(end)[2]}"
