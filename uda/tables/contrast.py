"""Two rows of a table compared pair by pair: where one is better than the other, and what goes along with it."""

import statistics
from collections.abc import Sequence

import numpy as np

from uda.core.statistics import mean_interval
from uda.report.markdown import markdown_table
from uda.tables.comparison import (
    LEAST_POINTS,
    Record,
    difference_to_reference,
    names_of,
    numbers,
    pairs_of,
    rank_correlation,
    select,
)
from uda.tables.definition import MEASURES, name_of
from uda.tables.markdown import difference_text, percent

TEXT = (
    "{first} minus {second}, by pair, sorted by the {measure} of the source model. The last column has the mean "
    "difference in points over the n runs with the same pair and seed, with a 95 % paired bootstrap interval over "
    "seeds. TP rate: share of right labels among the selected ones, of {first} / {second}. Flipped: share of the "
    "selected labels of {first} that are of another class than the largest score, in the last round. Accuracies and TP "
    "rates are oracle figures. All are means over these runs in %."
)
OVER_PAIRS = (
    "Mean over the {count} pairs: {mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} (Student's; the pairs "
    "count as a sample of all pairs). {better} of {count} pairs are above 0."
)
ALONG = "Spearman's rho over the {count} pairs between the difference and each of these figures:\n\n{rhos}"


def contrasts_markdown(records: Sequence[Record], contrasts: Sequence[tuple[str, str]], measure: str) -> str:
    """Markdown of each contrast, a pair of rows of which the second is the reference. Missing rows are left out."""
    known = set(names_of(records))
    found = [_contrast(records, *rows, measure) for rows in contrasts if known.issuperset(rows)]
    return "\n".join(filter(None, found))


def _contrast(records: Sequence[Record], first: str, second: str, measure: str) -> str:
    rows, differences, explanations = [], [], {}
    for pair in pairs_of(records):
        ours, reference = (select(records, row, pair) for row in (first, second))
        both = {run["seed"] for run in ours} & {run["seed"] for run in reference}
        ours, reference = ([run for run in runs if run["seed"] in both] for runs in (ours, reference))
        difference = difference_to_reference([*ours, *reference], first, second, measure)
        if difference is None:
            continue
        source = _mean(reference, "source_only")
        rates = {
            when: (_mean(ours, key), _mean(reference, key))
            for when, key in (("first", "tp_rate_round0"), ("last", "tp_rate"))
        }
        flipped = _mean(ours, "flipped")
        differences.append(difference.mean)
        known = {
            "accuracy of the source model": source,
            f"TP rate of {second} in the first round": rates["first"][1],
            "difference of TP rates in the first round": _difference(*rates["first"]),
            "difference of TP rates in the last round": _difference(*rates["last"]),
            "share of flipped labels": flipped,
        }
        for name, value in known.items():
            explanations.setdefault(name, []).append(value)
        cells = [name_of(pair), percent(source), *(_both(*pairs) for pairs in rates.values()), percent(flipped)]
        rows.append((source or 0.0, [*cells, difference_text(difference)]))
    if len(rows) < 2:
        return ""
    head = ["Pair", "source model", "TP rate, first round", "TP rate, last round", "flipped", f"minus {second}"]
    table = markdown_table(head, [row for _, row in sorted(rows, key=lambda row: row[0])])
    values = 100 * np.array(differences)
    low, high = mean_interval(values)
    texts = [
        OVER_PAIRS.format(count=len(values), mean=values.mean(), low=low, high=high, better=int((values > 0).sum()))
    ]
    rhos = [
        f"- {name} {rho:+.2f}"
        for name, column in explanations.items()
        if len(column) >= LEAST_POINTS
        and None not in column
        and (rho := rank_correlation(column, differences)) is not None
    ]
    if rhos:
        texts.append(ALONG.format(count=len(values), rhos="\n".join(rhos)))
    title = TEXT.format(first=first, second=second, measure=MEASURES[measure])
    return "\n\n".join([title, table, *texts]) + "\n"


def _mean(records: Sequence[Record], key: str) -> float | None:
    found = numbers(records, key)
    return statistics.mean(found) if found else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _both(first: float | None, second: float | None) -> str:
    return f"{percent(first) or 'n/a'} / {percent(second) or 'n/a'}"
