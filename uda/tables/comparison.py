"""Statistics of a table: spread over seeds, paired differences between rows, how well a score ranks.

They work on records as the CSVs hold them: text, empty where a figure is not known. The measure by which models are
compared is one of `definition.MEASURES`.
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

#: Fewer points have too few orders for a correlation to say anything.
LEAST_POINTS = 3


def names_of(records: Sequence[Record]) -> list[str]:
    """Names of the rows, in their order."""
    return list(dict.fromkeys(record["row"] for record in records))


def pairs_of(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Pairs of domains, in their order."""
    return list(dict.fromkeys((record["source"], record["target"]) for record in records))


def select(records: Sequence[Record], row: str, pair: tuple[str, str] | None = None) -> list[Record]:
    """The records of a row, of one pair or of all."""
    return [
        record for record in records if record["row"] == row and pair in (None, (record["source"], record["target"]))
    ]


def numbers(records: Sequence[Record], key: str) -> list[float]:
    """A column's figures, without what is not known."""
    return [float(record[key]) for record in records if record[key]]


def mean_over_pairs(records: Sequence[Record], row: str, key: str = "class_mean") -> list[float]:
    """The mean of a row's column over all pairs, of each seed that has every pair."""
    pairs = pairs_of(records)
    by_seed: dict[str, list[float]] = {}
    for record in select(records, row):
        if record[key]:
            by_seed.setdefault(record["seed"], []).append(float(record[key]))
    return [statistics.mean(found) for found in by_seed.values() if len(found) == len(pairs)]


def difference_to_reference(
    records: Sequence[Record], row: str, reference: str, measure: str = "class_mean"
) -> PairedDifference | None:
    """A row's measure less the reference's, paired by domains and seed; None without a pair, or for itself."""
    if row == reference:
        return None
    of_reference, of_row = (
        {((r["source"], r["target"]), r["seed"]): float(r[measure]) for r in select(records, n) if r[measure]}
        for n in (reference, row)
    )
    return mean_difference(of_row, of_reference)


def mean_difference(ours: Mapping[Unit, float], reference: Mapping[Unit, float]) -> PairedDifference | None:
    """Mean of what two have by pair of domains and seed, and its interval, over the units that both have."""
    differences: dict[tuple[str, str], list[float]] = {}
    for unit, value in ours.items():
        if unit in reference:
            differences.setdefault(unit[0], []).append(value - reference[unit])
    return paired_bootstrap(differences)


def by_class(
    records: Sequence[Record], pair: tuple[str, str], measure: str = "class_mean"
) -> tuple[list[str], list[tuple[str, list[float | None], float | None]]]:
    """The classes of a pair's target, and of each row its accuracy on each class and its measure, means over seeds."""
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
    """Spearman's rho, -1 to 1; None for fewer than three points, or where either is constant."""
    if len(scores) < LEAST_POINTS:
        return None
    rho = spearman(np.asarray(scores), np.asarray(truth))
    return None if math.isnan(rho) else rho


@dataclass(frozen=True)
class Judgement:
    """How well a score that needs no label of the target judges models, by their oracle measure."""

    correlations: tuple[float, ...]
    """Spearman's rho in each group of models."""
    losses: tuple[float, ...]
    """Measure of each group's best model less that of the score's choice."""


def validators_of(reports: Sequence[Record], measure: str = "class_mean") -> list[str]:
    """Names of the validators that reports hold."""
    return [key for key in (reports[0] if reports else {}) if key not in report_columns(measure)]


def runs_of(reports: Sequence[Record], measure: str = "class_mean") -> list[list[Record]]:
    """The reports with a known measure, run by run."""
    runs: dict[tuple[str, ...], list[Record]] = {}
    for report in reports:
        if report[measure]:
            run = tuple(report[key] for key in RUN)
            runs.setdefault(run, []).append(report)
    return list(runs.values())


def last_reports(reports: Sequence[Record], measure: str = "class_mean") -> list[list[Record]]:
    """The last report of every run, grouped by pair and seed: one model a method."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for run in runs_of(reports, measure):
        groups.setdefault(tuple(run[-1][key] for key in ("source", "target", "seed")), []).append(run[-1])
    return list(groups.values())


def choice_of(validator: str, models: Sequence[Record]) -> Record:
    """The model that a validator likes best, the first of them where several are equal."""
    return max(models, key=lambda model: float(model[validator]))


def judge(validator: str, groups: Sequence[Sequence[Record]], measure: str = "class_mean") -> Judgement:
    """What a validator makes of groups of models, of those among them that it scores: three at least."""
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
    return Judgement(tuple(correlations), tuple(losses))
