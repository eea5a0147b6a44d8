"""Statistics of a table: spread over seeds, paired differences between rows, how well a score ranks models.

Records are as in the CSVs: text, empty if unknown. The measure that compares models is one of `definition.MEASURES`.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uda.core.statistics import PairedDifference, paired_bootstrap, spearman
from uda.tables.ledger import RUN, report_columns

Record = Mapping[str, str]
#: A pair of domains, and a seed.
Unit = tuple[tuple[str, str], str]

#: Fewest points of a correlation. Fewer points have too few possible orders.
LEAST_POINTS = 3


def names_of(records: Sequence[Record]) -> list[str]:
    """Names of the rows, in order."""
    return list(dict.fromkeys(record["row"] for record in records))


def pairs_of(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Pairs of domains, in order."""
    return list(dict.fromkeys((record["source"], record["target"]) for record in records))


def select(records: Sequence[Record], row: str, pair: tuple[str, str] | None = None) -> list[Record]:
    """The records of a row, for one pair or for all."""
    return [
        record for record in records if record["row"] == row and pair in (None, (record["source"], record["target"]))
    ]


def numbers(records: Sequence[Record], key: str) -> list[float]:
    """The known figures of a column."""
    return [float(record[key]) for record in records if record[key]]


def mean_over_pairs(records: Sequence[Record], row: str, key: str = "class_mean") -> list[float]:
    """Mean of a row's column over all pairs, for each seed that has every pair."""
    pairs = pairs_of(records)
    by_seed: dict[str, list[float]] = {}
    for record in select(records, row):
        if record[key]:
            by_seed.setdefault(record["seed"], []).append(float(record[key]))
    return [statistics.mean(found) for found in by_seed.values() if len(found) == len(pairs)]


def difference_to_reference(
    records: Sequence[Record], row: str, reference: str, measure: str = "class_mean"
) -> PairedDifference | None:
    """A row's measure minus the reference's, paired by domains and seed; None without pairs or for the reference."""
    if row == reference:
        return None
    of_reference, of_row = (
        {((r["source"], r["target"]), r["seed"]): float(r[measure]) for r in select(records, n) if r[measure]}
        for n in (reference, row)
    )
    return mean_difference(of_row, of_reference)


def mean_difference(ours: Mapping[Unit, float], reference: Mapping[Unit, float]) -> PairedDifference | None:
    """Mean of `ours` minus `reference` with its interval, over the units (domains and seed) that both have."""
    differences: dict[tuple[str, str], list[float]] = {}
    for unit, value in ours.items():
        if unit in reference:
            differences.setdefault(unit[0], []).append(value - reference[unit])
    return paired_bootstrap(differences)


def by_class(
    records: Sequence[Record], pair: tuple[str, str], measure: str = "class_mean"
) -> tuple[list[str], list[tuple[str, list[float | None], float | None]]]:
    """The classes of a pair's target, and each row with its accuracy by class and its measure, means over seeds."""
    own = [record for row in names_of(records) for record in select(records, row, pair) if record["per_class"]]
    classes = list(dict.fromkeys(name for record in own for name in json.loads(record["per_class"])))
    rows = []
    for row in names_of(own):
        runs = select(own, row)
        shares = [[json.loads(run["per_class"]).get(name) for run in runs] for name in classes]
        means = [_mean([share for share in column if share is not None]) for column in shares]
        rows.append((row, means, _mean(numbers(runs, measure))))
    return classes, rows


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def rank_correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rho, -1 to 1; None for fewer than three points, or if one side is constant."""
    if len(scores) < LEAST_POINTS:
        return None
    rho = spearman(np.asarray(scores), np.asarray(truth))
    return None if math.isnan(rho) else rho


@dataclass(frozen=True)
class ValidatorQuality:
    """How well a score without target labels judges models, compared with their oracle measure."""

    correlations: tuple[float, ...]
    """Spearman's rho in each group of models."""
    losses: tuple[float, ...]
    """In each group, the measure of the best model minus that of the score's choice."""


def validators_of(reports: Sequence[Record], measure: str = "class_mean") -> list[str]:
    """Names of the validators in the reports."""
    return [key for key in (reports[0] if reports else {}) if key not in report_columns(measure)]


def runs_of(reports: Sequence[Record], measure: str = "class_mean") -> list[list[Record]]:
    """The reports with a known measure, grouped by run."""
    runs: dict[tuple[str, ...], list[Record]] = {}
    for report in reports:
        if report[measure]:
            run = tuple(report[key] for key in RUN)
            runs.setdefault(run, []).append(report)
    return list(runs.values())


def last_reports(reports: Sequence[Record], measure: str = "class_mean") -> list[list[Record]]:
    """The last report of every run, grouped by pair and seed: one model per method."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for run in runs_of(reports, measure):
        groups.setdefault(tuple(run[-1][key] for key in ("source", "target", "seed")), []).append(run[-1])
    return list(groups.values())


def choice_of(validator: str, models: Sequence[Record]) -> Record:
    """The model with a validator's best score; the first one if several are equal."""
    return max(models, key=lambda model: float(model[validator]))


def quality_of(validator: str, groups: Sequence[Sequence[Record]], measure: str = "class_mean") -> ValidatorQuality:
    """Judge a validator on groups of models. Models without its score are left out; a group needs three models."""
    correlations, losses = [], []
    for models in groups:
        models = [model for model in models if model[validator]]
        if len(models) < LEAST_POINTS:
            continue
        truth = numbers(models, measure)
        correlation = rank_correlation(numbers(models, validator), truth)
        if correlation is not None:
            correlations.append(correlation)
        losses.append(max(truth) - float(choice_of(validator, models)[measure]))
    return ValidatorQuality(tuple(correlations), tuple(losses))
