"""A table as LaTeX, for `\\usepackage{booktabs}`: the paper's form (classes, mean), then mean and deviation."""

import re
from collections.abc import Sequence

from uda.tables.comparison import Record, by_class, difference_to_reference, names_of, pairs_of, select
from uda.tables.definition import MEASURES, name_of
from uda.tables.markdown import columns_of, difference_text, percent, published_classes, steps_text

_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text escaped for LaTeX. A hyphen before a number becomes a minus sign."""
    return _MINUS.sub("$-$", "".join(_SPECIAL.get(character, character) for character in text))


def to_latex(records: Sequence[Record], reference: str | None = None, measure: str = "class_mean") -> str:
    """One tabular per pair with the accuracy by class, then one with mean and deviation over seeds, all in %."""
    rows, columns = names_of(records), columns_of(records, measure)
    last = "mean" if measure == "class_mean" else MEASURES[measure]
    parts = ["% Needs \\usepackage{booktabs}. Measured; accuracy in %, means over seeds."]
    for pair in pairs_of(records):
        classes, found = by_class(records, pair, measure)
        body = [[row, *map(percent, means), percent(total)] for row, means, total in found]
        parts.append(f"% {name_of(pair)}\n" + _tabular(["Method", *classes, last], body))
    compared = reference in rows
    head = ["Method", "seeds", *(title for title, _ in columns), "steps", *[f"minus {reference}"] * compared]
    body = []
    for row in rows:
        own = select(records, row)
        seeds = str(len({record["seed"] for record in own}))
        cells = [row, seeds, *(text_of(row) for _, text_of in columns), steps_text(own)]
        if compared:
            cells.append(difference_text(difference_to_reference(records, row, reference, measure)))
        body.append(cells)
    note = f"; minus {reference}: 95 % paired bootstrap" * compared
    parts.append(f"% mean and standard deviation{note}\n" + _tabular(head, body))
    return "\n".join(parts)


def published_latex(records: Sequence[Record]) -> str:
    """A tabular of published figures."""
    classes = published_classes(records)
    body = [[record[key] for key in ("method", *classes, "mean")] for record in records]
    where = "; ".join(dict.fromkeys(record["published_in"] for record in records))
    head = ["Method (published)", *classes, "mean"]
    return f"% Needs \\usepackage{{booktabs}}. Published, not measured here: {where}.\n{_tabular(head, body)}"


def _tabular(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(escape, cells)) + r" \\" for cells in (head, *body)]
    columns = "l" + "r" * (len(head) - 1)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])
