"""Families of rows that differ in one setting, like `AVH; s = 5` and `AVH; s = 10`. Held-out images choose a row."""

import statistics
from collections.abc import Mapping, Sequence

from uda.report.markdown import markdown_table
from uda.tables.comparison import Record, mean_difference, names_of, numbers, pairs_of, select
from uda.tables.definition import name_of
from uda.tables.markdown import difference_text, mean_and_spread

Pair = tuple[str, str]


def family_of(row: str) -> str:
    """The part of a row's name before the semicolon."""
    return row.partition(";")[0].strip()


def chosen_by_validation(records: Sequence[Record]) -> dict[tuple[str, Pair], str]:
    """For each family and unseen domain the row whose final models are best on the seen domains' held-out images.

    Means are over the seeds that all rows of the family have for this domain. The first of several equal rows is
    chosen. Runs that leave out another domain are not used, because they have seen this one.
    """
    chosen = {}
    for pair in pairs_of(records):
        families: dict[str, list[str]] = {}
        for row in names_of(records):
            families.setdefault(family_of(row), []).append(row)
        for family, rows in families.items():
            by_row = {row: {r["seed"]: float(r["validation"]) for r in select(records, row, pair)} for row in rows}
            common = set.intersection(*(set(found) for found in by_row.values()))
            if common:
                means = {row: statistics.mean(found[seed] for seed in common) for row, found in by_row.items()}
                chosen[family, pair] = max(means, key=means.__getitem__)
    return chosen


def variants_markdown(records: Sequence[Record], reference: str | None = None, measure: str = "overall") -> str:
    """The measure of the chosen rows on each unseen domain, one row per family; empty if no family has two rows."""
    families = list(dict.fromkeys(map(family_of, names_of(records))))
    if len(families) == len(names_of(records)) or not numbers(records, "validation"):
        return ""
    chosen, pairs = chosen_by_validation(records), pairs_of(records)
    against = None if reference is None else family_of(reference)
    compared = [f"minus {against}"] if against else []
    text = (
        "Some rows differ only in the setting after the semicolon. For each unseen domain, the row with the best final "
        "models on the held-out images of the seen domains is chosen (mean over their common seeds). The table shows "
        "its accuracy in % on the unseen domain (oracle), which the choice does not use."
    )
    lines = []
    for family in families:
        cells, reached = [], _by_run(records, chosen, family, measure)
        for pair in pairs:
            row = chosen.get((family, pair))
            values = [value for (other, _), value in reached.items() if other == pair]
            variant = "" if row is None else row.partition(";")[2].strip()
            cells.append(mean_and_spread(values) + f" ({variant})" * bool(variant))
        cells.append(mean_and_spread(_averages(reached, pairs)))
        if against:
            other = _by_run(records, chosen, against, measure) if family != against else {}
            cells.append(difference_text(mean_difference(reached, other)))
        lines.append([family, *cells])
    return f"{text}\n\n{markdown_table(['Method', *map(name_of, pairs), 'average', *compared], lines)}"


def _by_run(
    records: Sequence[Record], chosen: Mapping[tuple[str, Pair], str], family: str, measure: str
) -> dict[tuple[Pair, str], float]:
    """The measure of a family's chosen rows, by unseen domain and seed."""
    return {
        (pair, record["seed"]): float(record[measure])
        for (name, pair), row in chosen.items()
        if name == family
        for record in select(records, row, pair)
    }


def _averages(reached: Mapping[tuple[Pair, str], float], pairs: Sequence[Pair]) -> list[float]:
    """Mean over all unseen domains, for each seed that has them all."""
    by_seed: dict[str, list[float]] = {}
    for (_, seed), value in reached.items():
        by_seed.setdefault(seed, []).append(value)
    return [statistics.mean(values) for values in by_seed.values() if len(values) == len(pairs)]
