"""A table as LaTeX, for `\\usepackage{booktabs}`: the paper's own form (classes, mean), then mean and deviation."""

import json
import statistics
from collections.abc import Sequence

from uda.tables.comparison import (
    Record,
    difference_to_reference,
    mean_over_pairs,
    names_of,
    numbers,
    pairs_of,
    select,
)
from uda.tables.markdown import difference_text, mean_and_spread, published_classes, steps_text

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def to_latex(records: Sequence[Record], reference: str | None = None) -> str:
    """One tabular a pair with the accuracy by class, then one with mean and deviation over seeds, all in %."""
    rows, pairs = names_of(records), pairs_of(records)
    parts = ["% Needs \\usepackage{booktabs}. Measured; accuracy in %, means over seeds."]
    for pair in pairs:
        own = [record for row in rows for record in select(records, row, pair) if record["per_class"]]
        classes = list(dict.fromkeys(name for record in own for name in json.loads(record["per_class"])))
        body = []
        for row in names_of(own):
            runs = select(own, row)
            columns = [[json.loads(run["per_class"]).get(name) for run in runs] for name in classes]
            cells = [_mean([share for share in column if share is not None]) for column in columns]
            body.append([row, *cells, _mean(numbers(runs, "class_mean"))])
        parts.append(f"% {pair[0]} to {pair[1]}\n" + _tabular(["Method", *classes, "mean"], body))
    head = ["Method", "seeds", *(f"{source} to {target}" for source, target in pairs)]
    compared = reference in rows
    head += ["mean"] * (len(pairs) > 1) + ["steps"] + [f"less {reference}"] * compared
    body = []
    for row in rows:
        own = select(records, row)
        cells = [row, str(len({record["seed"] for record in own}))]
        cells += [mean_and_spread(numbers(select(records, row, pair), "class_mean")) for pair in pairs]
        if len(pairs) > 1:
            cells.append(mean_and_spread(mean_over_pairs(records, row)))
        cells.append(steps_text(own))
        if compared:
            cells.append(difference_text(difference_to_reference(records, row, reference)))
        body.append(cells)
    note = f"; less {reference}: 95 % paired bootstrap" * compared
    parts.append(f"% mean and standard deviation{note}\n" + _tabular(head, body))
    return "\n".join(parts)


def published_latex(records: Sequence[Record]) -> str:
    """Figures that others published, in a tabular of their own."""
    classes = published_classes(records)
    body = [[record[key] for key in ("method", *classes, "mean")] for record in records]
    where = ", ".join(dict.fromkeys(record["published_in"] for record in records))
    head = ["Method (published)", *classes, "mean"]
    return f"% Needs \\usepackage{{booktabs}}. Published, not measured here: {where}.\n{_tabular(head, body)}"


def _mean(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f}" if values else ""


def _tabular(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(escape, cells)) + r" \\" for cells in (head, *body)]
    columns = "l" + "r" * (len(head) - 1)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])
